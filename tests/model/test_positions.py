"""Rotary positions against transformers' own `get_rope_index`, and what is said of image tokens that do not fit."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from posttrain.model.positions import image_spans, rope_positions

from tests.model.draws import WITH_VISION, load

IMAGE, MERGE = 5, 2
sides = st.integers(1, 6).map(lambda merged: 2 * merged)
grids = st.lists(st.tuples(st.just(1), sides, sides), max_size=4)
gaps = st.lists(st.integers(0, 5), min_size=5, max_size=5)


def sequence(grids, gaps, image_token=IMAGE, start_token=6):
    """Text of the given lengths around the images, each after a start mark."""
    parts = [np.full(gaps[0], 9)]
    for (t, h, w), gap in zip(grids, gaps[1:], strict=False):
        parts += [[start_token], np.full(t * h * w // MERGE**2, image_token), np.full(gap, 9)]
    return np.concatenate([*parts, [9]]).astype(np.int64)


def rope(ids, grids, **options):
    return rope_positions(ids, grids, image_token_id=IMAGE, merge_size=MERGE, **options)


@pytest.mark.parametrize("family", WITH_VISION)
@given(grids=grids, gaps=gaps)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_positions_equal_get_rope_index(family, tiny_checkpoint, grids, gaps):
    model, facts = loaded(family, tiny_checkpoint)
    ids = sequence(grids, gaps, facts.image_token_id, facts.vision_start_token_id)
    ours, following = rope_positions(
        ids, grids, image_token_id=facts.image_token_id, merge_size=facts.merge_size, rows=facts.position_rows
    )
    ids_1T = torch.from_numpy(ids)[None]
    theirs, _ = model.model.get_rope_index(
        ids_1T,
        mm_token_type_ids=(ids_1T == facts.image_token_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
        attention_mask=torch.ones_like(ids_1T),
    )
    assert np.array_equal(ours, theirs[:, 0].numpy())
    assert following == int(theirs.max()) + 1  # text ends the sequence


_loaded = {}


def loaded(family, tiny_checkpoint):
    if family not in _loaded:
        _loaded[family] = load(tiny_checkpoint(family))
    return _loaded[family]


@given(grids=grids, gaps=gaps, start=st.integers(0, 1000))
def test_a_start_shifts_every_position_and_the_one_that_follows(grids, gaps, start):
    ids = sequence(grids, gaps)
    plain, following = rope(ids, grids)
    shifted, shifted_following = rope(ids, grids, start=start)
    assert np.array_equal(shifted, plain + start)
    assert shifted_following == following + start


@given(first=grids, second=grids, gaps=gaps)
def test_a_sequence_may_be_positioned_in_parts(first, second, gaps):
    """The packer's use: a prompt, then a completion which starts where the prompt ended."""
    head, tail = sequence(first, gaps), sequence(second, gaps)
    whole, following = rope(np.concatenate([head, tail]), [*first, *second])
    head_positions, middle = rope(head, first)
    tail_positions, end = rope(tail, second, start=middle)
    assert np.array_equal(whole, np.concatenate([head_positions, tail_positions], axis=1))
    assert end == following


def test_an_image_spans_its_grid_and_advances_by_its_longer_side():
    ids = np.array([9, 9, *[IMAGE] * 6, 9])  # 4 x 6 patches: 2 x 3 tokens
    positions, following = rope(ids, [(1, 4, 6)])
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


def test_a_text_model_counts_tokens():
    positions, following = rope_positions(np.arange(4), image_token_id=None, merge_size=1, rows=1, start=7)
    assert positions.tolist() == [[7, 8, 9, 10]]
    assert following == 11


@given(grids=grids, gaps=gaps)
def test_spans_hold_all_image_tokens_and_nothing_else(grids, gaps):
    ids = sequence(grids, gaps)
    spans = image_spans(ids, grids, image_token_id=IMAGE, merge_size=MERGE)
    assert [end - start for start, end in spans] == [h * w // 4 for _, h, w in grids]
    inside = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        inside[start:end] = True
    assert np.array_equal(inside, ids == IMAGE)


def test_a_wrong_number_of_image_tokens_names_both_numbers():
    with pytest.raises(ValueError, match=r"5 image tokens, its 1 images have 6 merged patches"):
        rope(np.array([9, *[IMAGE] * 5]), [(1, 4, 6)])
    with pytest.raises(ValueError, match=r"1 image tokens, its 0 images have 0"):
        rope(np.array([9, IMAGE]), [])


def test_text_inside_an_image_is_refused():
    with pytest.raises(ValueError, match="interrupted between positions 1 and 5"):
        rope(np.array([9, IMAGE, IMAGE, 9, IMAGE, IMAGE]), [(1, 4, 4)])
