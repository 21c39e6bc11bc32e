"""What a reward reads and what it returns."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool that the environment ran, or tried to run."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    """What the tool answered, as the policy read it."""
    error: str = ""
    """Why it could not be run; empty where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTurn:
    """One turn of an episode with an environment, as it was said and shown."""

    role: Literal["assistant", "tool", "user"]
    text: str
    num_images: int = 0
    """Images that it shows; they follow those of earlier turns in `Completion.images`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the policy said, and the facts about it that the environment counted."""

    text: str
    """The policy's text, without the end-of-turn token; thoughts included, and all its turns, one after the other."""
    prompt: str = ""
    """Text of the last user turn."""
    truncated: bool = False
    """True where the token limit ended it."""
    token_ids: tuple[int, ...] = ()
    """The policy's own tokens."""
    num_tool_calls: int = 0
    """Tool calls that the environment ran; never counted from the text."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls themselves, in order, those that failed too."""
    num_turns: int = 1
    """Turns of the policy, counted by the environment."""
    images: "tuple[Image.Image | str, ...]" = ()
    """What the policy was shown, as pictures or paths, for judges that can see: the prompt's, then those of `turns`."""
    turns: tuple[ConversationTurn, ...] = ()
    """All that followed the prompt, what the environment answered too; empty where there was no environment."""
    environment_score: float | None = None
    """The environment's own verdict; None where it gives none."""
    answer: str | None = None
    """The final answer, filled in by the table as the task's extraction finds it; None where there is none."""

    @property
    def response(self) -> str:
        """What the policy said last: its last turn, or all of the text where there was no environment."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "assistant"), self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One reward's verdict: a number with its parts, or unscored with a reason. Unscored is never 0.

    `Score(value=0.75, parts={"iou": 0.75})`; `Score.unscored("judge timed out after 30 s")`
    """

    value: float | None
    """The reward; None where there is no verdict."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, for metrics and the report."""
    reason: str = ""
    """Why it is unscored, or a remark for the report."""
    error: bool = False
    """True where the reward itself failed: it raised, gave no finite number, or ran past the task's deadline."""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(
                f"a reward must be a finite number, got {self.value}; return Score.unscored(reason) instead"
            )

    @classmethod
    def unscored(cls, reason: str, **parts: float) -> "Score":
        return cls(value=None, reason=reason, parts=parts)

    @property
    def is_scored(self) -> bool:
        return self.value is not None


@runtime_checkable
class Reward(Protocol):
    """A verifier: the completion and the example's reference fields in, a score out.

    Registered rewards are frozen dataclasses whose fields are their options. `perfect_answer` writes from the reference
    the answer that earns full marks, 1 unless `full_score` says otherwise, so that `posttrain check` can prove before
    training that every row's reference earns them. It raises `BadReferenceError` for a reference it cannot parse.
    """

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score: ...

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """The text that earns full marks; None where a reference does not determine one (format, length)."""
        ...


@runtime_checkable
class WholeTextReward(Protocol):
    """A reward that judges all that was said, such as a layout or a length, also where a task sets an extraction.

    Any other reward then reads the extracted answer alone. `reads_whole_text: ClassVar[bool] = True` says so.
    """

    reads_whole_text: ClassVar[bool]


@runtime_checkable
class StatesFullScore(Protocol):
    """A reward whose full marks are not 1, such as a penalty, which gives 0 at best.

    `full_score: ClassVar[float] = 0.0` says so.
    """

    @property
    def full_score(self) -> float:
        """The most that it gives."""
        ...


@runtime_checkable
class TimedReward(Protocol):
    """A reward that keeps a deadline itself, as those do that run in worker processes."""

    @property
    def deadline_s(self) -> float:
        """Wall-clock seconds of one verdict."""
        ...


@runtime_checkable
class OffersWrongAnswers(Protocol):
    """A reward that knows answers which only look right: `posttrain check` proves that none earns full marks.

    They take the place of the ones that `corruption.py` makes of any perfect answer, so a reward with many perfect
    answers for one reference must offer its own.
    """

    def wrong_answers(self, reference: Mapping[str, Any]) -> Iterable[str]:
        """Texts as a policy might write them. Leave out those that a tolerance makes right."""
        ...


class BadRewardError(ValueError):
    """A reward that breaks its contract, such as a wrong number of scores: a bug of the reward, of no completion."""


class BadReferenceError(ValueError):
    """A reference answer that cannot be parsed: an error of the data, never a reward of 0."""
