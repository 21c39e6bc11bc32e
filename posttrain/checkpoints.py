"""Training checkpoints: the model in its standard format, the optimiser as safetensors, and the step.

Data order, sampling and learning rate are functions of the seed and the step, so nothing else is needed: a killed run
goes on to the same losses. A checkpoint is written beside its place and moved there, whole or not at all.
Nothing is pickled, but for what accelerate itself writes under FSDP and DeepSpeed.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from posttrain.errors import CheckpointError
from posttrain.model.loading import Processor, save_model

_STATE = "state.json"
_OPTIMIZER = "optimizer.safetensors"
_SHARDED = "sharded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, before step `step`."""

    path: Path
    step: int
    fingerprint: str
    """Of the settings that made it: other settings are refused."""

    @property
    def model(self) -> Path:
        return self.path / "model"


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a stage; half-written ones are not seen."""
    found = [_read(path) for path in folder.glob("step-*") if (path / _STATE).is_file()]
    return max(found, key=lambda c: c.step, default=None)


def _read(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return Checkpoint(path=path, step=int(state["step"]), fingerprint=str(state["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged ({error}); delete that folder to resume from the one before"
        ) from None


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    fingerprint: str,
    model: PreTrainedModel | PeftModel,
    wrapped: nn.Module,
    processor: Processor,
    optimizers: Sequence[Optimizer],
    accelerator: Accelerator,
    keep: int,
) -> None:
    """Writes `step-NNNNNN` under `folder` and deletes all but the newest `keep`.

    Called by every process; under FSDP and DeepSpeed the optimiser's shards are written by accelerate.
    Raises CheckpointError where the disk is full or not writable: the checkpoints before it stay.
    """
    place, scratch = folder / f"step-{step:06d}", folder / f".step-{step:06d}"
    sharded = is_sharded(accelerator)
    weights = accelerator.get_state_dict(wrapped) if sharded else None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            save_model(model, processor, scratch / "model", state_dict=inner_weights(weights, model))
            if not sharded:
                save_file(dict(optimizer_tensors(model, optimizers)), scratch / _OPTIMIZER)
        accelerator.wait_for_everyone()
        if sharded:
            accelerator.save_state(str(scratch / _SHARDED))
            accelerator.wait_for_everyone()  # the folder is moved below: every process must have written into it
        if accelerator.is_main_process:
            state = {"step": step, "fingerprint": fingerprint}
            (scratch / _STATE).write_text(json.dumps(state), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            scratch.rename(place)
            for old in sorted(folder.glob("step-*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {place} cannot be written ({error}); the earlier ones are whole: free space and run again"
        ) from error


def save_weights(
    folder: Path,
    *,
    model: PreTrainedModel | PeftModel,
    wrapped: nn.Module,
    processor: Processor,
    accelerator: Accelerator,
) -> None:
    """Writes the trained model or adapter in the standard format, whole or not at all; called by every process.

    Raises CheckpointError where the disk is full or not writable.
    """
    weights = accelerator.get_state_dict(wrapped) if is_sharded(accelerator) else None
    if accelerator.is_main_process:
        try:
            save_model(model, processor, folder, state_dict=inner_weights(weights, model))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the trained model cannot be written to {folder} ({error}); free space and run again"
            ) from error
    accelerator.wait_for_everyone()


def load_optimizers(
    checkpoint: Checkpoint, model: nn.Module, optimizers: Sequence[Optimizer], accelerator: Accelerator
) -> None:
    """Puts the optimisers back as they were. The model is loaded from `checkpoint.model` when it is built."""
    if is_sharded(accelerator):
        accelerator.load_state(str(checkpoint.path / _SHARDED))
        return
    try:
        tensors = load_file(checkpoint.path / _OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint.path / _OPTIMIZER} is damaged ({error}); delete {checkpoint.path}"
        ) from error
    names = {id(p): name for name, p in model.named_parameters()}
    for place, optimizer in enumerate(optimizers):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"{place}/{names[id(parameter)]}/"
            state: dict[str, Any] = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            # The step counter too: fused AdamW wants it beside its parameter.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> Mapping[str, Tensor]:
    """Every tensor of the optimisers' state under `optimizer/parameter/key`."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{place}/{names[id(parameter)]}/{key}": value.detach().cpu().contiguous()
        for place, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def inner_weights(weights: Mapping[str, Any] | None, model: PreTrainedModel | PeftModel) -> Mapping[str, Tensor] | None:
    """Gathered weights of the packed policy under the names of the model inside it; a tied head is not repeated."""
    if weights is None:
        return None
    tied = model.all_tied_weights_keys if isinstance(model, PreTrainedModel) else {}
    named = {name.removeprefix("module.").removeprefix("model."): value for name, value in weights.items()}
    return {name: value for name, value in named.items() if name not in tied}


def seed_everything(seed: int) -> None:
    """Seeds torch for what has no generator of its own (dropout, new adapters)."""
    torch.manual_seed(seed)
