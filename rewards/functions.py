"""Plain functions as rewards, in the style that TRL's trainers take."""

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, SupportsFloat

from .batching import BatchReward
from .score import BadRewardError, Completion, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReward(BatchReward):
    """`f(prompts=..., completions=..., **columns) -> list[float | None]`, called once for a batch.

    Columns are the reference fields, each a list as long as the batch, with None where a row lacks the field.
    `completion_ids`, `log_metric` and `log_extra` are passed as TRL does (what is logged becomes parts of the scores,
    or remarks where it is no number), and `final_answers` as the task's extraction finds them. A function without
    `**kwargs` gets only what it names. It may be async: it is awaited in an event loop of its own, from any thread.
    None and NaN mean unscored; an infinite number is unscored as an error. Raises `BadRewardError` for an answer of
    another length or kind, and for a function that wants TRL's `environments`.
    """

    reads_whole_text: ClassVar[bool] = True
    function: Callable[..., Any]
    """The function."""
    conversational: bool = True
    """Gives prompts and completions as message lists, as TRL does for conversational data; False gives bare texts."""

    @property
    def name(self) -> str:
        return self.function.__name__ if inspect.isroutine(self.function) else type(self.function).__name__

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: nothing is known about what the function wants."""
        return None

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        logged = _Logged(len(completions))
        values = self.function(**self._arguments(completions, references, logged))
        if inspect.isawaitable(values):
            values = _awaited(values)
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise self._wrong(f"must return a list of numbers, got {values!r:.80}")
        try:
            values = list(values)
        except TypeError:  # an array without axes is an Iterable, and cannot be walked
            raise self._wrong(f"must return a list of numbers, got {values!r:.80}") from None
        if len(values) != len(completions):
            raise self._wrong(f"returned {len(values)} values for {len(completions)} completions")
        return [logged.added_to(self._score(value), place) for place, value in enumerate(values)]

    def _arguments(
        self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]], logged: "_Logged"
    ) -> dict[str, Any]:
        columns = sorted({key for reference in references for key in reference})
        offered: dict[str, Any] = {key: [reference.get(key) for reference in references] for key in columns}
        offered["completion_ids"] = [list(completion.token_ids) for completion in completions]
        offered["prompts"] = [self._as_given("user", completion.prompt) for completion in completions]
        offered["completions"] = [self._turns(completion) for completion in completions]
        offered.setdefault("final_answers", [completion.answer for completion in completions])
        offered |= {"log_metric": logged.metric, "log_extra": logged.extra}
        parameters = inspect.signature(self.function).parameters.values()
        for parameter in parameters:
            if parameter.name == "environments" and parameter.name not in offered:  # its default would hide the lack
                raise self._wrong(
                    "wants 'environments', the objects that TRL gives; here it sees what was said and shown: let the "
                    "object's get_reward return what it read there, which the reward 'environment_score' pays"
                )
            required = parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if required and parameter.name not in offered:
                held = ", ".join(columns) or "no fields"
                raise self._wrong(f"wants {parameter.name!r}, but the references hold: {held}")
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return offered
        return {parameter.name: offered[parameter.name] for parameter in parameters if parameter.name in offered}

    def _turns(self, completion: Completion) -> Any:
        """All turns of an episode, what the environment answered too, else the one that was said."""
        if self.conversational and completion.turns:
            return [{"role": turn.role, "content": turn.text} for turn in completion.turns]
        return self._as_given("assistant", completion.text)

    def _as_given(self, role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if self.conversational else text

    def _score(self, value: Any) -> Score:
        if isinstance(value, str | bytes):
            raise self._wrong(f"returned {value!r:.80} where a number was wanted")
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise self._wrong(f"returned {value!r:.80} where a number was wanted") from None
        if math.isnan(number):
            return Score.unscored("it gave no verdict")
        if math.isinf(number):
            return Score(value=None, reason=f"it returned {number}", error=True)
        return Score(value=number)

    def _wrong(self, problem: str) -> BadRewardError:
        return BadRewardError(f"reward function {self.name!r} {problem}")


class _Logged:
    """What a function logs beside its values, by TRL's `log_metric(name, value)` and `log_extra(column, values)`."""

    def __init__(self, num_completions: int) -> None:
        self._columns: dict[str, Sequence[Any]] = {}
        self._num_completions = num_completions

    def metric(self, name: str, value: float) -> None:
        """One number for the whole batch."""
        self._columns[name] = [value] * self._num_completions

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """One value for each completion."""
        if len(values) != self._num_completions:
            raise BadRewardError(
                f"log_extra({column!r}) got {len(values)} values for {self._num_completions} completions"
            )
        self._columns[column] = values

    def added_to(self, score: Score, place: int) -> Score:
        if not self._columns:
            return score
        held = {name: values[place] for name, values in self._columns.items()}
        numbers = {name: number for name, value in held.items() if (number := _finite(value)) is not None}
        remarks = [f"{name}: {value!s:.200}" for name, value in held.items() if name not in numbers]
        reason = "; ".join([score.reason, *remarks] if score.reason else remarks)
        return replace(score, parts={**score.parts, **numbers}, reason=reason)


def _finite(value: Any) -> float | None:
    """A number as such; None for what is none, for NaN and for infinity."""
    if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _awaited(values: Awaitable[Any]) -> Any:
    """What it comes to, in a thread of its own: this one may be running an event loop."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def wait() -> Any:
        return await values

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(wait())).result()
