"""What a head compares each token's distribution with, beside the token's own loss: another model, or its top k."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


class Divergence(Protocol):
    """How far a student's distribution lies from a teacher's, over any set of outcomes that sums to one."""

    def __call__(
        self, student_logprobs_NK: Tensor, teacher_logprobs_NK: Tensor, workspace_3NK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """([N] values in nats, [N, K] their derivatives by the student's logits).

        Both arguments are normalised float32 log-probabilities: over a vocabulary, or over top-k buckets and a tail.
        The derivatives are those through the softmax: each row sums to 0. The workspace is memory to work in, and to
        return the derivatives in: a head asks for thousands of small slices, and owns them until it asks again.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseReference:
    """Another model's whole distribution, as the hidden states and the head that make it chunk by chunk."""

    hidden_TH: Tensor
    """Its last hidden states at the positions that predict the T trained tokens; H is its own. No gradient."""
    weight_VH: Tensor
    """Its head. V may differ from the student's by padded rows: both are then compared, normalised, on the fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopReference:
    """Another model's K likeliest tokens and the mass of all others."""

    token_ids_TK: Tensor
    """integer, no token twice in a row."""
    logprobs_TK: Tensor
    """float32 nats."""
    tail_T: Tensor
    """float32 nats: log of the others' mass; -inf where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Adds `sum_t weights_t * divergence_t` to a head's loss."""

    divergence: Divergence
    reference: DenseReference | TopReference
    weights_T: Tensor
    """float32: what each token's divergence counts in the loss; 0 leaves a token out."""
    top_k: int | None = None
    """Of a DenseReference: compare k tokens and one bucket for all others instead of the whole vocabulary."""
    support: Literal["teacher", "student"] = "teacher"
    """Whose k likeliest tokens, with `top_k`."""
