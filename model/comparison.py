"""A matching at work inside a head: the reference's logits chunk by chunk, divergences and gradients slice by slice."""

import torch
from torch import Tensor

from .buckets import bucket, normalise, spread
from .matching import DenseReference, Matching, TopReference
from .products import project

_LOST_TAIL = -16.64
"""log 2^-24: what a tail of -inf beside fewer tokens than the vocabulary counts as. No softmax leaves the others
nothing; a sum in float32 lost it."""
_MASS_ERROR = 0.02
"""How far the probabilities of top tokens and tail may sum from 1: half precision's rounding, not another tail."""


class Comparison:
    """Compares all T tokens of one call. `load` a chunk, then `compare` each of its slices.

    One buffer of a chunk's size holds a dense reference's logits and then, in their place, the gradient of
    `sum weights * divergence` by the student's logits before the temperature.
    """

    def __init__(
        self, matching: Matching, *, num_tokens: int, vocabulary: int, chunk: int, slice_rows: int, temperature: float
    ) -> None:
        """vocabulary, chunk, slice_rows: the student's rows, and the most tokens that are loaded and compared at once.

        Raises ValueError for a reference of another number of tokens, and for top tokens that are no distribution.
        """
        self._matching, self._temperature, self._first = matching, temperature, 0
        reference = matching.reference
        device = matching.weights_T.device
        given = len(reference.hidden_TH if isinstance(reference, DenseReference) else reference.token_ids_TK)
        if not given == len(matching.weights_T) == num_tokens:
            raise ValueError(
                f"a matching of {given} reference tokens and {len(matching.weights_T)} weights cannot be compared with "
                f"{num_tokens} trained tokens; give one of each for every token"
            )
        self._shared = vocabulary
        self._top_k: int | None = None
        if isinstance(reference, DenseReference):
            self._shared = min(vocabulary, len(reference.weight_VH))
            self._weight_VH = reference.weight_VH[: self._shared].to(reference.hidden_TH.dtype)
            if matching.top_k is not None and matching.top_k < self._shared:
                self._top_k = matching.top_k
        else:
            if temperature != 1:
                raise ValueError(
                    f"top log-probabilities were taken at temperature 1 and cannot be compared at {temperature}; "
                    "set the temperature to 1 or compare with a model"
                )
            self._buckets_TB = _checked_buckets(reference, vocabulary)
        self.divergences_T = torch.empty(num_tokens, device=device)
        """float32 nats, filled slice by slice."""
        self.gradient_NV = torch.empty(chunk, vocabulary, device=device)
        """float32, filled slice by slice; 0 for padded rows that the reference does not have."""
        self._workspace_3RV = torch.empty(3, slice_rows, self._shared, device=device)

    def load(self, span: slice) -> None:
        """Turns to another chunk of tokens."""
        self._first = span.start
        self.gradient_NV[:, self._shared :] = 0
        reference = self._matching.reference
        if isinstance(reference, DenseReference):
            logits_NV = self.gradient_NV[: span.stop - span.start, : self._shared]
            project(reference.hidden_TH[span], self._weight_VH, out_NV=logits_NV)
            if self._temperature != 1:
                logits_NV.div_(self._temperature)

    def compare(self, student_RV: Tensor, part: slice) -> None:
        """Compares the loaded chunk's tokens `part`. student_RV: their log-probabilities, which may be overwritten."""
        span = slice(self._first + part.start, self._first + part.stop)
        gradient_RV = self.gradient_NV[part, : self._shared]
        workspace_3RV = self._workspace_3RV[:, : len(gradient_RV)]
        scale_R1 = self._matching.weights_T[span, None] / self._temperature
        if self._shared < student_RV.shape[1]:
            student_RV = normalise(student_RV[:, : self._shared], workspace_3RV[0])
        reference = self._matching.reference
        if isinstance(reference, TopReference):
            ids_RK, teacher_RB = reference.token_ids_TK[span].long(), self._buckets_TB[span]
        else:
            teacher_RV = normalise(gradient_RV, workspace_3RV[0])
            if self._top_k is None:
                values_R, slopes_RV = self._matching.divergence(student_RV, teacher_RV, workspace_3RV)
                self.divergences_T[span] = values_R
                torch.mul(slopes_RV, scale_R1, out=gradient_RV)
                return
            chosen_RV = teacher_RV if self._matching.support == "teacher" else student_RV
            ids_RK = chosen_RV.topk(self._top_k).indices
            teacher_RB, _ = bucket(teacher_RV, ids_RK, others_RV=workspace_3RV[0])
        student_RB, mass_R1 = bucket(student_RV, ids_RK, others_RV=gradient_RV)
        self.divergences_T[span], slopes_RB = self._matching.divergence(student_RB, teacher_RB)
        spread(slopes_RB * scale_R1, ids_RK, others_RV=gradient_RV, mass_R1=mass_R1)

    def loss(self) -> Tensor:
        """0-d float32: the weighted sum of all divergences."""
        return torch.dot(self._matching.weights_T, self.divergences_T)

    def check(self, logprobs_T: Tensor) -> None:
        """Raises ValueError where the student's log-probabilities are finite and a divergence is not.

        One look at the result covers the reference's hidden states and its head.
        """
        num_bad = int((logprobs_T.isfinite() & ~self.divergences_T.isfinite()).sum())
        if num_bad:
            raise ValueError(
                f"the teacher's distribution is not finite at {num_bad} of {len(logprobs_T)} tokens; nothing was "
                "trained on them: check the teacher's weights and precision"
            )


def _checked_buckets(reference: TopReference, vocabulary: int) -> Tensor:
    """[T, K (+ 1)] log-probabilities that sum to one exactly. Raises ValueError where they are not a distribution."""
    ids_TK, logprobs_TK, tail_T = reference.token_ids_TK, reference.logprobs_TK.float(), reference.tail_T.float()
    if logprobs_TK.shape != ids_TK.shape or tail_T.shape != ids_TK.shape[:1]:
        raise ValueError(
            f"top tokens of shape {tuple(ids_TK.shape)} came with log-probabilities of shape "
            f"{tuple(logprobs_TK.shape)} and tails of shape {tuple(tail_T.shape)}; give [T, K], [T, K] and [T]"
        )
    if ids_TK.numel() == 0:
        return logprobs_TK
    least, most = ids_TK.aminmax()
    if least < 0 or most >= vocabulary:
        raise ValueError(
            f"the teacher's top tokens have ids from {int(least)} to {int(most)}, and the student's head has "
            f"{vocabulary} rows; teacher and student must share a tokenizer"
        )
    num_ids = ids_TK.shape[1]
    buckets_TB = (
        logprobs_TK
        if num_ids == vocabulary
        else torch.cat([logprobs_TK, tail_T.where(tail_T != -torch.inf, _LOST_TAIL)[:, None]], dim=1)
    )
    sums_T1 = buckets_TB.logsumexp(-1, keepdim=True)
    right_T1 = ((sums_T1.exp() - 1).abs() <= _MASS_ERROR) & logprobs_TK.isfinite().all(-1, keepdim=True)
    if not right_T1.all():
        place = int(right_T1.int().argmin())
        raise ValueError(
            f"the teacher's top log-probabilities and tail are not a distribution (token {place} sums to "
            f"{float(sums_T1[place].exp()):.3g}); they must be finite, with the tail of all other tokens, and sum to 1"
        )
    return buckets_TB - sums_T1
