"""Sequences to ask teachers about, and a teacher that counts what it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from posttrain.model import ImagePatches, TokenSequence

from posttrain.teachers.teacher import TopScores


def text(length: int, *, trained: int = 3, seed: int = 0) -> TokenSequence:
    """Bytes, the last `trained` of which are trained on."""
    ids = np.random.default_rng(seed).integers(20, 200, length)
    return TokenSequence(token_ids=ids, mask=np.arange(length) >= length - trained)


def with_picture(sequence: TokenSequence, key: str) -> TokenSequence:
    """With an image, for those who look at no more than its key."""
    return replace(sequence, images=(ImagePatches(pixel_values_PD=torch.zeros(4, 2), grid_thw=(1, 2, 2), key=key),))


@dataclass
class CountingTeacher:
    """Scores that are a function of the sequence alone; `asked` holds what it was asked for."""

    name: str = "big"
    identity: str = "abc"
    context: int = 1000
    vocab_size: int = 60
    asked: list[list[TokenSequence]] = field(default_factory=list)
    closed: bool = False

    def distribution(self, sequence: TokenSequence) -> np.ndarray:
        """[N, V] float64 log-probabilities."""
        seed = [*sequence.token_ids.tolist(), *(len(image.key) for image in sequence.images)]
        logits = np.random.default_rng(seed).normal(0, 4, (sequence.num_trained, self.vocab_size))
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def top_scores(self, sequences: Sequence[TokenSequence], top_k: int) -> list[TopScores]:
        self.asked.append(list(sequences))
        return [self._scores(sequence, top_k) for sequence in sequences]

    def _scores(self, sequence: TokenSequence, top_k: int) -> TopScores:
        logprobs = self.distribution(sequence)
        order = np.argsort(-logprobs, axis=1)
        ranked = np.take_along_axis(logprobs, order, axis=1)
        return TopScores(
            token_ids_NK=order[:, :top_k].astype(np.int32),
            logprobs_NK=ranked[:, :top_k].astype(np.float32),
            tail_N=np.logaddexp.reduce(ranked[:, top_k:], axis=1, initial=-np.inf).astype(np.float32),
        )

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        self.asked.append(list(sequences))
        return [self.distribution(s)[:, 0].astype(np.float32) for s in sequences]

    def close(self) -> None:
        self.closed = True
