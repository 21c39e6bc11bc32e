"""Shared-prefix packing: sequences of one prompt become one row in which the prompt, and each image, stands once.

A row is `[p1 | c11 | ... | c1G | p2 | c21 ...]`, without padding. Segment attention lets a completion see its own
prompt and itself; the first token of every completion is predicted by the prompt's last position, so that a gather
`hidden[predictor]` replaces the shift of labels, and its backward sums the G gradients into the prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .families import ModelFacts
from .positions import rope_positions
from .sequences import ImagePatches, TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens [start, end) of a row: they see the row's [prefix_start, prefix_end) and, causally, themselves."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one micro-batch may hold. A single sequence that exceeds it still gets a row of its own."""

    tokens: int
    """Language-model tokens, a shared prefix counted once."""
    patches: int = 1 << 62
    """Vision patches of distinct images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """One micro-batch. L packed tokens, T trained tokens in it, S sequences, R position rows."""

    token_ids_L: Tensor
    position_ids_RL: Tensor
    segments: tuple[Segment, ...]
    images: tuple[ImagePatches, ...]
    """Distinct images, each forwarded once."""
    image_order: tuple[int, ...]
    """For every occurrence in the row, in order: its place in `images`."""
    predictor_T: Tensor
    """Row position whose hidden state predicts each trained token."""
    targets_T: Tensor
    sequence_index_T: Tensor
    """0 .. S-1: the sequence of each trained token."""
    lengths_S: Tensor
    """Trained tokens of each sequence."""
    sequence_ids: tuple[int, ...]
    """For each of the S sequences: its place in the list that was packed."""
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    """Named [T] float32."""
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    """Named [T, columns], of the dtype they came in."""
    lane: int = 0
    """The lane of all of the row's sequences."""

    @property
    def num_tokens(self) -> int:
        return self.token_ids_L.shape[0]

    @property
    def num_sequences(self) -> int:
        return len(self.sequence_ids)

    @property
    def num_patches(self) -> int:
        return sum(image.num_patches for image in self.images)

    def to(self, device: torch.device) -> "PackedRow":
        """The same row with its index tensors and streams on `device`; pixels move when the vision tower reads them."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return PackedRow(
            token_ids_L=move(self.token_ids_L),
            position_ids_RL=move(self.position_ids_RL),
            segments=self.segments,
            images=self.images,
            image_order=self.image_order,
            predictor_T=move(self.predictor_T),
            targets_T=move(self.targets_T),
            sequence_index_T=move(self.sequence_index_T),
            lengths_S=move(self.lengths_S),
            sequence_ids=self.sequence_ids,
            streams={name: move(stream) for name, stream in self.streams.items()},
            tables={name: move(table) for name, table in self.tables.items()},
            lane=self.lane,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Sequences under one prefix: `ids` are their places in the list, `prefix_images` counts the prefix's images."""

    ids: tuple[int, ...]
    prefix_length: int
    prefix_images: int
    tokens: int
    images: Mapping[str, int]
    """Patches of each distinct image, by key."""
    lane: int


def pack(sequences: Sequence[TokenSequence], facts: ModelFacts, budget: Budget) -> list[PackedRow]:
    """Rows that together hold every sequence with a trained token, under the budget; first-fit, longest first.

    Deterministic. Sequences with nothing to train on are left out; a row holds one lane. A group larger than the budget
    is split over rows, its prefix repeated in each. Raises ValueError where image tokens and patches differ.
    """
    _check_streams(sequences)
    groups = [part for group in _groups(sequences, facts) for part in _split(group, sequences, budget)]
    groups.sort(key=lambda group: -group.tokens)
    bins: list[tuple[list[_Group], int, dict[str, int]]] = []
    for group in groups:
        for place, (members, tokens, images) in enumerate(bins):
            merged = {**images, **group.images}
            if members[0].lane != group.lane:
                continue
            if tokens + group.tokens <= budget.tokens and sum(merged.values()) <= budget.patches:
                members.append(group)
                bins[place] = (members, tokens + group.tokens, merged)
                break
        else:
            bins.append(([group], group.tokens, dict(group.images)))
    return [_row(members, sequences, facts) for members, _, _ in bins]


def _check_streams(sequences: Sequence[TokenSequence]) -> None:
    """Rows have one set of streams and tables: raises ValueError naming one that only some sequences bring."""
    by_lane: dict[int, list[frozenset[str]]] = {}
    for sequence in sequences:
        if sequence.mask.any():
            by_lane.setdefault(sequence.lane, []).append(frozenset(sequence.streams) | frozenset(sequence.tables))
    for names in by_lane.values():
        if odd := frozenset().union(*names) - frozenset.intersection(*names):
            raise ValueError(f"only some of the sequences have the stream '{min(odd)}'; give it to all or to none")


def _groups(sequences: Sequence[TokenSequence], facts: ModelFacts) -> Iterable[_Group]:
    by_prefix: dict[object, list[int]] = {}
    prefix_images: dict[object, int] = {}
    for place, sequence in enumerate(sequences):
        if not sequence.mask.any():
            continue
        prefix = sequence.token_ids[: sequence.prefix_length]
        held = _images_within(prefix, sequence, facts)
        shown = tuple(image.key for image in sequence.images[:held])
        key: object = (sequence.lane, prefix.tobytes(), shown) if len(prefix) else place
        by_prefix.setdefault(key, []).append(place)
        prefix_images[key] = held
    for key, ids in by_prefix.items():
        length = sequences[ids[0]].prefix_length if len(ids) > 1 else 0  # alone, a sequence is one plain segment
        yield _group(ids, length, prefix_images[key] if len(ids) > 1 else 0, sequences)


def _group(ids: Sequence[int], prefix_length: int, prefix_images: int, sequences: Sequence[TokenSequence]) -> _Group:
    tokens = prefix_length + sum(sequences[i].num_tokens - prefix_length for i in ids)
    images = {image.key: image.num_patches for i in ids for image in sequences[i].images}
    return _Group(
        ids=tuple(ids),
        prefix_length=prefix_length,
        prefix_images=prefix_images,
        tokens=tokens,
        images=images,
        lane=sequences[ids[0]].lane,
    )


def _images_within(prefix: np.ndarray, sequence: TokenSequence, facts: ModelFacts) -> int:
    """How many of the sequence's images the prefix holds whole; ValueError where it ends inside one."""
    remaining = int((prefix == facts.image_token_id).sum()) if facts.image_token_id is not None else 0
    held = 0
    while remaining > 0:
        if held == len(sequence.images):
            raise ValueError("a shared prefix holds more image tokens than its sequence has images for")
        remaining -= sequence.images[held].num_tokens(facts.merge_size)
        held += 1
    if remaining < 0:
        raise ValueError("a shared prefix ends inside an image; end it before or after")
    return held


def _split(group: _Group, sequences: Sequence[TokenSequence], budget: Budget) -> Iterable[_Group]:
    if (group.tokens <= budget.tokens and sum(group.images.values()) <= budget.patches) or len(group.ids) == 1:
        yield group
        return
    part: list[int] = []
    for i in sorted(group.ids, key=lambda i: -sequences[i].num_tokens):
        grown = _group([*part, i], group.prefix_length, group.prefix_images, sequences)
        if part and (grown.tokens > budget.tokens or sum(grown.images.values()) > budget.patches):
            yield _group(part, group.prefix_length, group.prefix_images, sequences)
            part = []
        part.append(i)
    yield _group(part, group.prefix_length, group.prefix_images, sequences)


def _row(groups: Sequence[_Group], sequences: Sequence[TokenSequence], facts: ModelFacts) -> PackedRow:
    tokens, positions, segments, predictors, targets, indices = [], [], [], [], [], []
    images: list[ImagePatches] = []
    order: list[int] = []
    place_of: dict[str, int] = {}
    chosen: list[int] = []
    offset = 0

    def add(ids: np.ndarray, held: Sequence[ImagePatches], start: int) -> int:
        """Appends one segment's tokens, positions and images; returns the position that follows."""
        for image in held:
            if image.key not in place_of:
                place_of[image.key] = len(images)
                images.append(image)
            order.append(place_of[image.key])
        where, following = rope_positions(
            ids,
            [image.grid_thw for image in held],
            image_token_id=facts.image_token_id,
            merge_size=facts.merge_size,
            rows=facts.position_rows,
            start=start,
        )
        tokens.append(ids)
        positions.append(where)
        return following

    for group in groups:
        first = sequences[group.ids[0]]
        prefix, prefix_start, following = group.prefix_length, offset, 0
        if prefix:
            following = add(first.token_ids[:prefix], first.images[: group.prefix_images], 0)
            segments.append(Segment(start=offset, end=offset + prefix))
            offset += prefix
        for i in group.ids:
            sequence = sequences[i]
            own = sequence.token_ids[prefix:]
            add(own, sequence.images[group.prefix_images :], following)
            segments.append(
                Segment(
                    start=offset,
                    end=offset + len(own),
                    prefix_start=prefix_start,
                    prefix_end=prefix_start + prefix,
                )
            )
            trained = np.flatnonzero(sequence.mask[prefix:])
            before = trained + offset - 1
            if prefix:  # what follows the prefix at once is predicted by the prefix's last position
                before[trained == 0] = prefix_start + prefix - 1
            predictors.append(before)
            targets.append(own[trained])
            indices.append(np.full(len(trained), len(chosen), dtype=np.int64))
            chosen.append(i)
            offset += len(own)
    names = sequences[chosen[0]].streams.keys()
    return PackedRow(
        token_ids_L=torch.from_numpy(np.concatenate(tokens)),
        position_ids_RL=torch.from_numpy(np.concatenate(positions, axis=1)),
        segments=tuple(segments),
        images=tuple(images),
        image_order=tuple(order),
        predictor_T=torch.from_numpy(np.concatenate(predictors)),
        targets_T=torch.from_numpy(np.concatenate(targets)),
        sequence_index_T=torch.from_numpy(np.concatenate(indices)),
        lengths_S=torch.tensor([sequences[i].num_trained for i in chosen]),
        sequence_ids=tuple(chosen),
        streams={
            name: torch.from_numpy(
                np.concatenate([sequences[i].streams[name][sequences[i].mask] for i in chosen]).astype(np.float32)
            )
            for name in names
        },
        tables={
            name: torch.from_numpy(np.concatenate([sequences[i].tables[name] for i in chosen]))
            for name in sequences[chosen[0]].tables
        },
        lane=groups[0].lane,
    )
