"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from torch import Tensor


def sft_token_losses(*, logprobs_T: Tensor) -> Tensor:
    """[T] losses, `-log p(token)`, in nats."""
    return -logprobs_T
