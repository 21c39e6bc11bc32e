"""Loss and gradients of whole training steps against TRL's own: GRPOTrainer (loss_type sapo) and SFTTrainer.

The bars: loss 1e-5 relative, each parameter's gradient 2e-5 of its largest entry (global error 5e-6). Both sides are
float32 and sum the same terms in other orders: TRL over padded batches, in which a prompt and its images are repeated
for every completion, ours over rows in which they stand once. Rounding errors grow with the number of summed terms;
biases of the vision tower sum most, over all patches. At these sizes the worst that is found is 1e-6, 7e-6 and 1.3e-6;
a wrong mask, position or weight shows as 1e-2 and more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from posttrain.algorithms import Reduction, denominator_of, sapo_token_losses, token_weights
from posttrain.model import Budget, ModelFacts, PackedPolicy, PackedRow, TokenSequence, pack
from posttrain.model.families import Family
from torch import Tensor, nn
from transformers import AutoProcessor, AutoTokenizer

from tests.model.draws import gradients_of, groups, load, worst_gradient_error

pytest.importorskip("trl")

from benchmarks import _trl

FAMILIES = [Family.QWEN3_VL, Family.QWEN2_5_VL, Family.QWEN3]
WAYS = ["plain", "LoRA", "checkpointing", "LoRA and checkpointing"]
LOSS, GRADIENT, GLOBAL = 1e-5, 2e-5, 5e-6
BUDGETS = [Budget(tokens=1 << 40), Budget(tokens=80)]


def processing_of(family: Family, folder: Path):
    return (AutoTokenizer if family is Family.QWEN3 else AutoProcessor).from_pretrained(folder)


def options_of(way: str) -> dict:
    options: dict = {"gradient_checkpointing": "checkpointing" in way}
    if "LoRA" in way:
        options["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj", "qkv"])
    return options


def set_adapters(model: nn.Module) -> None:
    """As after some training: adapters start at zero, which would leave half of them without a gradient."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def global_error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    squares = sum(float((found[name] - g).double().pow(2).sum()) for name, g in reference.items())
    return (squares / sum(float(g.double().pow(2).sum()) for g in reference.values())) ** 0.5


def sapo_of(row: PackedRow, denominator: float) -> Callable[[Tensor, slice], Tensor]:
    weights_T = token_weights(row.lengths_S, row.sequence_index_T, Reduction.SEQUENCE_MEAN, denominator=denominator)

    def token_loss(logprobs_T: Tensor, span: slice) -> Tensor:
        return weights_T[span] * sapo_token_losses(
            logprobs_T=logprobs_T,
            old_logprobs_T=row.streams["behaviour_logprobs"][span],
            advantages_T=row.streams["advantages"][span],
        )

    return token_loss


def sft_of(row: PackedRow, denominator: float) -> Callable[[Tensor, slice], Tensor]:
    return lambda logprobs_T, span: -logprobs_T / denominator


def packed(
    model: nn.Module,
    facts: ModelFacts,
    sequences: Sequence[TokenSequence],
    budget: Budget,
    reduction: Reduction,
    loss_of: Callable[[PackedRow, float], Callable[[Tensor, slice], Tensor]],
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimiser step over as many rows as the budget asks for."""
    policy = PackedPolicy(model, facts)
    lengths_S = torch.tensor([s.num_trained for s in sequences])
    denominator, total = denominator_of(lengths_S, reduction), 0.0
    for row in pack(sequences, facts, budget):
        loss = policy(row, loss_of(row, denominator)).loss
        loss.backward()
        total += float(loss.detach())
    return total, gradients_of(model)


def compare(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=LOSS)
    assert worst_gradient_error(ours[1], theirs[1]) < GRADIENT
    assert global_error(ours[1], theirs[1]) < GLOBAL


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_a_sapo_step_equals_trls(family, way, tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(family)
    model, facts = load(folder)
    sequences = groups(facts)
    trainer = _trl.grpo_trainer(model, processing_of(family, folder), tmp_path, batch=len(sequences), **options_of(way))
    model = trainer.model.train()
    set_adapters(model)
    loss = _trl.grpo_loss(trainer, _trl.grpo_inputs(sequences, facts))
    loss.backward()
    theirs = (float(loss.detach()), gradients_of(model))
    for budget in BUDGETS:
        compare(packed(model, facts, sequences, budget, Reduction.SEQUENCE_MEAN, sapo_of), theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_an_sft_step_equals_trls(family, way, tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(family)
    model, facts = load(folder)
    sequences = groups(facts)[::2]
    trainer = _trl.sft_trainer(model, processing_of(family, folder), tmp_path, batch=len(sequences), **options_of(way))
    model = trainer.model.train()
    set_adapters(model)
    num_trained = sum(s.num_trained for s in sequences)
    loss = trainer.compute_loss(model, _trl.sft_inputs(sequences, facts), num_items_in_batch=num_trained)
    loss.backward()
    theirs = (float(loss.detach()), gradients_of(model))
    for budget in BUDGETS:
        compare(packed(model, facts, sequences, budget, Reduction.TOKEN_MEAN, sft_of), theirs)


def test_the_row_compaction_that_benchmarks_switch_on_changes_nothing_of_trls_result(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    model, facts = load(folder)
    sequences = groups(facts, prompts=1)
    trainer = _trl.grpo_trainer(model, processing_of(Family.QWEN3_VL, folder), tmp_path, batch=len(sequences))
    sides = []
    for active in (False, True):
        with _trl.row_compaction(active):
            loss = _trl.grpo_loss(trainer, _trl.grpo_inputs(sequences, facts))
            loss.backward()
        sides.append((float(loss.detach()), gradients_of(trainer.model)))
    compare(sides[1], sides[0])
