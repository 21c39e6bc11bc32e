"""What a recipe may say: every key, its type, its default, and the sentence that `posttrain` shows for it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Part = Literal["vision", "merger", "language", "embeddings"]


class _Section(BaseModel):
    """A strict section: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class LoraSection(_Section):
    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: adapters are multiplied by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    parts: list[Part] = Field(default=["language"], description="Parts whose linear layers get adapters.")


class ModelSection(_Section):
    path: str | None = Field(
        default=None, description="Checkpoint folder, adapter folder or hub name of a Qwen-VL model."
    )
    tiny: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3"] | None = Field(
        default=None, description="Instead of a path: a tiny random model of this generation, built here."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="What is computed in; weights trained in full are kept in float32."
    )
    lora: LoraSection | None = Field(default=None, description="Train adapters instead of the weights.")
    attention: Literal["auto", "segments", "dense", "flex"] = Field(
        default="auto", description="Kernel of packed attention; auto takes the fastest measured one of the device."
    )
    min_pixels: int | None = Field(
        default=None, gt=0, description="Images are enlarged to at least this; default: checkpoint's."
    )
    max_pixels: int | None = Field(
        default=None, gt=0, description="Images are reduced to at most this; default: checkpoint's."
    )
    thinking: bool | None = Field(
        default=None, description="enable_thinking of templates that have it; null leaves it out."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that a checkpoint brings. Off unless you say so."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give exactly one of 'path' (a checkpoint) and 'tiny' (a random model of a generation)")
        return self


class SceneSection(_Section):
    task: Literal["ground", "plate", "read", "count", "arith"] = Field(description="What is asked about the scene.")
    size: int = Field(default=4096, ge=1, description="Number of different examples.")
    loose: float = Field(
        default=0.0, ge=0, le=1, description="Chance that a side of a training box lies one cell too far out."
    )
    seed: int = Field(default=0, description="Seed of the scenes; another one gives held-out scenes.")


class DataSection(_Section):
    path: str | None = Field(
        default=None, description="JSONL, JSON or Parquet file, folder of `datasets`, or hub name."
    )
    scenes: SceneSection | None = Field(default=None, description="Instead of a path: drawn scenes.")
    split: str | None = Field(
        default=None, description="Split of a hub data set (there 'train' unless told) or of a folder."
    )
    subset: str | None = Field(default=None, description="Configuration of a hub data set, such as 'main'.")
    format: Literal["auto", "messages", "sharegpt", "qwen", "prompt"] = Field(
        default="auto", description="Layout of a row."
    )
    task: str = Field(default="default", description="Task of rows without a 'task' column: chooses their rewards.")
    ratio: float = Field(
        default=1.0, gt=0, description="Share of every batch, relative to the other sources of the stage."
    )
    image_root: str | None = Field(default=None, description="Folder that image paths start from and may not leave.")
    allow_urls: bool = Field(default=False, description="Fetch http(s) images; refused otherwise.")
    image_strip: str = Field(
        default="", description="Leading part of the image paths to drop, where rows name a folder above."
    )
    columns: dict[str, str] = Field(default={}, description="Our field: their column, such as {answer: solution}.")
    prompt_template: str | None = Field(
        default=None, description="Prompt from columns: '{question} Answer in \\boxed{{}}.'"
    )
    answer_regex: str | None = Field(
        default=None, description="The answer is this pattern's first group in its column."
    )
    system: str | None = Field(default=None, description="System turn for rows that have none.")
    thinking: bool | None = Field(default=None, description="True: every answer must hold <think>; false: none may.")
    limit: int | None = Field(default=None, ge=1, description="Use the first rows only.")

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if (self.path is None) == (self.scenes is None):
            raise ValueError("give exactly one of 'path' (a data set) and 'scenes' (drawn scenes)")
        return self


class RewardItem(_Section):
    name: str = Field(description="Registered reward, or module:function of your own.")
    weight: float = Field(default=1.0, description="Factor in the task's sum.")
    options: dict[str, Any] = Field(default={}, description="The reward's options.")


class TaskSection(_Section):
    rewards: list[RewardItem] = Field(min_length=1, description="Rewards that are summed by weight.")
    truncated: Literal["score", "zero", "unscored"] = Field(
        default="score",
        description="What an answer that met the token limit earns; unscored leaves the group's statistics.",
    )


class EngineSection(_Section):
    kind: Literal["transformers", "vllm"] = Field(default="transformers", description="What samples the rollouts.")
    max_batch_tokens: int = Field(
        default=65536, ge=1, description="transformers: prompt and answer tokens sampled at once."
    )
    max_model_len: int = Field(default=4096, ge=16, description="vllm: longest prompt with answer.")
    max_num_seqs: int = Field(default=128, ge=1, description="vllm: answers in flight.")
    max_images: int = Field(default=8, ge=1, description="vllm: most images in one prompt.")
    gpu_memory_utilization: float = Field(default=0.4, gt=0, lt=1, description="vllm: share of the GPU's memory.")
    tensor_parallel_size: int = Field(default=1, ge=1, description="vllm: GPUs that share one copy.")
    enforce_eager: bool = Field(default=True, description="vllm: no CUDA graphs; starts faster, decodes slower.")
    sleep: bool = Field(default=True, description="vllm on a GPU: give its memory back while training.")


class EvaluationSection(_Section):
    data: list[DataSection] = Field(min_length=1, description="Held-out rows, measured before and after every stage.")
    num_examples: int = Field(default=128, ge=1, description="Rows of each source.")
    temperatures: list[float] = Field(default=[0.0, 1.0], min_length=1, description="0 is greedy.")
    max_new_tokens: int = Field(default=512, ge=1, description="Longest answer.")
    batch_size: int = Field(default=64, ge=1, description="Prompts at once.")


class _TrainingStage(_Section):
    """What every stage has."""

    data: list[DataSection] = Field(default=[], description="Sources, mixed in every batch by their ratios.")
    batch_size: int = Field(default=16, ge=1, description="Examples of a step over all processes; for RL prompts.")
    steps: int | None = Field(default=None, ge=1, description="Steps; give this or epochs.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the data; give this or steps.")
    learning_rate: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    learning_rates: dict[Part, float] = Field(default={}, description="Learning rates of single parts.")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon trains matrices by Muon and the rest by AdamW: for training from nothing."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decay of matrices; never of norms and biases.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW's moments.")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="cosine", description="After the warm-up.")
    warmup_frac: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps in which the rate rises from 0."
    )
    final_frac: float = Field(default=0.0, ge=0, le=1, description="Where the schedule ends, as a share of the peak.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    freeze: list[Part] = Field(default=[], description="Parts that are not trained.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for about a third more time.")
    tokens_per_microbatch: int = Field(default=8192, ge=1, description="Language-model tokens of one forward pass.")
    patches_per_microbatch: int | None = Field(default=None, ge=1, description="Vision patches of one forward pass.")
    max_length: int = Field(default=8192, ge=2, description="Longer examples are dropped whole, counted and named.")
    checkpoint_every: int = Field(
        default=100, ge=0, description="Steps between checkpoints; 0 keeps only the last state."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Older checkpoints are deleted.")
    record_trajectories: int = Field(default=4, ge=0, description="Trajectories a step that are kept for the report.")

    @model_validator(mode="after")
    def _one_length(self) -> "_TrainingStage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self


class SFTStage(_TrainingStage):
    algorithm: Literal["sft"] = "sft"
    reduction: Literal["token_mean", "sequence_mean"] = Field(
        default="token_mean", description="What counts alike: every trained token, or every sequence."
    )


class _PolicyStage(_TrainingStage):
    """What every RL stage has."""

    learning_rate: float = Field(default=1e-6, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="After the warm-up.")
    group_size: int = Field(default=8, ge=2, description="Answers to each prompt, compared with each other.")
    mini_batches: int = Field(
        default=2, ge=1, description="Optimiser steps on each batch of rollouts; each holds every task."
    )
    max_new_tokens: int = Field(default=1024, ge=1, description="Longest answer.")
    temperature: float = Field(
        default=1.0, gt=0, description="Of sampling, and of the log-probabilities that are trained."
    )
    advantage: Literal["grpo", "dr_grpo", "leave_one_out"] = Field(
        default="grpo", description="How a group is compared."
    )
    reduction: Literal["sequence_mean", "token_mean", "constant"] = Field(
        default="sequence_mean", description="What counts alike; constant divides by max_new_tokens."
    )
    kl_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of KL to the model without adapters, or as the stage found it."
    )
    importance_cap: float | None = Field(
        default=2.0,
        gt=0,
        description="Recompute the log-probs of the rollout in the trainer and weight tokens by min(trainer / engine, "
        "this); null trusts the engine's and saves a forward pass.",
    )
    zero_signal: Literal["drop", "resample", "keep"] = Field(
        default="drop", description="Groups whose rewards are all equal; resample draws other prompts for them."
    )
    resample_limit: int = Field(default=2, ge=0, description="Rounds of other prompts in one step.")


class SAPOStage(_PolicyStage):
    algorithm: Literal["sapo"] = "sapo"
    tau_positive: float = Field(default=1.0, gt=0, description="Gate's sharpness for positive advantages.")
    tau_negative: float = Field(
        default=1.05, gt=0, description="Gate's sharpness for negative ones; above tau_positive."
    )


class GRPOStage(_PolicyStage):
    algorithm: Literal["grpo"] = "grpo"
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="Ratios below 1 - this are clipped.")
    clip_high: float = Field(default=0.2, gt=0, description="Ratios above 1 + this are clipped.")


class GSPOStage(_PolicyStage):
    algorithm: Literal["gspo"] = "gspo"
    clip_low: float = Field(default=3e-4, gt=0, lt=1, description="Sequence ratios below 1 - this are clipped.")
    clip_high: float = Field(default=4e-4, gt=0, description="Sequence ratios above 1 + this are clipped.")


PolicyStage = SAPOStage | GRPOStage | GSPOStage
Stage = Annotated[SFTStage | SAPOStage | GRPOStage | GSPOStage, Field(discriminator="algorithm")]


class Recipe(_Section):
    name: str = Field(description="Name of the run.")
    output_dir: str | None = Field(default=None, description="Folder of the run; default runs/NAME.")
    seed: int = Field(
        default=0, ge=0, description="Of data order, sampling and initialisation; equal seeds repeat exactly."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all cores. Tiny models want 1.")
    model: ModelSection
    rewards: dict[str, TaskSection] = Field(
        default={}, description="Task: its rewards; 'default' serves tasks without an entry."
    )
    engine: EngineSection = EngineSection()  # pyright: ignore[reportCallIssue]
    evaluation: EvaluationSection | None = Field(
        default=None, description="Held-out measurements; null measures nothing."
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=[], description="Beside metrics.jsonl.")
    stages: dict[str, Stage] = Field(min_length=1, description="Run in this order; each starts from the one before.")

    @model_validator(mode="after")
    def _stages_have_data(self) -> "Recipe":
        for name, stage in self.stages.items():
            if not stage.data:
                raise ValueError(f"stages.{name}.data is empty: name at least one source")
        return self
