"""Packing: whatever comes in, every trained token stands once, after its own context, under the budget."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.model import Budget, ImagePatches, ModelFacts, TokenSequence, pack
from posttrain.model.families import Family

IMAGE = 3
FACTS = ModelFacts(
    family=Family.QWEN3_VL,
    has_vision=True,
    image_token_id=IMAGE,
    video_token_id=4,
    vision_start_token_id=1,
    vision_end_token_id=2,
    merge_size=2,
    patch_size=1,
    temporal_patch_size=1,
    num_deepstack=0,
    hidden_size=8,
    vocab_size=100,
    num_layers=1,
    tied_embeddings=True,
    eos_token_ids=(0,),
    pad_token_id=0,
    coordinates="relative_1000",
    position_rows=3,
)
PICTURES = tuple(
    ImagePatches(pixel_values_PD=torch.zeros(h * w, 3), grid_thw=(1, h, w), key=f"picture {i}")
    for i, (h, w) in enumerate([(2, 2), (2, 4), (4, 4)])
)
NO_LIMIT = Budget(tokens=1 << 40)

pieces = st.lists(st.one_of(st.integers(5, 9), st.sampled_from(PICTURES)), max_size=6)


def spell(parts):
    """Tokens and images of a list of text tokens and pictures."""
    ids, images = [], []
    for part in parts:
        if isinstance(part, ImagePatches):
            ids += [1, *[IMAGE] * part.num_tokens(2), 2]
            images.append(part)
        else:
            ids.append(part)
    return ids, images


def sequence(prefix, own, *, mask=None, value=0.0):
    prefix_ids, prefix_images = spell(prefix)
    own_ids, own_images = spell(own)
    ids = np.array([*prefix_ids, *own_ids], dtype=np.int64)
    trained = np.arange(len(ids)) >= max(len(prefix_ids), 1) if mask is None else mask
    return TokenSequence(
        token_ids=ids,
        mask=trained,
        images=(*prefix_images, *own_images),
        prefix_length=len(prefix_ids),
        streams={"value": (100 * value + np.arange(len(ids))).astype(np.float32)},
    )


@st.composite
def sequences(draw):
    """Sequences under a few prefixes, with masks of any shape and images anywhere."""
    prefixes = draw(st.lists(pieces, min_size=1, max_size=3))
    found = []
    for number in range(draw(st.integers(1, 8))):
        prefix, own = draw(st.sampled_from(prefixes)), draw(pieces)
        length, held = len(spell([*prefix, *own])[0]), len(spell(prefix)[0])
        mask = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)), dtype=bool)
        mask[: max(held, 1)] = False
        found.append(sequence(prefix, own, mask=mask, value=number))
    return found


def context_of(row, position):
    """Tokens, positions and images that the state at `position` of a row has seen, in reading order."""
    (segment,) = [s for s in row.segments if s.start <= position < s.end]
    seen = [*range(segment.prefix_start, segment.prefix_end), *range(segment.start, position + 1)]
    return seen


@given(sequences=sequences(), tokens=st.integers(1, 60), patches=st.integers(1, 60))
@settings(deadline=None)
def test_every_trained_token_stands_once_and_is_predicted_from_exactly_its_own_context(sequences, tokens, patches):
    rows = pack(sequences, FACTS, Budget(tokens=tokens, patches=patches))
    placed = [place for row in rows for place in row.sequence_ids]
    assert sorted(placed) == [place for place, s in enumerate(sequences) if s.mask.any()]
    for row in rows:
        assert row.lengths_S.tolist() == [sequences[place].num_trained for place in row.sequence_ids]
        by_sequence = {}
        for t, s in enumerate(row.sequence_index_T.tolist()):
            by_sequence.setdefault(row.sequence_ids[s], []).append(t)
        for place, trained in by_sequence.items():
            original = sequences[place]
            for t, index in zip(trained, np.flatnonzero(original.mask), strict=True):
                seen = context_of(row, int(row.predictor_T[t]))
                assert row.token_ids_L[seen].tolist() == original.token_ids[:index].tolist()
                assert int(row.targets_T[t]) == original.token_ids[index]
                assert float(row.streams["value"][t]) == original.streams["value"][index]


@given(sequences=sequences(), tokens=st.integers(1, 60))
@settings(deadline=None)
def test_positions_of_a_sequence_in_a_row_are_those_of_the_sequence_alone(sequences, tokens):
    alone = {place: pack([s], FACTS, NO_LIMIT) for place, s in enumerate(sequences)}
    for row in pack(sequences, FACTS, Budget(tokens=tokens)):
        for t, s in enumerate(row.sequence_index_T.tolist()):
            ((own,), seen) = alone[row.sequence_ids[s]], context_of(row, int(row.predictor_T[t]))
            assert torch.equal(row.position_ids_RL[:, seen], own.position_ids_RL[:, : len(seen)])


@given(sequences=sequences(), tokens=st.integers(1, 60))
@settings(deadline=None)
def test_images_of_a_row_are_distinct_and_listed_in_reading_order(sequences, tokens):
    for row in pack(sequences, FACTS, Budget(tokens=tokens)):
        keys = [image.key for image in row.images]
        assert len(keys) == len(set(keys))
        assert set(row.image_order) == set(range(len(keys)))
        counts = [row.images[i].num_tokens(2) for i in row.image_order]
        is_image = (row.token_ids_L == IMAGE).tolist()
        runs = "".join("i" if one else " " for one in is_image).split()
        assert [len(run) for run in runs] == counts


@given(sequences=sequences(), tokens=st.integers(1, 60), patches=st.integers(1, 60))
@settings(deadline=None)
def test_a_row_over_budget_holds_a_single_sequence(sequences, tokens, patches):
    for row in pack(sequences, FACTS, Budget(tokens=tokens, patches=patches)):
        assert (row.num_tokens <= tokens and row.num_patches <= patches) or row.num_sequences == 1


@given(sequences=sequences(), tokens=st.integers(1, 60))
@settings(deadline=None)
def test_packing_is_deterministic(sequences, tokens):
    first, second = (pack(sequences, FACTS, Budget(tokens=tokens)) for _ in range(2))
    assert [row.sequence_ids for row in first] == [row.sequence_ids for row in second]
    assert all(torch.equal(a.token_ids_L, b.token_ids_L) for a, b in zip(first, second, strict=True))


@given(sequences=sequences())
@settings(deadline=None)
def test_segments_cover_a_row_without_gap_or_overlap(sequences):
    for row in pack(sequences, FACTS, NO_LIMIT):
        ends = [0, *(segment.end for segment in row.segments)]
        assert [segment.start for segment in row.segments] == ends[:-1]
        assert ends[-1] == row.num_tokens


def test_a_shared_prompt_and_its_image_stand_once():
    prompt = [5, PICTURES[2], 6]
    group = [sequence(prompt, [7] * n) for n in (3, 2, 4)]
    (row,) = pack(group, FACTS, NO_LIMIT)
    assert row.num_tokens == 8 + 9  # the prompt: two words, two marks, four merged patches
    assert [(s.start, s.end, s.prefix_start, s.prefix_end) for s in row.segments] == [
        (0, 8, 0, 0),
        (8, 11, 0, 8),
        (11, 13, 0, 8),
        (13, 17, 0, 8),
    ]
    assert len(row.images) == 1 and row.image_order == (0,)
    # the first token of each completion is predicted by the prompt's last position
    assert row.predictor_T.tolist() == [7, 8, 9, 7, 11, 7, 13, 14, 15]


def test_a_group_over_budget_is_split_with_its_prompt_repeated():
    group = [sequence([5, 5, 5], [6] * 4) for _ in range(4)]
    rows = pack(group, FACTS, Budget(tokens=11))
    assert [row.num_tokens for row in rows] == [11, 11]
    assert sorted(place for row in rows for place in row.sequence_ids) == [0, 1, 2, 3]


def test_patches_limit_a_row_by_its_distinct_images():
    rows = pack([sequence([PICTURES[0]], [6]), sequence([PICTURES[1]], [6])], FACTS, Budget(tokens=99, patches=8))
    assert [row.num_patches for row in rows] == [8, 4]
    same = [sequence([PICTURES[1]], [6]), sequence([PICTURES[1], 7], [6])]
    assert [row.num_patches for row in pack(same, FACTS, Budget(tokens=99, patches=8))] == [8]


def test_prompts_of_equal_tokens_and_different_images_are_not_shared():
    other = dataclasses.replace(PICTURES[0], key="another picture")
    (row,) = pack([sequence([5, PICTURES[0]], [6]), sequence([5, other], [6])], FACTS, NO_LIMIT)
    assert len(row.images) == 2
    assert all(segment.prefix_start == segment.prefix_end for segment in row.segments)


def test_sequences_with_nothing_to_train_on_are_left_out():
    idle = sequence([5], [6, 7], mask=np.zeros(3, dtype=bool))
    assert pack([idle], FACTS, NO_LIMIT) == []
    (row,) = pack([idle, sequence([5], [6, 7])], FACTS, NO_LIMIT)
    assert row.sequence_ids == (1,)


def test_a_prefix_that_ends_inside_an_image_is_refused():
    ids = np.array([5, IMAGE, IMAGE, 6], dtype=np.int64)
    torn = TokenSequence(token_ids=ids, mask=ids == 6, images=(PICTURES[1],), prefix_length=2)
    with pytest.raises(ValueError, match="ends inside an image"):
        pack([torn], FACTS, NO_LIMIT)


def test_missing_and_superfluous_images_name_both_numbers():
    ids = np.array([5, IMAGE, 6], dtype=np.int64)
    with pytest.raises(ValueError, match=r"1 image tokens, its 0 images"):
        pack([TokenSequence(token_ids=ids, mask=ids == 6)], FACTS, NO_LIMIT)
    with pytest.raises(ValueError, match=r"1 image tokens, its 2 images have 2 merged patches"):
        pack([TokenSequence(token_ids=ids, mask=ids == 6, images=(PICTURES[0],) * 2)], FACTS, NO_LIMIT)
    with pytest.raises(ValueError, match="more image tokens than its sequence has images"):
        pack([TokenSequence(token_ids=ids, mask=ids == 6, prefix_length=2)], FACTS, NO_LIMIT)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mask": np.zeros(2, dtype=bool)}, "mask has 2 entries for 3 tokens"),
        ({"mask": np.ones(3, dtype=bool)}, "first token"),
        ({"prefix_length": 2, "mask": np.array([False, True, True])}, "cannot be trained on"),
        ({"prefix_length": 4}, "shared prefix"),
        ({"streams": {"advantages": np.zeros(2, dtype=np.float32)}}, r"'advantages' has shape \(2,\)"),
    ],
)
def test_a_sequence_that_contradicts_itself_cannot_be_made(changes, complaint):
    fields = {"token_ids": np.arange(5, 8), "mask": np.array([False, False, True])} | changes
    with pytest.raises(ValueError, match=complaint):
        TokenSequence(**fields)


def test_dtypes_are_checked():
    with pytest.raises(TypeError, match="int64"):
        TokenSequence(token_ids=np.zeros(2, dtype=np.int32), mask=np.zeros(2, dtype=bool))


def test_an_image_that_does_not_fill_its_grid_cannot_be_made():
    with pytest.raises(ValueError, match="3 patches do not fill a grid of 1 x 2 x 2"):
        ImagePatches(pixel_values_PD=torch.zeros(3, 3), grid_thw=(1, 2, 2), key="x")


def test_a_stream_that_only_some_sequences_have_is_named():
    full = sequence([5, 6], [7, 8])
    bare = dataclasses.replace(full, streams={})
    assert full.streams
    with pytest.raises(ValueError, match=f"only some of the sequences have the stream '{min(full.streams)}'"):
        pack([full, bare], FACTS, NO_LIMIT)


def in_lane(sequence, lane, width=0):
    tables = {"ids": np.arange(sequence.num_trained * width, dtype=np.int32).reshape(-1, width)} if width else {}
    return dataclasses.replace(sequence, lane=lane, tables=tables)


def test_sequences_of_different_lanes_never_share_a_row_nor_a_prefix():
    same = [sequence([5, 6], [7, 8]) for _ in range(4)]
    rows = pack([in_lane(s, i % 2) for i, s in enumerate(same)], FACTS, NO_LIMIT)
    assert sorted((row.lane, row.sequence_ids) for row in rows) == [(0, (0, 2)), (1, (1, 3))]
    assert [row.num_tokens for row in rows] == [2 + 2 * 2] * 2


def test_a_row_brings_the_tables_of_its_trained_tokens_in_their_own_dtype():
    rows = pack([in_lane(sequence([5], own), 0, width=3) for own in ([7, 8], [9])], FACTS, NO_LIMIT)
    (row,) = rows
    assert row.tables["ids"].dtype == torch.int32
    parts = row.tables["ids"].split(row.lengths_S.tolist())
    for place, part in zip(row.sequence_ids, parts, strict=True):
        assert part.tolist() == [[3 * t, 3 * t + 1, 3 * t + 2] for t in range(2 - place)]


def test_each_lane_has_tables_of_its_own():
    rows = pack([in_lane(sequence([5], [7]), 0, width=2), in_lane(sequence([5], [7]), 1)], FACTS, NO_LIMIT)
    assert sorted((row.lane, len(row.tables)) for row in rows) == [(0, 1), (1, 0)]
    with pytest.raises(ValueError, match="only some of the sequences have the stream 'ids'"):
        pack([in_lane(sequence([5], [7]), 0, width=2), in_lane(sequence([5], [7]), 0)], FACTS, NO_LIMIT)


def test_a_table_has_one_row_for_each_trained_token():
    with pytest.raises(ValueError, match=r"table 'ids' has shape \(1, 2\) for 2 trained tokens"):
        dataclasses.replace(sequence([5], [7, 8]), tables={"ids": np.zeros((1, 2), dtype=np.int32)})
