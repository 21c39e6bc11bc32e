"""Optimisers and the learning rate as a pure function of progress: nothing of a schedule has to be saved."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from posttrain.model.families import ModelFacts
from posttrain.model.parts import parameter_groups

Schedule = Literal["constant", "linear", "cosine"]


def make_optimizers(
    model: nn.Module,
    facts: ModelFacts,
    *,
    kind: Literal["adamw", "muon"],
    learning_rate: float,
    learning_rates: Mapping[str, float],
    weight_decay: float,
    betas: tuple[float, float],
) -> list[Optimizer]:
    """AdamW over all groups; or Muon for matrices (not embeddings) and AdamW for the rest, at the same rates.

    Every group keeps its peak in `peak_lr`; `set_learning_rate` scales it.
    """
    groups: list[dict[str, Any]] = parameter_groups(
        model, facts, learning_rate=learning_rate, learning_rates=learning_rates, weight_decay=weight_decay
    )
    matrices: list[dict[str, Any]] = []
    if kind == "muon":
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        rest: list[dict[str, Any]] = []
        for group in groups:
            chosen = [p for p in group["params"] if p.ndim == 2 and id(p) not in embeddings]
            other = [p for p in group["params"] if p.ndim != 2 or id(p) in embeddings]
            matrices += [{**group, "params": chosen}] if chosen else []
            rest += [{**group, "params": other}] if other else []
        groups = rest
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(
            torch.optim.Muon(_plain(matrices), lr=learning_rate, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
    if groups:
        optimizers.append(torch.optim.AdamW(_plain(groups), lr=learning_rate, betas=betas, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _plain(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the keys that torch knows."""
    return [{key: group[key] for key in ("params", "lr", "weight_decay") if key in group} for group in groups]


def schedule_factor(progress: float, schedule: Schedule, *, warmup_frac: float, final_frac: float) -> float:
    """Share of the peak rate at `progress` in [0, 1) of the stage: linear warm-up, then down to `final_frac`."""
    if progress < warmup_frac:
        return max(progress / warmup_frac, 1e-3)
    after = (progress - warmup_frac) / (1 - warmup_frac)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - final_frac) * after
        case "cosine":
            return final_frac + (1.0 - final_frac) * 0.5 * (1.0 + math.cos(math.pi * after))


def set_learning_rate(optimizers: Sequence[Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
