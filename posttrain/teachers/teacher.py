"""What a teacher is: token-exact sequences in, what it thinks of their trained tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from posttrain.model import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class TopScores:
    """A teacher's distribution at the N trained tokens of one sequence: its K likeliest tokens, and all the others."""

    token_ids_NK: np.ndarray
    """int32, the likeliest first."""
    logprobs_NK: np.ndarray
    """float32 nats, normalised over the teacher's whole vocabulary at temperature 1."""
    tail_N: np.ndarray
    """float32 nats: log of what all other tokens have together; -inf where K is the whole vocabulary."""


class Teacher(Protocol):
    """Scores sequences. Every failure is a TeacherError of one sentence; what is not finite never comes back."""

    @property
    def name(self) -> str:
        """As the recipe calls it; opens every error."""
        ...

    @property
    def identity(self) -> str:
        """Equal for equal weights: scores kept on disk belong to it."""
        ...

    @property
    def context(self) -> int:
        """The longest sequence that it reads, in tokens."""
        ...

    def top_scores(self, sequences: Sequence[TokenSequence], top_k: int) -> list[TopScores]:
        """For each sequence, the teacher's `top_k` likeliest tokens in place of each trained token, and the tail."""
        ...

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """For each sequence [N] float32: the teacher's log-probabilities of the trained tokens themselves, in nats."""
        ...

    def close(self) -> None: ...
