"""What a stage minimises: a pure loss from `algorithms/` bound to its options, and the metrics it is watched by.

The trainer knows only the protocol. A new algorithm is a loss, a surrogate here, and a row in the config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from posttrain.algorithms import (
    Average,
    Reduction,
    average,
    clipped,
    gate,
    gate_histogram,
    gate_metrics,
    grpo_token_losses,
    gspo_token_losses,
    k3_divergence,
    log_ratio_metrics,
    rollout_gap_metrics,
    sapo_token_losses,
    sequence_ratios,
    sft_token_losses,
    truncated_importance_weights,
)
from posttrain.model import HeadOutput, Matching, PackedRow

ADVANTAGES = "advantages"
ROLLOUT_LOGPROBS = "rollout_logprobs"
"""The engine's, when it sampled."""
OLD_LOGPROBS = "old_logprobs"
"""The trainer's, at the weights that sampled; the engine's where they are trusted."""
REFERENCE_LOGPROBS = "reference_logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The trained tokens of a row, or of a chunk of it: what a loss may look at beside the log-probabilities."""

    streams: Mapping[str, Tensor]
    """Named [T] float32."""
    sequence_index_T: Tensor
    num_sequences: int

    @classmethod
    def of(cls, row: PackedRow, span: slice = slice(None)) -> "Tokens":
        return cls(
            streams={name: stream[span] for name, stream in row.streams.items()},
            sequence_index_T=row.sequence_index_T[span],
            num_sequences=row.num_sequences,
        )


class Objective(Protocol):
    """What the trainer asks of an algorithm."""

    @property
    def separable(self) -> bool:
        """True where each token's loss needs that token's log-probability alone."""
        ...

    @property
    def reduction(self) -> Reduction: ...

    @property
    def constant_length(self) -> int:
        """Of `Reduction.CONSTANT`."""
        ...

    @property
    def temperature(self) -> float: ...

    def token_losses(self, logprobs_T: Tensor, tokens: Tokens) -> Tensor:
        """[T] float32 losses, differentiable in the log-probabilities."""
        ...

    def matching(self, row: PackedRow, weights_T: Tensor) -> Matching | None:
        """What the whole distribution of the row's trained tokens is compared with, beside their losses; or None.

        weights_T: what each token counts in the step's loss.
        """
        ...

    def metrics(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Average]: ...

    def histograms(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        """[20] counts over [0, 1], merged by sums."""
        ...

    def shades(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        """[T] numbers that the report colours tokens by, named as in its `TokenStreams`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """Imitate the trained tokens."""

    reduction: Reduction = Reduction.TOKEN_MEAN
    separable: bool = True
    constant_length: int = 1
    temperature: float = 1.0

    def token_losses(self, logprobs_T: Tensor, tokens: Tokens) -> Tensor:
        return sft_token_losses(logprobs_T=logprobs_T)

    def matching(self, row: PackedRow, weights_T: Tensor) -> Matching | None:
        return None

    def metrics(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Average]:
        return {
            "nll": average(-output.logprobs_T),
            "token_accuracy": average(output.is_top1_T.float()),
            "entropy": average(output.entropies_T),
        }

    def histograms(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        return {}

    def shades(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        return {}


class Surrogate(Protocol):
    """A policy-gradient loss per token, and what it wants to show."""

    @property
    def separable(self) -> bool: ...

    def losses(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens) -> Tensor: ...

    def metrics(
        self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens
    ) -> Mapping[str, Average]: ...

    def histograms(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]: ...

    def shades(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sapo:
    tau_positive: float
    tau_negative: float
    separable: bool = True

    def losses(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens) -> Tensor:
        return sapo_token_losses(
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            advantages_T=advantages_T,
            tau_positive=self.tau_positive,
            tau_negative=self.tau_negative,
        )

    def gate(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Tensor:
        return gate(
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            advantages_T=advantages_T,
            tau_positive=self.tau_positive,
            tau_negative=self.tau_negative,
        )

    def metrics(
        self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens
    ) -> Mapping[str, Average]:
        return gate_metrics(self.gate(logprobs_T, old_logprobs_T, advantages_T), advantages_T)

    def histograms(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]:
        gate_T = self.gate(logprobs_T, old_logprobs_T, advantages_T)
        return {
            "gate/positive": gate_histogram(gate_T[advantages_T > 0]),
            "gate/negative": gate_histogram(gate_T[advantages_T < 0]),
        }

    def shades(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]:
        return {"gates_T": self.gate(logprobs_T, old_logprobs_T, advantages_T)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grpo:
    clip_low: float
    clip_high: float
    separable: bool = True

    def losses(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens) -> Tensor:
        return grpo_token_losses(
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            advantages_T=advantages_T,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )

    def metrics(
        self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens
    ) -> Mapping[str, Average]:
        cut_T = clipped(
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            advantages_T=advantages_T,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        return {"clip/frac": average(cut_T.float())}

    def histograms(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]:
        return {}

    def shades(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gspo:
    clip_low: float
    clip_high: float
    separable: bool = False

    def losses(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens) -> Tensor:
        return gspo_token_losses(
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            advantages_T=advantages_T,
            sequence_index_T=tokens.sequence_index_T,
            num_sequences=tokens.num_sequences,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )

    def metrics(
        self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, tokens: Tokens
    ) -> Mapping[str, Average]:
        s_S = sequence_ratios(logprobs_T, old_logprobs_T, tokens.sequence_index_T, tokens.num_sequences)
        outside_S = (s_S < 1 - self.clip_low) | (s_S > 1 + self.clip_high)
        return {"clip/outside_frac": average(outside_S.float())}

    def histograms(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]:
        return {}

    def shades(self, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor) -> Mapping[str, Tensor]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient:
    """A surrogate, weighted for the engine's mismatch, with an optional KL to a reference.

    loss_t = min(pi_old / pi_rollout, cap) * surrogate_t + kl_coefficient * k3_t
    """

    surrogate: Surrogate
    reduction: Reduction = Reduction.SEQUENCE_MEAN
    constant_length: int = 1
    temperature: float = 1.0
    kl_coefficient: float = 0.0
    importance_cap: float | None = None

    @property
    def separable(self) -> bool:
        return self.surrogate.separable

    def token_losses(self, logprobs_T: Tensor, tokens: Tokens) -> Tensor:
        streams = tokens.streams
        losses_T = self.surrogate.losses(logprobs_T, streams[OLD_LOGPROBS], streams[ADVANTAGES], tokens)
        if self.importance_cap is not None:
            losses_T = losses_T * truncated_importance_weights(
                streams[OLD_LOGPROBS], streams[ROLLOUT_LOGPROBS], cap=self.importance_cap
            )
        if self.kl_coefficient:
            losses_T = losses_T + self.kl_coefficient * k3_divergence(logprobs_T, streams[REFERENCE_LOGPROBS])
        return losses_T

    def matching(self, row: PackedRow, weights_T: Tensor) -> Matching | None:
        return None

    def metrics(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Average]:
        streams = tokens.streams
        old_T, advantages_T = streams[OLD_LOGPROBS], streams[ADVANTAGES]
        metrics = dict(self.surrogate.metrics(output.logprobs_T, old_T, advantages_T, tokens))
        metrics |= log_ratio_metrics(output.logprobs_T, old_T, tokens.sequence_index_T, tokens.num_sequences)
        metrics["entropy"] = average(output.entropies_T)
        if self.importance_cap is not None:
            metrics |= rollout_gap_metrics(old_T, streams[ROLLOUT_LOGPROBS])
        if self.kl_coefficient:
            metrics["kl_reference"] = average(k3_divergence(output.logprobs_T, streams[REFERENCE_LOGPROBS]))
        return metrics

    def histograms(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        return self.surrogate.histograms(output.logprobs_T, tokens.streams[OLD_LOGPROBS], tokens.streams[ADVANTAGES])

    def shades(self, output: HeadOutput, tokens: Tokens) -> Mapping[str, Tensor]:
        return self.surrogate.shades(output.logprobs_T, tokens.streams[OLD_LOGPROBS], tokens.streams[ADVANTAGES])
