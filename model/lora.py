"""LoRA adapters by part (Hu et al., 2021, arXiv 2106.09685), through peft: adding, switching off, merging."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from .families import ModelFacts
from .parts import Part, check_parts, part_of, plain_name

LoraInit = Literal["zero_B", "gaussian", "orthogonal", "pissa", "olora"]


def add_lora(
    model: PreTrainedModel,
    facts: ModelFacts,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    parts: Iterable[str] = ("language",),
    rslora: bool = False,
    init: LoraInit = "zero_B",
    float32: bool = True,
) -> PeftModel:
    """Wraps `model` with trainable adapters on every linear layer of `parts`; all other parameters are frozen.

    `alpha` scales the update by alpha / rank (alpha / sqrt(rank) with `rslora`, Kalajdzievski, 2023, arXiv 2312.03732)
    and is 2 * rank if left out. "zero_B" and "gaussian" start as the very model they adapt; the other starts change its
    weights. `float32` keeps the adapters of a half-precision model in float32, as their small updates need; sharding
    wrappers that want one dtype need False. The experts and the router of a mixture are not linear layers and stay as
    they are, and so do the embeddings and the head.

    Raises ValueError for a part that the model lacks or that has no linear layer to adapt, for a rank below 1, and for
    a model that has adapters already.
    """
    if isinstance(model, PeftModel):
        raise ValueError("the model has adapters already: merge them first, or train those")
    if rank < 1:
        raise ValueError(f"a LoRA rank is at least 1, got {rank}")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]  # peft only divides it
        lora_dropout=dropout,
        target_modules=linear_layers(model, facts, parts),
        use_rslora=rslora,
        init_lora_weights=True if init == "zero_B" else init,
    )
    return get_peft_model(model, config, autocast_adapter_dtype=float32)


def linear_layers(model: nn.Module, facts: ModelFacts, parts: Iterable[str]) -> list[str]:
    """Full names of the linear layers of `parts`. Raises ValueError for a part that has none to adapt."""
    wanted = check_parts(tuple(parts), facts, purpose="LoRA")
    if Part.EMBEDDINGS in wanted:
        raise ValueError("LoRA part 'embeddings' has no linear layer besides the head, which is not adapted")
    by_part: dict[Part, list[str]] = {part: [] for part in wanted}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (part := part_of(name, facts)) in by_part:
            by_part[part].append(name)
    for part, names in by_part.items():
        if not names:
            raise ValueError(f"LoRA part '{part}' of this {facts.anatomy.title} has no linear layer to adapt")
    if not by_part:
        raise ValueError("LoRA needs at least one part to adapt, got none")
    return [name for names in by_part.values() for name in names]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is the one that its adapters adapt: the reference policy, at no memory.

    Adapters come back on leaving, also after an error, with the `requires_grad` they had. Raises ValueError for a model
    without adapters, whose reference must be a second model.
    """
    if not isinstance(model, PeftModel):
        raise ValueError("the model has no adapters to switch off: its reference policy must be a model of its own")
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        # peft turns every adapter's gradient on again, frozen ones too.
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of the transformers model inside `model` by its own name, with the active adapters added to it.

    A merged weight is W + scale * B A, summed in float32 and rounded once to W's dtype; `model` is not touched, and one
    merged weight is alive at a time. A tied tensor comes once. Weights of a sharded model are gathered as they are
    reached, so that every rank must read the whole stream.
    Raises ValueError for adapters whose update is not such a sum (DoRA, LoRA biases).
    """
    adapters: dict[str, list[LoraLayer]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            adapters.setdefault(f"{plain_name(name)}.{weight}", []).append(_plain_lora(module, name))
    unused = _unused_copies(model)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and not name.startswith(unused):
            yield plain_name(name), _merged(parameter, adapters.get(plain_name(name), ()))


@torch.no_grad()
def _merged(parameter: torch.Tensor, adapters: Sequence[LoraLayer]) -> torch.Tensor:
    weight = parameter.detach()
    for layer in adapters:
        if not layer.disable_adapters and not layer.merged:
            for adapter in layer.active_adapters:
                if adapter in layer.scaling:
                    weight = weight.float() + layer.get_delta_weight(adapter).float()  # type: ignore[operator]
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    return weight.to(parameter.dtype)


def _plain_lora(layer: LoraLayer, name: str) -> LoraLayer:
    if layer.lora_variant or any(layer.lora_bias.values()):
        raise ValueError(f"the adapter of {name} is not a plain LoRA: merge it into a checkpoint and load that")
    return layer


def _unused_copies(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the copies that are not in use, where peft keeps a whole module beside the one that it trains."""
    return tuple(
        f"{name}.modules_to_save." if module.disable_adapters else f"{name}.original_module."
        for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    )
