"""Turns a recipe's sections into objects. The one file that may import everything."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from posttrain.algorithms import AdvantageKind, Reduction
from posttrain.batches import BatchSource, SupervisedBatches
from posttrain.checkpoints import Checkpoint, is_sharded, latest_checkpoint
from posttrain.config import (
    DataSection,
    EngineSection,
    EvaluationSection,
    ModelSection,
    PolicyStage,
    Recipe,
    SFTStage,
    TaskSection,
)
from posttrain.data import DataSource, Mixture, Renderer, SceneSource, SceneSpec, SourceSpec, open_source
from posttrain.errors import CheckpointError, ConfigError
from posttrain.evaluation import Evaluation
from posttrain.model import Budget, ModelFacts, PackedPolicy, TokenSequence, facts_of
from posttrain.model.attention import Kernel
from posttrain.model.loading import ModelLoadError, Processor, load_model, load_processor
from posttrain.model.lora import adapters_off, add_lora
from posttrain.model.parts import PartCount, freeze
from posttrain.objectives import Grpo, Gspo, Objective, PolicyGradient, Sapo, Supervised, Surrogate
from posttrain.report import TrajectoryRecorder
from posttrain.rewards import RewardTable, TaskRewards, WeightedReward, make_reward
from posttrain.rollout.batches import RolloutBatches, RolloutSettings
from posttrain.rollout.engine import Engine
from posttrain.runs import StageFolder
from posttrain.trainer import Trainer, TrainingSettings

AnyStage = SFTStage | PolicyStage


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


def load(section: ModelSection, path: Path | str, accelerator: Accelerator, *, trained: bool = True) -> Loaded:
    """The model at `path` with the section's adapters, ready to train or only to be asked.

    Weights that are trained in full are kept in float32 and computed in the section's dtype by autocast; under adapters
    the frozen weights are in that dtype and the adapters in float32.
    """
    dtype = torch.float32 if section.lora is None and trained else getattr(torch, section.dtype)
    try:
        model = load_model(
            path,
            dtype=dtype,
            device=accelerator.device,
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


def make_source(section: DataSection) -> DataSource:
    if section.scenes is not None:
        scenes = section.scenes
        return SceneSource(SceneSpec(task=scenes.task, size=scenes.size, loose=scenes.loose, seed=scenes.seed))
    assert section.path is not None
    return open_source(
        SourceSpec(
            path=section.path,
            split=section.split,
            subset=section.subset,
            allow_urls=section.allow_urls,
            image_root=section.image_root,
            image_strip=section.image_strip,
            task=section.task,
            format=section.format,
            columns=section.columns,
            prompt_template=section.prompt_template,
            answer_regex=section.answer_regex,
            limit=section.limit,
            system=section.system,
            thinking=section.thinking,
        )
    )


def make_mixture(sections: Sequence[DataSection], seed: int) -> Mixture:
    sources = {
        f"{place}:{section.path or section.scenes}": make_source(section) for place, section in enumerate(sections)
    }
    return Mixture(sources, dict(zip(sources, (s.ratio for s in sections), strict=True)), seed=seed)


def make_rewards(tasks: Mapping[str, TaskSection]) -> RewardTable:
    """The table task -> weighted rewards. Raises ConfigError naming the nearest valid reward or option."""
    table: dict[str, TaskRewards] = {}
    for task, section in tasks.items():
        rewards = []
        for place, item in enumerate(section.rewards):
            try:
                spec: Any = {"name": item.name, **item.options} if item.options or ":" not in item.name else item.name
                rewards.append(WeightedReward(reward=make_reward(spec), weight=item.weight, name=item.name))
            except (ValueError, ImportError) as error:
                raise ConfigError(f"rewards.{task}.rewards.{place}: {error}") from error
        try:
            table[task] = TaskRewards(rewards=tuple(rewards), truncated=section.truncated)
        except ValueError as error:
            raise ConfigError(f"rewards.{task}: {error}") from error
    return RewardTable(table)


def make_renderer(section: ModelSection, loaded: Loaded, max_length: int) -> Renderer:
    return Renderer(
        loaded.processor,
        loaded.facts,
        max_length=max_length,
        enable_thinking=section.thinking,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
    )


def budget_of(stage: AnyStage) -> Budget:
    if stage.patches_per_microbatch is None:
        return Budget(tokens=stage.tokens_per_microbatch)
    return Budget(tokens=stage.tokens_per_microbatch, patches=stage.patches_per_microbatch)


HOW_NOT_WHAT = frozenset(
    {
        "checkpoint_every",
        "keep_checkpoints",
        "record_trajectories",
        "tokens_per_microbatch",
        "patches_per_microbatch",
        "gradient_checkpointing",
    }
)
"""Keys of a stage that change memory, speed or what is kept, and no result beyond float rounding: a run that ran out of
memory is resumed with a smaller micro-batch."""


def fingerprint(*parts: BaseModel | Mapping[str, Any] | str | int) -> str:
    """Hash of settings: equal for equal settings, whatever their order."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def objective_of(stage: AnyStage) -> Objective:
    """The loss of a stage. A new algorithm is one more line here."""
    if isinstance(stage, SFTStage):
        return Supervised(reduction=Reduction(stage.reduction))
    return PolicyGradient(
        surrogate=_SURROGATES[stage.algorithm](stage),
        reduction=Reduction(stage.reduction),
        constant_length=stage.max_new_tokens,
        temperature=stage.temperature,
        kl_coefficient=stage.kl_coefficient,
        importance_cap=stage.importance_cap,
    )


_SURROGATES: Mapping[str, Callable[[Any], Surrogate]] = {
    "sapo": lambda s: Sapo(tau_positive=s.tau_positive, tau_negative=s.tau_negative),
    "grpo": lambda s: Grpo(clip_low=s.clip_low, clip_high=s.clip_high),
    "gspo": lambda s: Gspo(clip_low=s.clip_low, clip_high=s.clip_high),
}


class EngineRoom:
    """The run's engine: made once, on the first rollout or evaluation, and handed from stage to stage."""

    def __init__(self, section: EngineSection, model: ModelSection, seed: int, accelerator: Accelerator) -> None:
        self._section, self._model, self._seed, self._accelerator = section, model, seed, accelerator
        self._vllm: Engine | None = None

    def engine_for(self, loaded: Loaded) -> Engine:
        section = self._section
        if section.kind == "transformers":
            if is_sharded(self._accelerator):
                raise ConfigError(
                    "engine.kind 'transformers' samples from the trained model, which FSDP and DeepSpeed cut into "
                    "shards; set engine.kind to 'vllm'"
                )
            from posttrain.rollout.transformers_engine import TransformersEngine

            return TransformersEngine(
                loaded.policy,
                loaded.facts,
                max_batch_tokens=section.max_batch_tokens,
                vocab_limit=len(loaded.tokenizer),
            )
        if self._vllm is None:
            from posttrain.rollout.vllm_engine import VllmEngine

            engine: Engine = VllmEngine(
                _base_folder(loaded),
                loaded.facts,
                loaded.processor if loaded.facts.has_vision else None,  # pyright: ignore[reportArgumentType]
                dtype=self._model.dtype,
                max_model_len=section.max_model_len,
                max_images=section.max_images,
                max_num_seqs=section.max_num_seqs,
                gpu_memory_utilization=section.gpu_memory_utilization,
                tensor_parallel_size=section.tensor_parallel_size,
                enforce_eager=section.enforce_eager,
                enable_sleep=section.sleep and self._accelerator.device.type == "cuda",
                seed=self._seed,
            )
            self._vllm = engine
        return self._vllm

    def close(self) -> None:
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None


def _base_folder(loaded: Loaded) -> Path | str:
    """What an engine of its own can start from: the base model of an adapter."""
    model = loaded.policy.model
    if isinstance(model, PeftModel):
        base = model.peft_config["default"].base_model_name_or_path
        return base or loaded.path
    return loaded.path


@dataclass
class StageBuilder:
    """Makes the trainer of one stage from its section."""

    recipe_model: ModelSection
    stage: AnyStage
    seed: int
    loaded: Loaded
    start: Path | str
    """What the stage starts from; `loaded` is a checkpoint of it when a run is resumed."""
    engines: EngineRoom
    rewards: RewardTable | None
    accelerator: Accelerator
    folder: StageFolder
    fingerprint: str
    title: str
    mixture: Mixture | None = None
    """Given by Python callers, who have data and no section."""

    @cached_property
    def sources(self) -> Mixture:
        return self.mixture or make_mixture(self.stage.data, self.seed)

    @property
    def steps(self) -> int:
        if self.stage.steps is not None:
            return self.stage.steps
        assert self.stage.epochs is not None
        return self.sources.steps_for(self.stage.epochs, self.stage.batch_size)

    def freeze(self) -> tuple[PartCount, ...]:
        try:
            return freeze(self.loaded.policy.model, self.loaded.facts, self.stage.freeze)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def batches(self) -> BatchSource:
        stage, accelerator = self.stage, self.accelerator
        renderer = make_renderer(self.recipe_model, self.loaded, stage.max_length)
        rank, world = accelerator.process_index, accelerator.num_processes
        if isinstance(stage, SFTStage):
            return SupervisedBatches(self.sources, renderer, batch_size=stage.batch_size, rank=rank, world=world)
        if self.rewards is None:
            raise ConfigError(f"stage '{self.title}' runs {stage.algorithm} and needs rewards: add a 'rewards' section")
        return RolloutBatches(
            mixture=self.sources,
            renderer=renderer,
            engine=self.engines.engine_for(self.loaded),
            rewards=self.rewards,
            policy=self.loaded.policy,
            budget=budget_of(stage),
            settings=RolloutSettings(
                batch_size=stage.batch_size,
                group_size=stage.group_size,
                mini_batches=stage.mini_batches,
                max_new_tokens=stage.max_new_tokens,
                temperature=stage.temperature,
                advantage=AdvantageKind(stage.advantage),
                recompute_logprobs=stage.importance_cap is not None,
                zero_signal=stage.zero_signal,
                resample_limit=stage.resample_limit,
                seed=self.seed,
            ),
            decode=self.loaded.decode,
            reference_logprobs=self._reference(stage) if stage.kl_coefficient else None,
            rank=rank,
            world=world,
            autocast=lambda: accelerator.autocast(),
        )

    def _reference(self, stage: PolicyStage) -> Callable[[Sequence[TokenSequence]], list[torch.Tensor]]:
        """Log-probabilities of the policy without its adapters, or of the one that the stage started from."""
        policy, budget = self.loaded.policy, budget_of(stage)
        if isinstance(policy.model, PeftModel):

            def without_adapters(sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
                with adapters_off(policy.model):
                    return policy.logprobs(sequences, budget, temperature=stage.temperature)

            return without_adapters
        # Not a copy of the policy: a resumed one has moved on from where the stage started.
        start = load(self.recipe_model, self.start, self.accelerator, trained=False).policy
        start.requires_grad_(False).eval()
        return partial(start.logprobs, budget=budget, temperature=stage.temperature)

    def trainer(self, checkpoint: Checkpoint | None) -> Trainer:
        stage = self.stage
        if stage.optimizer == "muon" and is_sharded(self.accelerator):
            raise ConfigError(
                f"stage '{self.title}': muon needs whole matrices, which FSDP and DeepSpeed cut into shards; "
                "set its optimizer to adamw"
            )
        if stage.gradient_checkpointing:
            self.loaded.policy.base_model.gradient_checkpointing_enable({"use_reentrant": False})
        recorder = None
        if stage.record_trajectories and self.accelerator.is_main_process:
            tokenizer = self.loaded.tokenizer
            recorder = TrajectoryRecorder(
                self.folder.path,
                stage.record_trajectories,
                decode_tokens=lambda ids: [str(tokenizer.decode([i])) for i in ids],
            )
        return Trainer(
            policy=self.loaded.policy,
            processor=self.loaded.processor,
            objective=objective_of(stage),
            batches=self.batches(),
            settings=TrainingSettings(
                steps=self.steps,
                learning_rate=stage.learning_rate,
                learning_rates={str(part): rate for part, rate in stage.learning_rates.items()},
                optimizer=stage.optimizer,
                weight_decay=stage.weight_decay,
                betas=stage.betas,
                schedule=stage.schedule,
                warmup_frac=stage.warmup_frac,
                final_frac=stage.final_frac,
                max_grad_norm=stage.max_grad_norm,
                budget=budget_of(stage),
                checkpoint_every=stage.checkpoint_every,
                keep_checkpoints=stage.keep_checkpoints,
                seed=self.seed,
                fingerprint=self.fingerprint,
            ),
            folder=self.folder,
            accelerator=self.accelerator,
            recorder=recorder,
            resume_from=checkpoint,
            title=self.title,
        )


def resumable(folder: StageFolder, wanted: str) -> Checkpoint | None:
    """The stage's newest checkpoint. Raises ConfigError where other settings made it."""
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is not None and checkpoint.fingerprint != wanted:
        raise ConfigError(
            f"{checkpoint.path} was made with other settings than this recipe's; put them back to resume, choose "
            "another output_dir, or add --restart to start again"
        )
    return checkpoint


def make_evaluation(
    section: EvaluationSection,
    recipe: Recipe,
    loaded: Loaded,
    engines: EngineRoom,
    rewards: RewardTable | None,
    accelerator: Accelerator,
) -> Evaluation:
    sources = {str(place): make_source(data) for place, data in enumerate(section.data)}
    longest = max(stage.max_length for stage in recipe.stages.values())
    return Evaluation(
        sources=sources,
        renderer=make_renderer(recipe.model, loaded, longest),
        engine=engines.engine_for(loaded) if rewards is not None else None,
        rewards=rewards,
        num_examples=section.num_examples,
        temperatures=section.temperatures,
        max_new_tokens=section.max_new_tokens,
        batch_size=section.batch_size,
        budget=budget_of(next(iter(recipe.stages.values()))),
        decode=loaded.decode,
        seed=recipe.seed,
        autocast=lambda: accelerator.autocast(),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
