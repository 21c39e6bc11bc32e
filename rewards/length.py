"""The `length` reward: the soft punishment of overlong responses of DAPO, counted in the policy's tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .registry import register
from .score import Completion, Score


@register("length")
@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPenalty:
    """0 up to `max_tokens - buffer_tokens` tokens, falling in a line to -1 at `max_tokens`, and -1 beyond.

    DAPO, arXiv 2503.14476, equation 13. Use it, or leave truncated answers out (`truncated: unscored`), but not both.
    Unscored for a completion that has a text but comes without tokens: its length is not known.
    """

    reads_whole_text: ClassVar[bool] = True
    full_score: ClassVar[float] = 0.0
    max_tokens: int = 20_480
    """From here on the penalty is whole; at most the stage's token limit. DAPO's figure."""
    buffer_tokens: int = 4096
    """Over how many tokens it grows."""

    def __post_init__(self) -> None:
        if not 1 <= self.buffer_tokens <= self.max_tokens:
            raise ValueError(
                f"buffer_tokens must be between 1 and max_tokens ({self.max_tokens}), got {self.buffer_tokens}"
            )

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        num_tokens = len(completion.token_ids)
        if completion.text and not num_tokens:
            return Score.unscored("the completion comes without tokens")
        beyond = num_tokens - (self.max_tokens - self.buffer_tokens)
        penalty = min(max(beyond, 0) / self.buffer_tokens, 1.0)
        return Score(value=-penalty if penalty else 0.0, parts={"num_tokens": float(num_tokens)})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a penalty has no perfect answer."""
        return None
