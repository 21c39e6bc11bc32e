"""Distillation as an objective: a divergence from the teacher's distribution, beside another loss or alone.

Off- and on-policy differ only in who said the tokens, which is the batch source's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from posttrain.algorithms import Average, Reduction, average
from posttrain.model import DenseReference, Divergence, HeadOutput, Matching, PackedRow, TopReference
from posttrain.objectives import Objective, Tokens

ReferenceOf = Callable[[PackedRow], DenseReference | TopReference]
"""What the row's teacher says of its trained tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """loss_t = coefficient * D(teacher_t, student_t) + beside_coefficient * beside_t."""

    divergence: Divergence
    reference: ReferenceOf
    coefficient: float = 1.0
    top_k: int | None = None
    support: Literal["teacher", "student"] = "teacher"
    beside: Objective
    """`Supervised`, a policy gradient, or with the coefficient 0 only its metrics."""
    beside_coefficient: float = 1.0

    @property
    def separable(self) -> bool:
        return self.beside.separable or not self.beside_coefficient

    @property
    def reduction(self) -> Reduction:
        return self.beside.reduction

    @property
    def constant_length(self) -> int:
        return self.beside.constant_length

    @property
    def temperature(self) -> float:
        return self.beside.temperature

    def token_losses(self, logprobs_T: Tensor, tokens: Tokens) -> Tensor:
        if not self.beside_coefficient:
            return logprobs_T * 0.0
        return self.beside_coefficient * self.beside.token_losses(logprobs_T, tokens)

    def matching(self, row: PackedRow, weights_T: Tensor) -> Matching:
        reference = self.reference(row)
        return Matching(
            divergence=self.divergence,
            reference=reference,
            weights_T=self.coefficient * weights_T,
            top_k=self.top_k if isinstance(reference, DenseReference) else None,
            support=self.support,
        )

    def metrics(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Average]:
        assert output.divergences_T is not None
        return {**self.beside.metrics(output, tokens), "divergence": average(output.divergences_T)}

    def histograms(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        return self.beside.histograms(output, tokens)

    def shades(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        assert output.divergences_T is not None
        return {**self.beside.shades(output, tokens), "divergences_T": output.divergences_T}
