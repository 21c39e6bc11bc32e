"""The sections of a recipe that are not stages: model, data, rewards, teachers, engine, evaluation."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

Part = Literal["vision", "merger", "language", "embeddings"]


class Section(BaseModel):
    """A strict section: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class LoraSection(Section):
    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: adapters are multiplied by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    parts: list[Part] = Field(default=["language"], description="Parts whose linear layers get adapters.")


class ModelSection(Section):
    path: str | None = Field(
        default=None, description="Checkpoint folder, adapter folder or hub name of a Qwen-VL model."
    )
    tiny: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3"] | None = Field(
        default=None, description="Instead of a path: a tiny random model of this generation, built here."
    )
    tiny_size: Literal["default", "small"] = Field(
        default="default", description="Of a tiny model: small is half as large, a student for the default one."
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
    thinking: StrictBool | None = Field(
        default=None, description="enable_thinking of templates that have it; null leaves it out."
    )
    trust_remote_code: StrictBool = Field(
        default=False, description="Run code that a checkpoint brings. Off unless you say so."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give exactly one of 'path' (a checkpoint) and 'tiny' (a random model of a generation)")
        return self


class SceneSection(Section):
    task: Literal["ground", "plate", "read", "count", "arith", "zoom"] = Field(
        description="What is asked about the scene."
    )
    size: int = Field(default=4096, ge=1, description="Number of different examples.")
    loose: float = Field(
        default=0.0, ge=0, le=1, description="Chance that a side of a training box lies one cell too far out."
    )
    seed: int = Field(default=0, description="Seed of the scenes; another one gives held-out scenes.")


class PromptSection(Section):
    kind: Literal["repetition", "language", "format", "json"] = Field(
        description="What the prompts elicit; it is also the task of the rows."
    )
    size: int = Field(default=4096, ge=1, description="Number of examples.")
    seed: int = Field(default=0, description="Seed of the prompts; another one gives held-out prompts.")


class DataSection(Section):
    path: str | None = Field(
        default=None, description="JSONL, JSON or Parquet file, folder of `datasets`, or hub name."
    )
    scenes: SceneSection | None = Field(default=None, description="Instead of a path: drawn scenes.")
    prompts: PromptSection | None = Field(
        default=None, description="Instead of a path: generated prompts that elicit what general RL penalises."
    )
    stage: str | None = Field(
        default=None, description="Instead of a path: what an earlier `answers` stage of this recipe kept."
    )
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
    allow_urls: StrictBool = Field(default=False, description="Fetch http(s) images; refused otherwise.")
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
    thinking: StrictBool | None = Field(
        default=None, description="True: every answer must hold <think>; false: none may."
    )
    limit: int | None = Field(default=None, ge=1, description="Use the first rows only.")

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if sum(x is not None for x in (self.path, self.scenes, self.prompts, self.stage)) != 1:
            raise ValueError(
                "give exactly one of 'path' (a data set), 'scenes' (drawn scenes), 'prompts' (generated prompts) and "
                "'stage' (answers)"
            )
        return self


class RewardItem(Section):
    name: str = Field(description="Registered reward, or module:function of your own.")
    weight: float = Field(default=1.0, description="Factor in the task's sum.")
    label: str = Field(default="", description="Its name in metrics and the report; default: its own name.")
    gate: StrictBool | float = Field(
        default=False,
        description="Of gate_by_correctness: bonuses are paid where this reward is full; a number: from there on.",
    )
    options: dict[str, Any] = Field(default={}, description="The reward's options.")


class TaskSection(Section):
    rewards: list[RewardItem] = Field(min_length=1, description="Rewards that make the task's score.")
    answer: Literal["marked", "tagged", "last_boxed", "last_line", "after_think", "whole"] | None = Field(
        default=None, description="What counts as the answer; null leaves it to each reward."
    )
    aggregation: Literal["weighted_sum", "gate_by_correctness", "normalise_then_sum"] = Field(
        default="weighted_sum",
        description="Sum; sum whose bonuses a gate must open; or each reward normalised in its group (GDPO).",
    )
    clip: tuple[float, float] | None = Field(default=None, description="Lowest and highest score.")
    truncated: Literal["score", "zero", "unscored"] = Field(
        default="score",
        description="What an answer that met the token limit earns; unscored leaves the group's statistics.",
    )
    error: Literal["unscored"] | float = Field(
        default="unscored",
        description="What an answer earns for which a reward with a weight has no verdict: no score, or this number.",
    )
    deadline_s: float | None = Field(
        default=None, gt=0, description="Seconds of one verdict (of a function: one call); default: each reward's own."
    )
    min_scored: int = Field(
        default=2, ge=1, description="Groups with fewer scores than this are dropped and counted (thin_group_frac)."
    )


class EnvironmentSection(Section):
    name: str = Field(description="Registered environment, or module:Class of your own.")
    options: dict[str, Any] = Field(default={}, description="The environment's options.")
    max_turns: int = Field(
        default=6, ge=1, description="Turns of the policy; an episode that still calls tools in the last is truncated."
    )
    max_images: int = Field(default=8, ge=0, description="Images that tools may show in an episode.")
    timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds of one answer of the environment; later, the episode has no score."
    )


class TeacherSection(Section):
    path: str | None = Field(default=None, description="Checkpoint folder or hub name of a local teacher.")
    stage: str | None = Field(default=None, description="Instead of a path: the model that an earlier stage made.")
    server: str | None = Field(
        default=None, description="Instead of a path: address of a vLLM server, such as http://10.0.0.2:8000."
    )
    student: StrictBool = Field(
        default=False, description="Instead of a path: the student itself without its adapters (self-distillation)."
    )
    solver: str | None = Field(
        default=None,
        description="Instead of a path: a program that plays episodes for `answers`: 'zoom' or module:function.",
    )
    options: dict[str, Any] = Field(default={}, description="Of a solver: its options.")
    revision: str | None = Field(default=None, description="Of a path: branch, tag or commit on the hub.")
    trust_remote_code: StrictBool = Field(default=False, description="Of a path: run code that the checkpoint brings.")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of a path or a stage: what it computes in; default: the model's."
    )
    device: str | None = Field(
        default=None, description="Of a path or a stage: such as cuda:1 or cpu; default: the student's."
    )
    tokens_per_microbatch: int = Field(
        default=8192, ge=1, description="Of a path or a stage: tokens of a forward pass that is not the student's row."
    )
    cache: str | None = Field(
        default=None, description="Folder that keeps its top-k scores of given answers: a second run asks nothing."
    )
    served_model: str | None = Field(default=None, description="Of a server: its model's name; default: its only one.")
    timeout_s: float = Field(default=120.0, gt=0, description="Of a server: seconds that one request may take.")
    retries: int = Field(default=5, ge=0, description="Of a server: further tries, with growing pauses.")
    concurrency: int = Field(default=16, ge=1, description="Of a server: requests in flight.")
    api_key_env: str | None = Field(
        default=None, description="Of a server: environment variable that holds its key; the key is never written down."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "TeacherSection":
        kinds = (self.path, self.stage, self.server, self.solver)
        if sum(kind is not None for kind in kinds) + self.student != 1:
            raise ValueError(
                "give exactly one of 'path' (a checkpoint), 'stage' (of this recipe), 'server' (vLLM's address), "
                "'solver' (a program) and 'student: true' (itself without adapters)"
            )
        return self


class EngineSection(Section):
    kind: Literal["transformers", "vllm", "server"] = Field(
        default="transformers",
        description="What samples the rollouts: the model itself, vLLM in this process, or vLLM servers.",
    )
    servers: list[str] = Field(default=[], description="server: addresses of what `posttrain serve` has started.")
    weights_dir: str | None = Field(
        default=None, description="server: a folder that trainer and servers both see, for weights; default: uploaded."
    )
    broadcast: Literal["gloo", "nccl"] | None = Field(
        default=None,
        description="server: weights from memory to memory, without files: gloo over TCP, nccl between GPUs.",
    )
    broadcast_host: str | None = Field(
        default=None, description="server: this machine's address for a broadcast, as servers reach it; default: found."
    )
    api_key_env: str | None = Field(
        default=None, description="server: environment variable that holds the servers' key; it is never written down."
    )
    timeout_s: float = Field(default=600.0, gt=0, description="server: seconds of one try of one sample.")
    retries: int = Field(default=5, ge=0, description="server: further tries of a sample, on any server.")
    without_servers_s: float = Field(
        default=120.0, ge=0, description="server: seconds without any server before the run stops, all saved."
    )
    concurrency: int = Field(default=256, ge=1, description="server: samples that one server is at.")
    max_batch_tokens: int = Field(
        default=65536, ge=1, description="transformers: prompt and answer tokens sampled at once."
    )
    repeatable: StrictBool = Field(
        default=False,
        description="transformers: wait for all tools before sampling goes on: tool episodes then repeat to the bit.",
    )
    max_model_len: int = Field(default=4096, ge=16, description="vllm: longest prompt with answer.")
    max_num_seqs: int = Field(default=128, ge=1, description="vllm: answers in flight.")
    max_images: int = Field(default=8, ge=1, description="vllm: most images in one prompt.")
    gpu_memory_utilization: float = Field(default=0.4, gt=0, lt=1, description="vllm: share of the GPU's memory.")
    tensor_parallel_size: int = Field(default=1, ge=1, description="vllm: GPUs that share one copy.")
    enforce_eager: StrictBool = Field(default=True, description="vllm: no CUDA graphs; starts faster, decodes slower.")
    sleep: StrictBool = Field(default=True, description="vllm on a GPU: give its memory back while training.")

    @model_validator(mode="after")
    def _servers_belong_to_their_kind(self) -> "EngineSection":
        if (self.kind == "server") != bool(self.servers):
            raise ValueError(
                "kind 'server' and 'servers' (addresses of what `posttrain serve` has started) belong together"
            )
        if self.broadcast is not None and self.kind != "server":
            raise ValueError("'broadcast' is how servers are given weights: it needs kind 'server'")
        if self.broadcast_host is not None and self.broadcast is None:
            raise ValueError("'broadcast_host' needs 'broadcast'")
        return self


class EvaluationSection(Section):
    data: list[DataSection] = Field(min_length=1, description="Held-out rows, measured before and after every stage.")
    num_examples: int = Field(default=128, ge=1, description="Rows of each source.")
    temperatures: list[float] = Field(default=[0.0, 1.0], min_length=1, description="0 is greedy.")
    max_new_tokens: int = Field(default=512, ge=1, description="Longest answer.")
    batch_size: int = Field(default=64, ge=1, description="Prompts at once.")
