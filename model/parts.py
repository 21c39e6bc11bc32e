"""The four parts of a model: which parameter belongs to which, freezing by part, and optimiser groups by part."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from .families import ModelFacts


class Part(StrEnum):
    VISION = "vision"
    """The vision tower, without its mergers."""
    MERGER = "merger"
    """The projector from vision to language, with the DeepStack mergers."""
    LANGUAGE = "language"
    """The language model's layers and final norm."""
    EMBEDDINGS = "embeddings"
    """Token embeddings and the head that predicts tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCount:
    """Numbers of parameters of one part; a tied head counts once, adapters count with the part they adapt."""

    part: Part
    total: int
    trained: int


def parts_of(facts: ModelFacts) -> tuple[Part, ...]:
    """The parts that a model of this family has: a text model has no vision and no merger."""
    return tuple(part for part in Part if _prefixes(facts, part))


def part_of(parameter_name: str, facts: ModelFacts) -> Part:
    """The part of a parameter or module, by its name in the model, wrapped by peft, FSDP or torch.compile or not.

    Raises ValueError for a name that lies in no part.
    """
    name = plain_name(parameter_name)
    matches = [(len(p), part) for part in Part for p in _prefixes(facts, part) if f"{name}.".startswith(p)]
    if not matches:
        raise ValueError(f"'{parameter_name}' lies in no part of {facts.anatomy.title}")
    return max(matches)[1]


def plain_name(name: str) -> str:
    """The name that a parameter or module has in the unwrapped transformers model."""
    return _WRAPPERS.sub("", name).removeprefix("module.").removeprefix("base_model.model.")


# What torch.compile, FSDP, activation checkpointing and peft insert into names.
_WRAPPERS = re.compile(
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)"
)


def check_parts(parts: Iterable[str], facts: ModelFacts, *, purpose: str) -> tuple[Part, ...]:
    """`parts` as Part members, each once. Raises ValueError, led by `purpose`, for one that the model does not have."""
    present = parts_of(facts)
    for part in parts:
        if part not in present:
            raise ValueError(
                f"{purpose} part '{part}' is not a part of {facts.anatomy.title}; parts are: {', '.join(present)}"
            )
    return tuple(dict.fromkeys(Part(part) for part in parts))


def freeze(model: nn.Module, facts: ModelFacts, parts: Iterable[str]) -> tuple[PartCount, ...]:
    """Stops gradients of the parameters of `parts` and returns what is left to train.

    Parameters of other parts keep the `requires_grad` they have, so the order of freezing and adding adapters does not
    matter. Raises ValueError for an unknown part, and when nothing would be left to train.
    """
    frozen = check_parts(tuple(parts), facts, purpose="freeze")
    by_part = [(parameter, part_of(name, facts)) for name, parameter in model.named_parameters()]
    if not any(parameter.requires_grad and part not in frozen for parameter, part in by_part):
        raise ValueError(f"freezing {', '.join(frozen)} leaves nothing of this {facts.anatomy.title} to train")
    for parameter, part in by_part:
        if part in frozen:
            parameter.requires_grad_(False)
    return count_parts(model, facts)


def count_parts(model: nn.Module, facts: ModelFacts) -> tuple[PartCount, ...]:
    """One row a part, in the order of `Part`, with the parameters it has and those that train."""
    total = dict.fromkeys(parts_of(facts), 0)
    trained = dict(total)
    for name, parameter in model.named_parameters():
        part = part_of(name, facts)
        total[part] += parameter.numel()
        trained[part] += parameter.numel() if parameter.requires_grad else 0
    return tuple(PartCount(part=part, total=total[part], trained=trained[part]) for part in total)


def parameter_groups(
    model: nn.Module,
    facts: ModelFacts,
    *,
    learning_rate: float,
    learning_rates: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Optimiser groups of the parameters that train: per part, with and without weight decay.

    `learning_rates` replaces `learning_rate` for the parts it names. Norms, biases and everything else of one dimension
    do not decay. Each group carries `name`, as in "vision" or "vision, no decay", which optimisers keep.
    Raises ValueError for an unknown part, for one without a parameter that trains, and when nothing trains.
    """
    rates = {Part(p): rate for p, rate in (learning_rates or {}).items() if check_parts([p], facts, purpose="rate of")}
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name, facts), decays(parameter)), []).append(parameter)
    if not groups:
        raise ValueError(f"no parameter of this {facts.anatomy.title} requires a gradient: nothing would be trained")
    for part in rates:
        if not any(part is trained for trained, _ in groups):
            raise ValueError(f"a learning rate is set for part '{part}', but none of its parameters is trained")
    return [
        {
            "name": part.value if decay else f"{part}, no decay",
            "params": groups[part, decay],
            "lr": rates.get(part, learning_rate),
            "weight_decay": weight_decay if decay else 0.0,
        }
        for part in Part
        for decay in (True, False)
        if (part, decay) in groups
    ]


def decays(parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return parameter.ndim > 1


def _prefixes(facts: ModelFacts, part: Part) -> tuple[str, ...]:
    anatomy = facts.anatomy
    match part:
        case Part.VISION:
            return anatomy.vision
        case Part.MERGER:
            return anatomy.merger
        case Part.LANGUAGE:
            return anatomy.language
        case Part.EMBEDDINGS:
            return anatomy.embeddings
