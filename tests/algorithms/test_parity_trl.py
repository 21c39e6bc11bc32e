"""The three RL losses against TRL's own `GRPOTrainer._compute_loss`, fed with the same log-probabilities.

TRL works on padded [B, T] batches, ours on packed tokens. The tolerance, 1e-6 relative, is float32's: a handful of
operations and one sum on each side.
"""

from types import SimpleNamespace

import pytest
import torch
from posttrain.algorithms import (
    Reduction,
    denominator_of,
    grpo_token_losses,
    gspo_token_losses,
    sapo_token_losses,
    token_weights,
)

TRL = pytest.importorskip("trl.trainer.grpo_trainer")

LENGTHS_S = torch.tensor([5, 1, 7, 3])
MASK_BT = torch.arange(7) < LENGTHS_S[:, None]
ADVANTAGES_S = torch.tensor([1.3, -0.7, 0.0, -1.1])


@pytest.fixture
def batch():
    """Padded log-probabilities of a policy and of a stale one, with ratios of about 0.5-2."""
    generator = torch.Generator().manual_seed(0)
    old_BT = -3 * torch.rand(4, 7, generator=generator)
    return old_BT + 0.3 * torch.randn(4, 7, generator=generator), old_BT


def trl_loss(logprobs_BT, old_BT, *, loss_type, level="token", low=0.2, high=0.2):
    """TRL's loss of given log-probabilities: all of its own code but for the model behind them."""

    def logprobs_and_entropies(*args, **kwargs):
        return logprobs_BT, torch.zeros_like(logprobs_BT), None

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=logprobs_and_entropies,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        args=SimpleNamespace(sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, delta=None),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_high=high,
        epsilon_low=low,
        importance_sampling_level=level,
        loss_type=loss_type,
        model=torch.nn.Linear(1, 1),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": TRL.defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 2, dtype=torch.long),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.zeros(4, 7, dtype=torch.long),
        "completion_mask": MASK_BT.long(),
        "advantages": ADVANTAGES_S,
        "old_per_token_logps": old_BT,
    }
    return TRL.GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def ours(token_losses, logprobs_BT, old_BT, **options):
    index_T = torch.repeat_interleave(torch.arange(4), LENGTHS_S)
    losses_T = token_losses(
        logprobs_T=logprobs_BT[MASK_BT], old_logprobs_T=old_BT[MASK_BT], advantages_T=ADVANTAGES_S[index_T], **options
    )
    denominator = denominator_of(LENGTHS_S, Reduction.SEQUENCE_MEAN)
    return (token_weights(LENGTHS_S, index_T, Reduction.SEQUENCE_MEAN, denominator=denominator) * losses_T).sum()


SEQUENCES = {"sequence_index_T": torch.repeat_interleave(torch.arange(4), LENGTHS_S), "num_sequences": 4}


@pytest.mark.parametrize(
    ("token_losses", "options", "trl_options"),
    [
        (sapo_token_losses, {}, {"loss_type": "sapo"}),
        (grpo_token_losses, {}, {"loss_type": "grpo"}),
        (grpo_token_losses, {"clip_high": 0.28}, {"loss_type": "grpo", "high": 0.28}),
        (gspo_token_losses, SEQUENCES, {"loss_type": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4}),
        (
            gspo_token_losses,
            SEQUENCES | {"clip_low": 0.2, "clip_high": 0.2},
            {"loss_type": "grpo", "level": "sequence"},
        ),
    ],
    ids=["sapo", "grpo", "grpo with a higher upper clip", "gspo", "gspo with a wide clip"],
)
def test_loss_and_gradient_equal_trls(token_losses, options, trl_options, batch):
    logprobs_BT, old_BT = batch
    sides = []
    for loss_of in (lambda x: ours(token_losses, x, old_BT, **options), lambda x: trl_loss(x, old_BT, **trl_options)):
        leaf_BT = logprobs_BT.clone().requires_grad_()
        loss = loss_of(leaf_BT)
        loss.backward()
        sides.append((float(loss.detach()), leaf_BT.grad))
    (our_loss, our_grad_BT), (their_loss, their_grad_BT) = sides
    assert our_loss == pytest.approx(their_loss, rel=1e-6)
    assert torch.allclose(our_grad_BT, their_grad_BT, rtol=0, atol=1e-6 * float(their_grad_BT.abs().max()))
    assert their_grad_BT.abs().max() > 0.01
