"""Divergences of a student's distribution from a teacher's, with their derivatives by the student's logits.

Closed forms, so that a fused head needs no graph over a vocabulary. Both arguments are normalised float32
log-probabilities, [N, K]: over a vocabulary, or over the buckets of a top-k with its tail. Each function returns
([N] nats, [N, K] derivatives); a row of derivatives sums to 0, as the softmax's does.

The student's log-probabilities are finite. The teacher's may be -inf, with 0 log 0 = 0: that counts as LOWEST_LOGPROB
where a student with mass there would make the divergence infinite. Values are clamped at 0, which rounding (1e-7)
may otherwise cross; derivatives are not.

`workspace_3NK`, float32, saves a caller with many slices the allocations, which on a CPU can cost more than the
arithmetic (freshly mapped pages); the derivatives are then a part of it, valid until the next call.
"""

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

LOWEST_LOGPROB = -1e4
"""What a teacher's -inf counts as, in nats. No softmax of a model's finite logits comes near it."""

_RATIO_LIMIT = 80.0
"""|log-ratio| beyond which a mixture is, to e^-80, made of the likelier side alone; exp stays finite in float32."""


class Divergence(Protocol):
    """Student and teacher log-probabilities in, values and derivatives out, as this file's first lines say."""

    def __call__(
        self, student_logprobs_NK: Tensor, teacher_logprobs_NK: Tensor, workspace_3NK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


def divergence(beta: float) -> Divergence:
    """The divergence for a beta in [0, 1]: 0 forward KL, 1 reverse KL, else the generalised Jensen-Shannon.

    GKD's and TRL's convention (arXiv 2306.13649). The end points are cases of their own: eq. 1 itself tends to 0 there,
    and to the two KLs only after division by beta or 1 - beta. Raises ValueError for a beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, outside [0, 1]: take 0 for forward KL, 1 for reverse KL, 0.5 for the JSD")
    if beta == 0:
        return forward_kl
    if beta == 1:
        return reverse_kl
    return partial(jensen_shannon, beta=beta)


def forward_kl(
    student_logprobs_NK: Tensor, teacher_logprobs_NK: Tensor, workspace_3NK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """KL(p_T || p_S) = sum p_T (t - s); its derivative is p_S - p_T. The student covers all that the teacher says."""
    teacher_NK, terms_NK, _ = _buffers(student_logprobs_NK, workspace_3NK)
    torch.exp(teacher_logprobs_NK, out=teacher_NK)
    torch.clamp(teacher_logprobs_NK, min=LOWEST_LOGPROB, out=terms_NK).sub_(student_logprobs_NK).mul_(teacher_NK)
    values_N = terms_NK.sum(-1).clamp_(min=0)
    return values_N, torch.exp(student_logprobs_NK, out=terms_NK).sub_(teacher_NK)


def reverse_kl(
    student_logprobs_NK: Tensor, teacher_logprobs_NK: Tensor, workspace_3NK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """D = KL(p_S || p_T) = sum p_S (s - t); its derivative is p_S (s - t - D). The student keeps to what is likely."""
    student_NK, ratio_NK, terms_NK = _buffers(student_logprobs_NK, workspace_3NK)
    torch.exp(student_logprobs_NK, out=student_NK)
    torch.clamp(teacher_logprobs_NK, min=LOWEST_LOGPROB, out=ratio_NK)
    torch.sub(student_logprobs_NK, ratio_NK, out=ratio_NK)
    values_N = torch.mul(ratio_NK, student_NK, out=terms_NK).sum(-1)
    gradients_NK = ratio_NK.sub_(values_N[:, None]).mul_(student_NK)  # subtracted first: the sure outcome cancels here
    return values_N.clamp_(min=0), gradients_NK


def jensen_shannon(
    student_logprobs_NK: Tensor,
    teacher_logprobs_NK: Tensor,
    workspace_3NK: Tensor | None = None,
    *,
    beta: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """beta KL(p_T || m) + (1 - beta) KL(p_S || m) with m = beta p_T + (1 - beta) p_S (arXiv 2306.13649 eq. 1).

    Its derivative is (1 - beta) p_S (log(p_S / m) - KL(p_S || m)). 0 < beta < 1. The mixture is taken as a ratio,
    log(m / p_S) = log(1 - beta + beta p_T / p_S): as stable as log-add-exp, finest where the two sides are close, and
    a fifth of its time on a CPU.
    """
    ratio_NK, mixed_NK, p_NK = _buffers(student_logprobs_NK, workspace_3NK)
    torch.sub(teacher_logprobs_NK, student_logprobs_NK, out=ratio_NK).clamp_(-_RATIO_LIMIT, _RATIO_LIMIT)
    torch.add(ratio_NK, math.log(beta), out=mixed_NK).exp_().add_(1 - beta).log_()  # log(m / p_S)
    torch.exp(teacher_logprobs_NK, out=p_NK)
    from_teacher_N = ratio_NK.sub_(mixed_NK).mul_(p_NK).sum(-1)
    torch.exp(student_logprobs_NK, out=p_NK)
    from_student_N = torch.mul(mixed_NK, p_NK, out=ratio_NK).sum(-1).neg_()
    values_N = (beta * from_teacher_N + (1 - beta) * from_student_N).clamp_(min=0)
    offset_N1 = (beta - 1) * from_student_N[:, None]
    return values_N, torch.add(offset_N1, mixed_NK, alpha=beta - 1, out=mixed_NK).mul_(p_NK)


def _buffers(like_NK: Tensor, workspace_3NK: Tensor | None) -> Tensor:
    return like_NK.new_empty((3, *like_NK.shape)) if workspace_3NK is None else workspace_3NK
