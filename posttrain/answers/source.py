"""Who answers: the protocol, and a local teacher behind a rollout engine."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from posttrain.data import Renderer, TooLong
from posttrain.errors import ConfigError
from posttrain.records import Example, Status, Trajectory
from posttrain.rollout.engine import Engine, Sampling
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.teachers.answer import Answer

_log = logging.getLogger(__name__)

_OPENED = re.compile(r"<think>\s*\Z")
_TAIL = 16
"""Tokens of a prompt's end in which a template may open the thoughts."""


class AnswerSource(Protocol):
    """A teacher that answers prompts. A failure is a TeacherError or an EngineError in one sentence."""

    @property
    def name(self) -> str:
        """As the recipe calls it; written beside every answer."""
        ...

    @property
    def identity(self) -> str:
        """Equal for equal weights; written beside every answer."""
        ...

    def answer(
        self, examples: Sequence[Example], *, n: int, sampling: Sampling, thinking: bool | None
    ) -> list[list[Answer]]:
        """`n` answers to each example, in their order; none to one that is too long for the teacher to read.

        An answer that the example ends with is not shown to the teacher. `thinking` is the template's enable_thinking;
        None leaves it out. Equal calls give equal answers as far as the teacher can promise it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswers:
    """A local teacher: any rollout engine that holds its weights, asked in the teacher's own chat template."""

    name: str
    identity: str
    engine: Engine
    renderers: Mapping[bool | None, Renderer]
    """The teacher's renderers with enable_thinking True, False and None. Longer prompts than theirs are not asked."""
    decode: Callable[[Sequence[int]], str]
    """Text of tokens with the markup left in."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    environments: Mapping[str, TaskEnvironment] = field(default_factory=dict)
    """Task -> what it is played in; others are one turn each."""
    repeatable: bool = False
    """See `Rollouts`."""

    def __post_init__(self) -> None:
        if missing := [mode for mode in (True, False, None) if mode not in self.renderers]:
            raise ConfigError(f"teacher '{self.name}' needs a renderer with enable_thinking={missing[0]}")

    def answer(
        self, examples: Sequence[Example], *, n: int, sampling: Sampling, thinking: bool | None
    ) -> list[list[Answer]]:
        """As the protocol says. Raises ConfigError where the template writes the same prompt, thinking or not."""
        renderer = self.renderers[thinking]
        if examples and thinking is not None:
            self._check_modes(examples[0], thinking)
        rollouts = Rollouts(
            engine=self.engine,
            renderer=renderer,
            decode=self.decode,
            environments=self.environments,
            autocast=self.autocast,
            repeatable=self.repeatable,
        )
        try:
            rolled = rollouts.roll(examples, group_size=n, sampling=sampling)
        finally:
            rollouts.close()
        for error in rolled.too_long:
            _log.warning("not asked: %s", error)
        return [[self._answer(trajectory) for trajectory in group] for group in rolled.groups]

    def _answer(self, trajectory: Trajectory) -> Answer:
        """Thoughts that the generation prompt has opened are a part of the turn: a chat template renders them again."""
        finished = trajectory.status is Status.FINISHED
        if not trajectory.turns and trajectory.status is not Status.ERROR:
            return Answer(text=self._opened(trajectory, trajectory.prompt_length) + trajectory.text, finished=finished)
        turns = [replace(turn, text=self._opened(trajectory, turn.start) + turn.text) for turn in trajectory.turns]
        text = "".join(turn.text for turn in turns)
        episode = replace(trajectory, turns=tuple(turns), text=text)
        return Answer(text=text, finished=finished, episode=episode)

    def _opened(self, trajectory: Trajectory, start: int) -> str:
        opened = _OPENED.search(self.decode(trajectory.token_ids[max(0, start - _TAIL) : start].tolist()))
        return opened[0] if opened else ""

    def _check_modes(self, example: Example, thinking: bool) -> None:
        try:
            prompt = self.renderers[thinking].render_prompt(example)
            other = self.renderers[not thinking].render_prompt(example)
        except TooLong:  # then it is another prompt
            return
        if other.token_ids.tolist() == prompt.token_ids.tolist():
            raise ConfigError(same_prompt(self.name))


def same_prompt(teacher: str) -> str:
    """What is wrong with a teacher that is to think, or not to, and cannot be told so."""
    return (
        f"teacher '{teacher}' is asked the same with thinking on and off: its chat template does not read "
        "enable_thinking; set thinking to 'template'"
    )
