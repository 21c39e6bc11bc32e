"""The kernels of packed attention: equal to each other and to attention over each segment's context alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.model.attention import Kernel, RowAttention, dense_mask, packed_attention, segment_blocks
from posttrain.model.packing import Segment

CPU = torch.device("cpu")
# FlexAttention has no backward pass on a CPU.
TRAINABLE = (Kernel.SEGMENTS, Kernel.DENSE)


def row_of(*groups):
    """Segments of a row: each group is (prefix length, completion lengths); prefix 0 means plain sequences."""
    segments, offset = [], 0
    for prefix, lengths in groups:
        start = offset
        if prefix:
            segments.append(Segment(start=offset, end=offset + prefix))
            offset += prefix
        for length in lengths:
            segments.append(Segment(start=offset, end=offset + length, prefix_start=start, prefix_end=start + prefix))
            offset += length
    return segments, offset


def draw(num_tokens, *, heads=4, kv_heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(1, n, num_tokens, 16) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def attend(kernel, segments, query, key, value):
    row = RowAttention.of(segments, query.shape[2], CPU, kernel)
    return packed_attention(torch.nn.Module(), query, key, value, None, row_attention=row)[0]


def reference(segments, query, key, value):
    """float64, one segment at a time: its queries over [prefix | own] with a causal mask, by the definition."""
    query, key, value = (x.double() for x in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    outputs = []
    for s in segments:
        seen = [*range(s.prefix_start, s.prefix_end), *range(s.start, s.end)]
        scores = query[:, :, s.start : s.end] @ key[:, :, seen].transpose(2, 3) / query.shape[-1] ** 0.5
        visible = torch.ones(scores.shape[-2:]).tril(len(seen) - (s.end - s.start)) > 0
        outputs.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value[:, :, seen])
    return torch.cat(outputs, 2).transpose(1, 2)


@given(
    groups=st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 20), min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
@settings(max_examples=25, deadline=None)
def test_kernels_equal_attention_over_each_context_alone(groups):
    segments, num_tokens = row_of(*groups)
    query, key, value = draw(num_tokens)
    expected = reference(segments, query, key, value)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    expected_grads = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for kernel in TRAINABLE:
        output = attend(kernel, segments, query, key, value)
        assert torch.allclose(output.double(), expected, atol=2e-6)
        grads = torch.autograd.grad((output * weights).sum(), (query, key, value))
        for found, wanted in zip(grads, expected_grads, strict=True):
            # float32's error of sums of up to 100 terms of about 1; one token alone has gradients of exactly 0
            assert torch.allclose(found.double(), wanted.double(), rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_the_same_keys():
    segments, num_tokens = row_of((30, [5, 9, 1]), (0, [12]), (7, [3, 4]))
    with torch.no_grad():
        qkv = draw(num_tokens)
        assert torch.allclose(attend(Kernel.FLEX, segments, *qkv).double(), reference(segments, *qkv), atol=2e-6)


@pytest.mark.parametrize("kernel", TRAINABLE)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_may_be_grouped_in_any_way(kernel, kv_heads):
    segments, num_tokens = row_of((10, [4, 6]))
    qkv = draw(num_tokens, kv_heads=kv_heads)
    assert torch.allclose(attend(kernel, segments, *qkv).double(), reference(segments, *qkv), atol=2e-6)


@pytest.mark.parametrize("kernel", TRAINABLE)
def test_no_gradient_flows_into_another_completion(kernel):
    segments, num_tokens = row_of((8, [5, 6]), (4, [3, 3]))
    query, key, value = draw(num_tokens)
    output = attend(kernel, segments, query, key, value)
    second = slice(13, 19)
    for grad in torch.autograd.grad(output[:, second].sum(), (key, value)):
        reached = grad.abs().sum((0, 1, 3)) > 0
        assert reached[:8].all() and reached[second].all()  # its prompt and itself
        assert not reached[8:13].any() and not reached[19:].any()


def test_bfloat16_is_close_to_float64():
    segments, num_tokens = row_of((20, [10, 10]))
    qkv = draw(num_tokens, dtype=torch.bfloat16)
    expected = reference(segments, *qkv)
    for kernel in TRAINABLE:
        # bfloat16 keeps 8 bits; outputs are means of values of about 1
        assert torch.allclose(attend(kernel, segments, *qkv).double(), expected, atol=0.03)


def test_completions_under_one_prefix_are_one_block():
    segments, _ = row_of((100, [10, 20, 30]), (0, [5, 5]), (50, [7]))
    own, shared = segment_blocks(segments)[:8], segment_blocks(segments)[8:]
    assert all(block.causal and block.queries == block.keys for block in own)
    assert [(b.queries.start, b.queries.stop, b.keys.start, b.keys.stop, b.causal) for b in shared] == [
        (100, 160, 0, 100, False),
        (220, 227, 170, 220, False),
    ]


def test_the_dense_mask_shows_prefix_and_past():
    segments, num_tokens = row_of((2, [2, 1]))
    assert dense_mask(segments, num_tokens, CPU)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_without_a_row_it_is_ordinary_causal_attention():
    query, key, value = draw(12)
    module = torch.nn.Module()
    module.is_causal = True
    module.num_key_value_groups = 2
    output, _ = packed_attention(module, query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(output, expected.transpose(1, 2), atol=1e-6)


def test_dropout_in_a_packed_row_is_refused():
    segments, num_tokens = row_of((2, [2]))
    row = RowAttention.of(segments, num_tokens, CPU, Kernel.DENSE)
    with pytest.raises(ValueError, match="set attention_dropout to 0"):
        packed_attention(torch.nn.Module(), *draw(num_tokens), None, dropout=0.1, row_attention=row)
