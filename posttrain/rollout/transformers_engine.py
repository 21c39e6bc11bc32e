"""Sampling from the very model that is trained, through transformers: no copy of the weights, no server."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from posttrain.errors import EngineError
from posttrain.model import ModelFacts, PackedPolicy
from posttrain.rollout.continuous import ContinuousStream
from posttrain.rollout.continuous_passes import ForwardPasses
from posttrain.rollout.engine import Request, Sample, Sampling


class TransformersEngine:
    """Each distinct prompt is prefilled once, with its images, and its samples share its keys and values.

    All samples take a token in one forward pass; requests join them at any time, and samples leave soon after they
    end. The model is in eval mode meanwhile (no dropout, no gradient checkpointing) and goes back to the modes it had.

    max_batch_tokens: keys and values held at a time, in tokens: prompts as long as the longest beside them, and
    max_new_tokens for each of their samples. What does not fit waits; a single sample may exceed it.
    vocab_limit: ids from here on are never sampled; the tokenizer's length, where the head has more rows.
    autocast: the dtype of the trainer's mixed precision, None without it.
    """

    def __init__(
        self,
        policy: PackedPolicy,
        facts: ModelFacts,
        *,
        max_batch_tokens: int = 1 << 17,
        vocab_limit: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.policy, self.facts = policy, facts
        self.max_batch_tokens = max_batch_tokens
        self._passes = ForwardPasses(policy, facts, autocast)
        self._banned_V = torch.zeros(facts.vocab_size, dtype=torch.bool, device=self._passes.device)
        self._banned_V[list(facts.banned_token_ids)] = True
        self._banned_V[facts.vocab_size if vocab_limit is None else vocab_limit :] = True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """`n` samples for every request. Equal seeds give equal samples, whatever the global random state.

        Raises ValueError where image tokens and patches of a prompt differ.
        """
        stream = self.stream(sampling)
        # Prompts of like length run side by side: they are padded to the longest of them.
        for place in sorted(range(len(requests)), key=lambda place: -len(requests[place].token_ids)):
            seed = np.random.SeedSequence([sampling.seed % (1 << 64), place]).generate_state(1, np.uint64)[0]
            stream.add(place, requests[place], max_new_tokens=sampling.max_new_tokens, seed=int(seed))
        samples: dict[tuple[int, int], Sample] = {}
        with self._passes.inference():
            while stream.num_running:
                samples |= {(answer.key, answer.index): answer.sample for answer in stream.poll(0)}
        return [[samples[place, i] for i in range(request.n)] for place, request in enumerate(requests)]

    def stream(self, sampling: Sampling) -> ContinuousStream:
        """Samples of it are of the weights when their request is added: end a stream before weights change."""
        return ContinuousStream(
            self._passes,
            sampling,
            max_batch_tokens=self.max_batch_tokens,
            banned_V=self._banned_V,
        )

    def update_weights(self, policy: nn.Module, version: int) -> None:
        """Notes the version: the weights are the trainer's own. Raises EngineError for another model."""
        if next(policy.parameters()) is not next(self.policy.parameters()):
            raise EngineError("this engine samples from the model it was made with, got another: make a new engine")
        self._passes.weights_version = version

    def rest(self) -> None:
        """Nothing to give back: the model is the trainer's, and the cache is gone."""

    def close(self) -> None:
        """Nothing to free: the model is the trainer's."""
