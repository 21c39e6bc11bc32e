"""A checkpoint in memory, and how it gets there: what every part of a stage shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from posttrain.checkpoints import is_sharded
from posttrain.config import ModelSection
from posttrain.errors import CheckpointError, ConfigError
from posttrain.model import ModelFacts, PackedPolicy, facts_of
from posttrain.model.attention import Kernel
from posttrain.model.loading import ModelLoadError, Processor, load_model, load_processor
from posttrain.model.lora import add_lora


@dataclass
class Loaded:
    """A checkpoint in memory: what every part of a stage shares."""

    policy: PackedPolicy
    processor: Processor
    facts: ModelFacts
    path: Path | str
    """Where it came from; an engine of its own starts from here."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return tokenizer_of(self.processor)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens with the markup (thoughts, tool calls) left in."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    return processor if isinstance(processor, PreTrainedTokenizerBase) else processor.tokenizer  # pyright: ignore


def make_accelerator(model: ModelSection, trackers: Sequence[str], folder: Path) -> Accelerator:
    """The one accelerator of a process, from `accelerate launch`'s environment."""
    try:
        return Accelerator(
            mixed_precision="bf16" if model.dtype == "bfloat16" else "no",
            log_with=list(trackers) or None,  # pyright: ignore[reportArgumentType]
            project_dir=str(folder),
        )
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise ConfigError(
            f"model.dtype is {model.dtype}, but this process computes in another precision already; use that one, or "
            "start a new process"
        ) from error


def load(
    section: ModelSection,
    path: Path | str,
    accelerator: Accelerator,
    *,
    trained: bool = True,
    device: torch.device | str | None = None,
) -> Loaded:
    """The model at `path` with the section's adapters, ready to train or only to be asked.

    Weights that are trained in full are kept in float32 and computed in the section's dtype by autocast; under adapters
    the frozen weights are in that dtype and the adapters in float32.
    """
    dtype = torch.float32 if section.lora is None and trained else getattr(torch, section.dtype)
    try:
        model = load_model(
            path,
            dtype=dtype,
            device=accelerator.device if device is None else device,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            is_trainable=True,
        )
        processor = load_processor(path, revision=section.revision, trust_remote_code=section.trust_remote_code)
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        facts = facts_of(inner.config, tokenizer_of(processor), inner.generation_config)  # pyright: ignore
        if section.lora is not None and not isinstance(model, PeftModel):
            model = add_lora(
                model,
                facts,
                rank=section.lora.rank,
                alpha=section.lora.alpha,
                dropout=section.lora.dropout,
                parts=section.lora.parts,
                float32=not is_sharded(accelerator),
            )
    except ModelLoadError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    kernel = None if section.attention == "auto" else Kernel(section.attention)
    policy = PackedPolicy(model, facts, kernel=kernel)
    prepare_sharding(accelerator, facts)
    return Loaded(policy=policy, processor=processor, facts=facts, path=path)


def prepare_sharding(accelerator: Accelerator, facts: ModelFacts) -> None:
    """Tells FSDP which layers to keep whole, where the launch configuration did not."""
    if accelerator.distributed_type is not DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if isinstance(plugin, FullyShardedDataParallelPlugin) and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = list(facts.anatomy.no_split_layers)
