"""Distillation from the sampled tokens alone: a reward per token, for teachers that give one log-probability each."""

from collections.abc import Mapping

from torch import Tensor

from .diagnostics import Average, average
from .ratios import k3_divergence


def distillation_advantages(
    *, teacher_logprobs_T: Tensor, student_logprobs_T: Tensor, coefficient: float = 1.0
) -> Tensor:
    """[T] float32 `coefficient * (log p_T(y) - log p_S(y))`, detached: an advantage, added to a task's own.

    On tokens y that the student sampled, the policy gradient with it is an unbiased estimate of minus the gradient of
    `coefficient * KL(p_S || p_T)` at each position, with discount 0: exact in expectation, of high variance beside the
    whole distribution. As Thinking Machines' on-policy distillation codes it.
    student_logprobs_T: at the weights that sampled. Not clamped: what the teacher all but rules out weighs that much.
    """
    return coefficient * (teacher_logprobs_T.float() - student_logprobs_T.float()).detach()


def distillation_metrics(*, teacher_logprobs_T: Tensor, student_logprobs_T: Tensor) -> Mapping[str, Average]:
    """KL(p_S || p_T) estimated from tokens that the student sampled: k1, and k3, never negative and less noisy."""
    return {
        "teacher/reverse_kl_k1": average(student_logprobs_T.float() - teacher_logprobs_T.float()),
        "teacher/reverse_kl_k3": average(k3_divergence(student_logprobs_T, teacher_logprobs_T)),
    }
