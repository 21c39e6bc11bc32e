"""TRL's own trainers and the padded batches they want, made from token sequences: the peer in benchmarks and tests."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl.trainer.distillation_trainer as trl_distillation
import trl.trainer.utils as trl_utils
from datasets import Dataset
from PIL import Image
from posttrain.model import ModelFacts, TokenSequence
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

Processing = ProcessorMixin | PreTrainedTokenizerBase

_QUIET: dict[str, Any] = {
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "report_to": [],
    "use_cpu": True,
}


@contextlib.contextmanager
def row_compaction(active: bool) -> Iterator[None]:
    """TRL scores trained tokens only where it has Triton, every position elsewhere; True gives a CPU that compaction.

    It replaces the names that the compaction asks: the tiles of the head stay torch's.
    """
    modules: tuple[Any, ...] = (trl_utils, trl_distillation)
    asked = [module._use_triton for module in modules]
    for module in modules:
        if active:
            module._use_triton = lambda device: True
    try:
        yield
    finally:
        for module, function in zip(modules, asked, strict=True):
            module._use_triton = function


def grpo_trainer(
    model: PreTrainedModel, processing: Processing, folder: Path, *, batch: int, **options: Any
) -> GRPOTrainer:
    """TRL's GRPOTrainer around `model`; `options` go to its GRPOConfig, or are `peft_config` or `tools`. No reference
    model."""
    peft_config, tools = options.pop("peft_config", None), options.pop("tools", None)
    settings: dict[str, Any] = {**_QUIET, "loss_type": "sapo", "beta": 0.0, **options}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            num_generations=batch,
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "hi"}]}] * 4),
        processing_class=processing,
        peft_config=peft_config,
        tools=tools,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def tool_rollouts(
    trainer: GRPOTrainer,
    prompts: list[list[dict[str, Any]]],
    generate: Callable[[list[list[int]]], list[list[int]]],
) -> None:
    """TRL's rollouts with the tools that `trainer` was made with: its `_generate`, which renders the prompts, parses
    what was said and runs `_tool_call_loop`.

    generate: prompts -> what is said to each, in token ids. It stands in for `_generate_single_turn` and nothing else.
    """
    internal: Any = trainer

    def one_turn(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return generate(prompt_ids), None

    internal._generate_single_turn = one_turn
    # As `_generate_and_score_completions` does, which calls `_generate` and then the rewards.
    tools = {tool.__name__: tool for tool in internal.tools}
    is_async = {name: inspect.iscoroutinefunction(tool) for name, tool in tools.items()}
    internal._sync_tool_dicts = [{name: tools[name] for name in tools if not is_async[name]}] * len(prompts)
    internal._async_tool_dicts = [{name: tools[name] for name in tools if is_async[name]}] * len(prompts)
    internal._generate(prompts)


def sft_trainer(
    model: PreTrainedModel, processing: Processing, folder: Path, *, batch: int, **options: Any
) -> SFTTrainer:
    """TRL's SFTTrainer around `model`; `options` go to its SFTConfig, or are `peft_config`."""
    peft_config = options.pop("peft_config", None)
    settings: dict[str, Any] = {**_QUIET, "max_length": None, **options}
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    row = {"messages": talk} | (
        {"images": [Image.new("RGB", (64, 64))]} if isinstance(processing, ProcessorMixin) else {}
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            **settings,
        ),
        train_dataset=Dataset.from_list([row] * 2),
        processing_class=processing,
        peft_config=peft_config,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def distillation_trainer(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    processing: Processing,
    folder: Path,
    *,
    batch: int,
    **options: Any,
) -> DistillationTrainer:
    """TRL's DistillationTrainer around both models; `options` go to its DistillationConfig."""
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            max_completion_length=1024,
            **_QUIET,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "hi"}]}] * 2 * batch),
        processing_class=processing,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def distillation_loss(trainer: DistillationTrainer, inputs: dict[str, Any]) -> Tensor:
    """TRL's loss of prepared inputs, which are those of `grpo_inputs`."""
    return trainer.compute_loss(
        trainer.model, {k: v for k, v in inputs.items() if k not in ("num_images", "advantages")}
    )


def grpo_loss(trainer: GRPOTrainer, inputs: dict[str, Any]) -> Tensor:
    """TRL's loss of prepared inputs."""
    return trainer._compute_loss(trainer.model, inputs)


def grpo_inputs(sequences: Sequence[TokenSequence], facts: ModelFacts) -> dict[str, Any]:
    """What `GRPOTrainer._generate_and_score_completions` prepares: prompts padded left, completions right.

    A sequence's prompt is its first `prefix_length` tokens. Its stream `advantages` is one number all along;
    `behaviour_logprobs`, where it has that stream, become TRL's old log-probabilities.
    Images are repeated for every completion.
    """
    prompts = [torch.from_numpy(s.token_ids[: s.prefix_length]) for s in sequences]
    completions = [torch.from_numpy(s.token_ids[s.prefix_length :]) for s in sequences]
    masks = [torch.from_numpy(s.mask[s.prefix_length :]).long() for s in sequences]
    prompt_ids = _pad(prompts, facts.pad_token_id, left=True)
    completion_ids = _pad(completions, facts.pad_token_id)
    inputs: dict[str, Any] = {
        "prompt_ids": prompt_ids,
        "prompt_mask": _pad([torch.ones_like(p) for p in prompts], 0, left=True),
        "completion_ids": completion_ids,
        "completion_mask": _pad([torch.ones_like(c) for c in completions], 0),
        "tool_mask": _pad(masks, 0),
        "num_items_in_batch": torch.tensor(sum(s.num_trained for s in sequences)),
    }
    if "advantages" in sequences[0].streams:
        inputs["advantages"] = torch.tensor([float(s.streams["advantages"][-1]) for s in sequences])
    if "behaviour_logprobs" in sequences[0].streams:
        old = [torch.from_numpy(s.streams["behaviour_logprobs"][s.prefix_length :]) for s in sequences]
        inputs["old_per_token_logps"] = _pad(old, 0)
    if facts.has_vision:
        inputs |= _images(sequences)
        inputs["num_images"] = [len(s.images) for s in sequences]
        inputs["mm_token_type_ids"] = (torch.cat([prompt_ids, completion_ids], 1) == facts.image_token_id).int()
    return inputs


def sft_inputs(sequences: Sequence[TokenSequence], facts: ModelFacts) -> dict[str, Any]:
    """A collated batch of SFTTrainer: sequences padded on the right, labels -100 where nothing is trained."""
    ids = [torch.from_numpy(s.token_ids) for s in sequences]
    input_ids = _pad(ids, facts.pad_token_id)
    labels = [torch.from_numpy(np.where(s.mask, s.token_ids, -100)) for s in sequences]
    inputs: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": _pad([torch.ones_like(i) for i in ids], 0),
        "labels": _pad(labels, -100),
    }
    if facts.has_vision:
        inputs["mm_token_type_ids"] = (input_ids == facts.image_token_id).int()
        if any(s.images for s in sequences):
            inputs |= _images(sequences)
    return inputs


def _images(sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    images = [image for s in sequences for image in s.images]
    return {
        "pixel_values": torch.cat([image.pixel_values_PD for image in images]),
        "image_grid_thw": torch.tensor([image.grid_thw for image in images]),
    }


def _pad(rows: Sequence[Tensor], value: int, *, left: bool = False) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=value, padding_side="left" if left else "right"
    )
