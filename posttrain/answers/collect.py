"""Response distillation: asks teachers, filters what they say, and writes a data set with its manifest."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.answers.asking import Asking
from posttrain.answers.disk import json_line, write_whole
from posttrain.answers.explaining import why_nothing_was_kept
from posttrain.answers.journal import Journal, check_same, delete_journals, plain_json
from posttrain.answers.provenance import describe_rewards
from posttrain.answers.rows import IMAGES
from posttrain.answers.settings import CollectSettings
from posttrain.answers.source import AnswerSource
from posttrain.answers.tally import Tallies, Tally, by_task, by_thinking, tally_table, total
from posttrain.data import Mixture, Pick
from posttrain.errors import CheckpointError, ConfigError, DataError, EngineError, Interrupted, TeacherError
from posttrain.progress import StepProgress
from posttrain.records import Example
from posttrain.rewards import RewardTable
from posttrain.runs import read_json, write_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A finished data set of answers."""

    path: Path
    """answers.jsonl: rows that `posttrain.data` reads with no options; its images lie beside it."""
    manifest: Path
    counts: Mapping[str, Any]
    """Counts and means of the whole data set, as in the manifest."""


def collect(
    folder: Path,
    *,
    teachers: Mapping[str, AnswerSource],
    mixture: Mixture,
    settings: CollectSettings,
    rewards: RewardTable | None = None,
    encode: Callable[[str], Sequence[int]] | None = None,
    title: str = "answers",
    console: Console | None = None,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Collected:
    """Makes the data set in `folder`, or goes on with it; one that is finished is not made again.

    teachers: task -> who answers it; "default" answers all others.
    encode: tokens of a text as the student reads it, for rewards that count tokens; without it they give no score.
    console: where progress and the table go; standard error unless told.
    rank, world, wait: each of `world` processes asks for a share of the batches, and they meet in `wait`. The answers
    do not depend on their number, nor on interruptions: seeds belong to batches.

    Raises ConfigError where the folder holds answers to other settings, or a reward returns what is no score;
    TeacherError or EngineError where a teacher fails; DataError where a row cannot be used, a reward fails for a whole
    batch, all episodes of the first one break down, or nothing was kept; CheckpointError where the disk is full;
    Interrupted after Ctrl-C. All of them keep the finished batches, and a reward that was put right under its name and
    options scores those that are left.
    """
    if settings.min_reward is not None and rewards is None:
        raise ConfigError(f"{title}: min_reward {settings.min_reward:g} needs rewards; add them, or leave it out")
    made_with = plain_json(_made_with(teachers, mixture, settings, rewards))
    dataset = _Dataset(folder=folder, made_with=made_with)
    if (finished := dataset.finished()) is not None:
        return finished
    console = console or Console(stderr=True, quiet=rank > 0)
    journal = Journal(folder, made_with, rank)
    asking = Asking(folder=folder, teachers=teachers, settings=settings, rewards=rewards, encode=encode)
    work = _Work(
        asking=asking,
        journal=journal,
        mixture=mixture,
        picks=_order(mixture, settings),
        batch_size=settings.batch_size,
        title=title,
        quiet=rank > 0 or console.quiet,
    )
    work.run(rank, world)
    wait()
    journal.reread()
    if missing := set(range(work.num_batches)) - journal.done:
        raise CheckpointError(
            f"{len(missing)} of {work.num_batches} batches of answers are not in {folder}, though every process is "
            "done: give all processes the same folder"
        )
    tallies = journal.tallies
    wait()  # every process has read the journals before they go
    if rank == 0:
        console.print(tally_table(tallies))
        dataset.finish(journal, tallies)
    wait()
    made = dataset.finished()
    if made is None:
        raise DataError(f"{title}: {why_nothing_was_kept(total(tallies.values()), settings)}")
    return made


def _made_with(
    teachers: Mapping[str, AnswerSource], mixture: Mixture, settings: CollectSettings, rewards: RewardTable | None
) -> dict[str, Any]:
    """All that the answers follow from: what a folder that is gone on with must agree in."""
    return {
        "teachers": {task: {"name": t.name, "identity": t.identity} for task, t in sorted(teachers.items())},
        "sources": {name: {"rows": len(source)} for name, source in mixture.sources.items()},
        "ratios": mixture.weights if settings.num_prompts is not None else None,
        "order_seed": mixture.seed if settings.num_prompts is not None else None,
        "settings": asdict(settings),
        "rewards": describe_rewards(rewards) if rewards is not None else None,
    }


def _order(mixture: Mixture, settings: CollectSettings) -> list[Pick]:
    """The prompts, source after source. A number of them is one batch of the mixture: its shares are exact."""
    if settings.num_prompts is not None:
        return mixture.batch(0, settings.num_prompts)
    return [Pick(name, row) for name, source in mixture.sources.items() for row in range(len(source))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is left to ask."""

    asking: Asking
    journal: Journal
    mixture: Mixture
    picks: Sequence[Pick]
    batch_size: int
    title: str
    quiet: bool

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.picks) / self.batch_size)

    def run(self, rank: int, world: int) -> None:
        """Asks this process's share of the batches that are not done yet."""
        mine = range(rank, self.num_batches, world)
        todo = [index for index in mine if index not in self.journal.done]
        so_far = total(self.journal.tallies.values())
        try:
            with StepProgress(self.title, len(mine), len(mine) - len(todo), self.quiet) as progress:
                for index in todo:
                    rows, tallies = self.asking.batch(index, self._examples(index))
                    so_far += total(tallies.values())
                    _look_for_broken(total(tallies.values()), so_far)
                    self.journal.append(index, rows, tallies)
                    progress.advance(_shown(so_far))
        except (TeacherError, EngineError, ConfigError, DataError) as error:
            raise type(error)(f"{error}; {self._kept()}") from error
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; {self._kept()}") from None

    def _examples(self, index: int) -> list[tuple[int, Example]]:
        first = index * self.batch_size
        picks = enumerate(self.picks[first : first + self.batch_size], first)
        return [(place, self.mixture.sources[pick.source][pick.row]) for place, pick in picks]

    def _kept(self) -> str:
        done = total(self.journal.tallies.values()).prompts
        kept = f"what {done} of {len(self.picks)} prompts gave is kept" if done else "no batch was finished yet"
        return f"{kept}: run the same command to go on"


def _look_for_broken(batch: Tally, so_far: Tally) -> None:
    """Raises DataError where no episode has run yet: the same would become of all the others."""
    if so_far.answers and so_far.broken == so_far.answers:
        raise DataError(f"all {so_far.broken} episodes of this batch broke down; the first: {so_far.first_break}")
    if batch.broken:
        _log.warning(
            "%d of %d episodes of a batch broke down; the first: %s", batch.broken, batch.answers, batch.first_break
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dataset:
    """The finished files; the manifest is the last to be written."""

    folder: Path
    made_with: Mapping[str, Any]

    def finished(self) -> Collected | None:
        """None where it is not finished. Raises ConfigError where it was made with other settings."""
        path, manifest = self.folder / "answers.jsonl", self.folder / "manifest.json"
        if not (path.is_file() and manifest.is_file()):
            return None
        content = read_json(manifest)
        check_same(self.made_with, {key: content.get(key) for key in self.made_with}, self.folder)
        return Collected(path=path, manifest=manifest, counts=content["counts"])

    def finish(self, journal: Journal, tallies: Tallies) -> None:
        """Writes the files and deletes the journals; without a row, deletes only."""
        counts = total(tallies.values())
        if counts.kept:
            digest = write_whole(self.folder / "answers.jsonl", map(json_line, journal.rows()))
            content = {
                **self.made_with,
                "counts": counts.summary(),
                "by_task": {task: tally.summary() for task, tally in by_task(tallies).items()},
                "by_thinking": {way: tally.summary() for way, tally in by_thinking(tallies).items()},
                "images": self._drop_unused_images(journal),
                "sha256": digest,
            }
            write_json(self.folder / "manifest.json", content)
        else:
            shutil.rmtree(self.folder / IMAGES, ignore_errors=True)
        delete_journals(self.folder)

    def _drop_unused_images(self, journal: Journal) -> int:
        """Deletes what a batch has stored that was killed before it was finished; the number of images left."""
        used = {name for row in journal.rows() for name in row.get("images", ())}
        for file in (self.folder / IMAGES).glob("*"):
            if f"{IMAGES}/{file.name}" not in used:
                file.unlink()
        return len(used)


def _shown(so_far: Tally) -> dict[str, float]:
    summary = so_far.summary()
    shown = {"kept_frac": so_far.kept / max(1, so_far.answers), "reward": summary["mean_reward"]}
    return {name: value for name, value in shown.items() if value is not None}
