"""The stages of a recipe: what each algorithm may be told, with its defaults."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from posttrain.config.sections import DataSection, ModelSection, Part, Section


class _Stage(Section):
    """What every stage has."""

    data: list[DataSection] = Field(default=[], description="Sources, mixed in every batch by their ratios.")
    batch_size: int = Field(default=16, ge=1, description="Examples of a step over all processes; for RL prompts.")
    max_length: int = Field(default=8192, ge=2, description="Longer examples are dropped whole, counted and named.")


class _TrainingStage(_Stage):
    """What every stage that trains has."""

    start: str | None = Field(
        default=None, description="Start from what this earlier stage made; default: the stage before."
    )
    model: ModelSection | None = Field(
        default=None, description="Start from this model instead of a stage's, such as a student beside its teacher."
    )
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
    gradient_checkpointing: StrictBool = Field(default=False, description="Less memory for about a third more time.")
    tokens_per_microbatch: int = Field(default=8192, ge=1, description="Language-model tokens of one forward pass.")
    patches_per_microbatch: int | None = Field(default=None, ge=1, description="Vision patches of one forward pass.")
    checkpoint_every: int = Field(
        default=100, ge=0, description="Steps between checkpoints; 0 keeps only the last state."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Older checkpoints are deleted.")
    record_trajectories: int = Field(default=4, ge=0, description="Trajectories a step that are kept for the report.")

    @model_validator(mode="after")
    def _one_length(self) -> "_TrainingStage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        if self.start is not None and self.model is not None:
            raise ValueError("give 'start' (a stage) or 'model' (a checkpoint), not both")
        return self


class _TaughtStage(_TrainingStage):
    """What every stage has in which a teacher's distribution may join the loss."""

    teachers: dict[str, str] = Field(
        default={}, description="Task: name of its teacher; default: the recipe's only teacher, for every task."
    )
    distill_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of the divergence from the teacher in the loss; 0 asks no teacher."
    )
    beta: float = Field(
        default=1.0, ge=0, le=1, description="0: forward KL; 1: reverse KL; between: generalised Jensen-Shannon."
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Compare k tokens and one bucket for all others; null: the whole vocabulary (local teachers only).",
    )
    support: Literal["teacher", "student"] = Field(
        default="teacher", description="With top_k: whose likeliest tokens; the student's want a local teacher."
    )

    @model_validator(mode="after")
    def _support_of_something(self) -> "_TaughtStage":
        if self.support == "student" and self.top_k is None:
            raise ValueError("support: student chooses the tokens of top_k; set top_k, such as 64")
        return self


class SFTStage(_TrainingStage):
    algorithm: Literal["sft"] = "sft"
    reduction: Literal["token_mean", "sequence_mean"] = Field(
        default="token_mean", description="What counts alike: every trained token, or every sequence."
    )


class _PolicyStage(_TaughtStage):
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
    teacher_advantage: float = Field(
        default=0.0,
        ge=0,
        description="Adds this times log p_teacher - log p_student of each sampled token to its advantage.",
    )


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


class OffPolicyDistillStage(_TaughtStage):
    """The teacher's distribution on given answers."""

    algorithm: Literal["distill_off_policy"] = "distill_off_policy"
    distill_coefficient: float = Field(default=1.0, gt=0, description="Weight of the divergence in the loss.")
    beta: float = Field(
        default=0.0, ge=0, le=1, description="0: forward KL; 1: reverse KL; between: generalised Jensen-Shannon."
    )
    sft_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of the given tokens' negative log-likelihood in the loss."
    )
    temperature: float = Field(default=1.0, gt=0, description="Divides the logits of student and teacher.")
    reduction: Literal["token_mean", "sequence_mean"] = Field(
        default="token_mean", description="What counts alike: every trained token, or every sequence."
    )

    @model_validator(mode="after")
    def _likelihood_at_one(self) -> "OffPolicyDistillStage":
        if self.sft_coefficient and self.temperature != 1.0:
            raise ValueError("sft_coefficient counts likelihoods at temperature 1: set temperature to 1, or this to 0")
        return self


class OnPolicyDistillStage(_TaughtStage):
    """The teacher's distribution on what the student says. For task rewards beside it: an RL stage with
    distill_coefficient."""

    algorithm: Literal["distill_on_policy"] = "distill_on_policy"
    distill_coefficient: float = Field(default=1.0, gt=0, description="Weight of the divergence in the loss.")
    learning_rate: float = Field(default=1e-6, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="After the warm-up.")
    group_size: int = Field(default=1, ge=1, description="Answers to each prompt; its prompt is forwarded once.")
    mini_batches: int = Field(default=1, ge=1, description="Optimiser steps on each batch of rollouts.")
    max_new_tokens: int = Field(
        default=1024, ge=1, description="Longest answer; one that is cut off here is trained on like any other."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Of sampling, and divides the logits of student and teacher."
    )
    reduction: Literal["token_mean", "sequence_mean"] = Field(
        default="token_mean", description="What counts alike: every trained token, or every sequence."
    )


class AnswersStage(_Stage):
    """The teacher answers prompts once; what rewards let through is kept as a data set. Trains nothing."""

    algorithm: Literal["answers"] = "answers"
    batch_size: int = Field(default=64, ge=1, description="Prompts at once.")
    teachers: dict[str, str] = Field(
        default={}, description="Task: name of its teacher; default: the recipe's only teacher, for every task."
    )
    prompts: int | None = Field(default=None, ge=1, description="How many prompts, mixed by ratio; default: every row.")
    answers_per_prompt: int = Field(default=1, ge=1, description="Answers to each prompt.")
    thinking: Literal["template", "on", "off", "mixed"] = Field(
        default="template", description="enable_thinking of the teacher's template; mixed asks some prompts each way."
    )
    thinking_frac: float = Field(default=0.5, ge=0, le=1, description="With mixed: share of prompts asked to think.")
    temperature: float = Field(default=0.7, ge=0, description="Of sampling; 0 takes the most likely token.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Of sampling.")
    top_k: int = Field(default=0, ge=0, description="Of sampling; 0 keeps every token.")
    max_new_tokens: int = Field(default=1024, ge=1, description="Longest answer; one that is cut off is not kept.")
    min_reward: float | None = Field(
        default=None, description="Keep answers that earn at least this; null keeps every finished one."
    )
    keep_per_prompt: int | None = Field(default=None, ge=1, description="Keep so many of a prompt, the best first.")


PolicyStage = SAPOStage | GRPOStage | GSPOStage
DistillStage = OffPolicyDistillStage | OnPolicyDistillStage
TrainingStage = SFTStage | PolicyStage | DistillStage
Stage = Annotated[
    SFTStage | OffPolicyDistillStage | OnPolicyDistillStage | SAPOStage | GRPOStage | GSPOStage | AnswersStage,
    Field(discriminator="algorithm"),
]
