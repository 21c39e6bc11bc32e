"""The command `posttrain rewards`: lists the registered rewards, shows their options, tries them on completions."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from posttrain.console import out
from posttrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from posttrain.completion_rows import CompletionRow
    from posttrain.rewards import RewardTable, Score

rewards_app = typer.Typer(help="The registered rewards: their options, and what they give.", no_args_is_help=True)


@rewards_app.command("list")
def list_rewards() -> None:
    """Lists the registered rewards."""
    from posttrain.rewards import available

    table = Table(box=None, pad_edge=False)
    table.add_column("reward", style="bold")
    table.add_column("")
    for name, cls in sorted(available().items()):
        table.add_row(name, escape((cls.__doc__ or "").split("\n", 1)[0]))
    out.print(table)


@rewards_app.command("show")
def show_reward(name: Annotated[str, typer.Argument(help="A registered reward.")]) -> None:
    """Shows what a reward gives, and its options."""
    from posttrain.rewards import available, describe

    table = Table(box=None, pad_edge=False)
    for column in ("option", "type", "default", ""):
        table.add_column(column)
    try:
        options = describe(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for option in options:
        kind = option.type.__name__ if isinstance(option.type, type) else str(option.type).replace("typing.", "")
        default = "required" if option.required else repr(option.default)
        table.add_row(option.name, *map(escape, (kind, default, option.doc)))
    out.print(escape((available()[name].__doc__ or "").split("\n", 1)[0]))
    out.print(table)


@rewards_app.command("test")
def try_rewards(
    file: Annotated[Path, typer.Argument(help="JSONL: completion, and the reference fields; prompt, task, truncated.")],
    reward: Annotated[str, typer.Option(help="Rewards of every row: name,name or module:function.")] = "",
    recipe: Annotated[str, typer.Option(help="Instead: a recipe, whose rewards are used by task.")] = "",
    task: Annotated[str, typer.Option(help="Task of rows that name none.")] = "default",
    rows: Annotated[int, typer.Option(help="Rows to show; all are scored.", min=0)] = 50,
) -> None:
    """Scores a file of completions, and shows each reward's verdict, its reason and what it took."""
    from posttrain.completion_rows import read_completions
    from posttrain.rewards import BadRewardError

    table = _table(reward, recipe)
    given = read_completions(file, task=task)
    for number, (name, _, _) in enumerate(given, start=1):
        if not table.serves(name):
            raise DataError(
                f"completion {number} of {file} is of task {name!r}, which has no rewards; rewards are given for: "
                f"{', '.join(table.tasks)} (--task names the task of rows that name none)"
            )
    _warm_up(table, given)
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, spent: float) -> None:
        seconds[name] += spent

    try:
        scores = table.score_batch(given, timed=timed)
    except BadRewardError as error:
        raise ConfigError(str(error)) from error
    names = list(dict.fromkeys(w.name for task, _, _ in given for w in table.rewards_for(task).rewards))
    if rows:
        out.print(_verdicts(given[:rows], scores, names))
    if 0 < rows < len(given):
        out.print(f"and {len(given) - rows} more")
    out.print(_summary(given, scores, names, table, seconds))


def _table(reward: str, recipe: str) -> "RewardTable":
    from posttrain.rewards import make_table

    if bool(reward) == bool(recipe):
        raise ConfigError("give exactly one of --reward (names of rewards) and --recipe (whose rewards are used)")
    if reward:
        try:
            return make_table({"default": [name.strip() for name in reward.split(",") if name.strip()]})
        except (ValueError, ImportError) as error:
            raise ConfigError(str(error).removeprefix("task 'default': ")) from error
    from posttrain.build import make_rewards
    from posttrain.recipe import find_recipe, load_recipe

    sections = load_recipe(find_recipe(recipe), ()).rewards
    if not sections:
        raise ConfigError(f"recipe '{recipe}' has no 'rewards' section; name the rewards with --reward")
    return make_rewards(sections)


def _warm_up(table: "RewardTable", given: "Sequence[CompletionRow]") -> None:
    """Scores a row for each worker, so that what is timed after it is verdicts, and not processes that start.

    Only what costs nothing and does nothing outside is asked twice: no judge, no program, no code of the user's.
    """
    from posttrain.rewards import (
        CodeReward,
        FunctionReward,
        JudgeReward,
        RuleThenJudge,
        TaskRewards,
        WeightedReward,
        shared_pool,
    )

    asked_once = (CodeReward, FunctionReward, JudgeReward, RuleThenJudge)
    rows: dict[str, list[CompletionRow]] = defaultdict(list)
    for row in given:
        if len(rows[row[0]]) < shared_pool().num_workers:
            rows[row[0]].append(row)
    for task, first in rows.items():
        rewards = [weighted.reward for weighted in table.rewards_for(task).rewards]
        own = [
            WeightedReward(reward, name=str(place))
            for place, reward in enumerate(rewards)
            if type(reward).__module__.startswith("posttrain.rewards.") and not isinstance(reward, asked_once)
        ]
        if own:
            TaskRewards(tuple(own)).score_batch([row[1] for row in first], [row[2] for row in first])


def _verdicts(given: "Sequence[CompletionRow]", scores: "Sequence[Score]", names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("row", justify="right")
    several_tasks = len({task for task, _, _ in given}) > 1
    if several_tasks:
        table.add_column("task")
    table.add_column("completion", max_width=32, no_wrap=True, overflow="ellipsis")
    table.add_column("score", justify="right", style="bold")
    for name in names:
        table.add_column(escape(name), justify="right")
    table.add_column("parts and reasons", overflow="fold")
    for number, ((task, completion, _), score) in enumerate(zip(given, scores, strict=False), start=1):
        inner = {part: value for part, value in score.parts.items() if part not in names}
        remarks = [f"{part} {value:.3g}" for part, value in inner.items()]
        remarks += [("error: " if score.error else "") + score.reason] if score.reason else []
        table.add_row(
            str(number),
            *([_shown(task)] if several_tasks else []),
            _shown(" ".join(completion.text[-200:].split())),  # answers stand at the end
            _number(score.value),
            *(_number(score.parts.get(name)) for name in names),
            _shown("; ".join(remarks)),
        )
    return table


def _summary(
    given: "Sequence[CompletionRow]",
    scores: "Sequence[Score]",
    names: Sequence[str],
    table: "RewardTable",
    seconds: Mapping[str, float],
) -> Table:
    shown = Table(box=None, pad_edge=False, title="")
    shown.add_column("")
    for column in ("mean", "lowest", "highest", "scored", "unscored", "errors", "ms each"):
        shown.add_column(column, justify="right")
    asked = Counter(w.name for task, _, _ in given for w in table.rewards_for(task).rewards)
    for name in names:
        values = [score.parts[name] for score in scores if name in score.parts]
        spent = f"{1000 * seconds[name] / asked[name]:.2f}"
        shown.add_row(escape(name), *_spread(values), str(len(values)), str(asked[name] - len(values)), "", spent)
    values = [score.value for score in scores if score.value is not None]
    errors = sum(score.error for score in scores)
    total = f"{1000 * sum(seconds.values()) / len(scores):.2f}"
    shown.add_row("score", *_spread(values), str(len(values)), str(len(scores) - len(values)), str(errors), total)
    return shown


def _shown(text: str) -> str:
    r"""The text as a cell; half of a surrogate pair, which no terminal can be sent, as `\ud800`."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    return (_number(fmean(values)), _number(min(values)), _number(max(values))) if values else ("-", "-", "-")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
