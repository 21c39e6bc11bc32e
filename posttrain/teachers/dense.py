"""What teachers in this process have in common: whole distributions for packed rows, and scores for sequences."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.errors import TeacherError
from posttrain.model import Budget, ModelFacts, PackedPolicy, PackedRow, TokenSequence
from posttrain.model.matching import DenseReference
from posttrain.teachers.teacher import TopScores


class DenseTeacher(ABC):
    """A `Teacher` that has more to give than scores: the hidden states and the head that make its distribution."""

    def __init__(self, name: str, *, identity: str, budget: Budget, vocab_size: int | None) -> None:
        self._name, self._identity, self._budget, self._vocab_size = name, identity, budget, vocab_size
        self._head_copy: Tensor | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        return self._identity

    @property
    @abstractmethod
    def context(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _asked(self) -> AbstractContextManager[PackedPolicy]:
        """The model as it has to be while it is asked."""

    def _why_blind(self, facts: ModelFacts) -> str | None:
        """What is wrong with the student's images for this teacher."""
        return None

    @torch.no_grad()
    def dense(self, row: PackedRow) -> DenseReference:
        """Its whole distribution at the row's trained tokens, on the row's device, in its own dtype.

        The student's row is forwarded as it is: shared prefixes, images and all. Raises TeacherError for images that it
        cannot see, and for hidden states that are not finite.
        """
        with self._asked() as policy:
            self._check_sees(policy.facts, bool(row.images))
            weight_VH = head_of(policy)
            if isinstance(weight_VH, DTensor):
                raise TeacherError(
                    f"teacher '{self.name}': its weights are cut into shards, so that it has no head to compare with; "
                    "give the student's first checkpoint as the teacher's path"
                )
            hidden_TH = policy.hidden_states(_own_row(row, policy.facts).to(weight_VH.device))
        if not torch.isfinite(hidden_TH).all():
            raise TeacherError(self._overflow(hidden_TH.dtype))
        device = row.token_ids_L.device
        return DenseReference(hidden_TH=hidden_TH.to(device), weight_VH=self._head_on(weight_VH, device))

    def top_scores(self, sequences: Sequence[TokenSequence], top_k: int) -> list[TopScores]:
        found = [_no_scores(top_k)] * len(sequences)
        places = [place for place, sequence in enumerate(sequences) if sequence.num_trained]
        with self._asked() as policy:
            asked = self._plain([sequences[place] for place in places], policy.facts)
            rows = policy.facts.vocab_size
            shared = min(rows, self._vocab_size or rows)
            if top_k > shared:
                raise TeacherError(f"teacher '{self.name}' has {shared} tokens to choose from, top_k {top_k} is more")
            # Padded rows that the student lacks are never its tokens: as many more are asked as may be in the way.
            answers = policy.top_logprobs(asked, self._budget, top_k + rows - shared)
            dtype = next(policy.model.parameters()).dtype
        for place, (ids_NK, logprobs_NK, tail_N, _) in zip(places, answers, strict=True):
            if not torch.isfinite(logprobs_NK).all() or torch.isnan(tail_N).any():
                raise TeacherError(self._overflow(dtype))
            found[place] = _leading(ids_NK.numpy(), logprobs_NK.numpy(), tail_N.numpy(), top_k, shared)
        return found

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        with self._asked() as policy:
            answers = policy.logprobs(self._plain(sequences, policy.facts), self._budget)
            dtype = next(policy.model.parameters()).dtype
        if not all(torch.isfinite(answer).all() for answer in answers):
            raise TeacherError(self._overflow(dtype))
        return [answer.numpy() for answer in answers]

    def _plain(self, sequences: Sequence[TokenSequence], facts: ModelFacts) -> list[TokenSequence]:
        """The sequences without what is the student's alone, which would only be packed along."""
        for sequence in sequences:
            self._check_sees(facts, bool(sequence.images))
            if sequence.num_tokens > self.context:
                raise TeacherError(
                    f"teacher '{self.name}' reads {self.context} tokens, a sequence has {sequence.num_tokens}; lower "
                    "max_length, or choose a teacher with a longer context"
                )
        return [replace(sequence, streams={}, tables={}, lane=0) for sequence in sequences]

    def _check_sees(self, facts: ModelFacts, has_images: bool) -> None:
        if has_images and (fault := self._why_blind(facts)):
            raise TeacherError(f"teacher '{self.name}' {fault}")

    def _head_on(self, weight_VH: Tensor, device: torch.device) -> Tensor:
        """A head on another device is copied once, not for every row."""
        if weight_VH.device == device:
            return weight_VH
        if self._head_copy is None or self._head_copy.device != device:
            self._head_copy = weight_VH.to(device)
        return self._head_copy

    def _overflow(self, dtype: torch.dtype) -> str:
        hint = (
            "its weights are damaged" if dtype == torch.float32 else "values may overflow there: set its dtype float32"
        )
        return f"teacher '{self.name}' gives numbers that are not finite in {str(dtype).removeprefix('torch.')}; {hint}"


def head_of(policy: PackedPolicy) -> Tensor:
    """[V, H] the weight that makes logits of hidden states, without gradients."""
    head = policy.base_model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head.weight.detach()


def _own_row(row: PackedRow, facts: ModelFacts) -> PackedRow:
    """The row with as many position rows as the model wants; without images they are all alike."""
    positions = row.position_ids_RL
    if len(positions) != facts.position_rows:
        positions = positions[:1].expand(facts.position_rows, -1)
    return replace(row, position_ids_RL=positions, streams={}, tables={})


def _leading(ids_NK: np.ndarray, logprobs_NK: np.ndarray, tail_N: np.ndarray, top_k: int, vocab_size: int) -> TopScores:
    """The first `top_k` that are below `vocab_size`; all others join the tail."""
    if ids_NK.shape[1] > top_k:
        order_NK = np.argsort(ids_NK >= vocab_size, axis=1, kind="stable")
        ids_NK = np.take_along_axis(ids_NK, order_NK, axis=1)
        logprobs_NK = np.take_along_axis(logprobs_NK, order_NK, axis=1)
        others = np.concatenate([logprobs_NK[:, top_k:], tail_N[:, None]], axis=1)
        tail_N = np.logaddexp.reduce(others, axis=1)
    return TopScores(
        token_ids_NK=np.ascontiguousarray(ids_NK[:, :top_k], dtype=np.int32),
        logprobs_NK=np.ascontiguousarray(logprobs_NK[:, :top_k], dtype=np.float32),
        tail_N=tail_N.astype(np.float32),
    )


def _no_scores(top_k: int) -> TopScores:
    """Of a sequence that trains nothing."""
    return TopScores(
        token_ids_NK=np.empty((0, top_k), dtype=np.int32),
        logprobs_NK=np.empty((0, top_k), dtype=np.float32),
        tail_N=np.empty(0, dtype=np.float32),
    )
