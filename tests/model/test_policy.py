"""Packed rows through whole models: log-probabilities and gradients are transformers' own, of each sequence alone."""

import numpy as np
import pytest
import torch
from posttrain.model import Budget, PackedPolicy, TokenSequence, pack
from posttrain.model.attention import Kernel
from posttrain.model.families import Family
from posttrain.model.lora import add_lora
from posttrain.model.parts import Part, freeze

from tests.model.draws import (
    FAMILIES,
    WITH_VISION,
    gradients_of,
    groups,
    image,
    load,
    text,
    unpacked_logprobs,
    with_images,
    worst_gradient_error,
)

WHOLE, TIGHT = Budget(tokens=1 << 40), Budget(tokens=60, patches=60)
# A float32 forward pass of these models is off by 1e-6 nats, and a gradient by 5e-6 of its largest entry.
NATS, GRADIENT = 1e-5, 2e-5


def coefficients(sequences):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s.num_trained, generator=generator) for s in sequences]


def packed_gradients(policy, sequences, budget):
    """Gradients of `sum_t c_t logp_t` with the coefficients above, over all rows."""
    c = coefficients(sequences)
    for row in pack(sequences, policy.facts, budget):
        row_c = torch.cat([c[place] for place in row.sequence_ids])
        policy(row, lambda logprobs_T, span, c=row_c: c[span] * logprobs_T).loss.backward()
    return gradients_of(policy.model)


def unpacked_gradients(model, facts, sequences):
    for sequence, c in zip(sequences, coefficients(sequences), strict=True):
        (c * unpacked_logprobs(model, facts, sequence)).sum().backward()
    return gradients_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_equal_transformers_unpacked(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    sequences = groups(facts)
    with torch.no_grad():
        expected = [unpacked_logprobs(model, facts, s) for s in sequences]
    expected_gradients = unpacked_gradients(model, facts, sequences)
    for kernel in (Kernel.SEGMENTS, Kernel.DENSE):
        policy = PackedPolicy(model, facts, kernel=kernel)
        for budget in (WHOLE, TIGHT):
            for found, wanted in zip(policy.logprobs(sequences, budget), expected, strict=True):
                assert torch.allclose(found, wanted, rtol=0, atol=NATS)
            found = packed_gradients(policy, sequences, budget)
            assert worst_gradient_error(found, expected_gradients) < GRADIENT


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", [Family.QWEN3_VL, Family.QWEN2_5_VL, Family.QWEN3])
def test_the_flex_kernel_gives_the_same_logprobs(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    sequences = groups(facts)
    one, other = (PackedPolicy(model, facts, kernel=k).logprobs(sequences, WHOLE) for k in (Kernel.DENSE, Kernel.FLEX))
    assert all(torch.allclose(a, b, rtol=0, atol=NATS) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_does_not_see_its_neighbours(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    policy = PackedPolicy(model, facts)
    first, *rest = groups(facts, prompts=2)
    ids = first.token_ids.copy()
    ids[first.prefix_length :] = text(np.random.default_rng(5), len(ids) - first.prefix_length)
    changed = TokenSequence(
        token_ids=ids, mask=first.mask, images=first.images, prefix_length=first.prefix_length, streams=first.streams
    )
    before, after = (policy.logprobs([one, *rest], WHOLE) for one in (first, changed))
    assert not torch.allclose(before[0], after[0], atol=0.01)
    for a, b in zip(before[1:], after[1:], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)  # the same products in blocks of another size


def test_the_temperature_divides_the_logits(tiny_checkpoint):
    model, facts = load(tiny_checkpoint(Family.QWEN3))
    sequences = groups(facts, prompts=1)
    policy = PackedPolicy(model, facts)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        (row,) = pack(sequences, facts, WHOLE)
        expected = (policy.hidden_states(row) @ weight.t() / 0.5).log_softmax(-1)
    found = policy.logprobs(sequences, WHOLE, temperature=0.5)
    by_row = torch.cat([found[place] for place in row.sequence_ids])
    assert torch.allclose(by_row, expected.gather(1, row.targets_T[:, None])[:, 0], atol=NATS)


@pytest.mark.parametrize("family", [Family.QWEN3_VL, Family.QWEN2_5_VL, Family.QWEN3])
def test_gradients_of_adapters_equal_transformers_unpacked(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    parts = ["language"] if family is Family.QWEN3 else ["vision", "language"]
    model = add_lora(model, facts, rank=4, parts=parts)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    sequences = groups(facts, prompts=2)
    expected = unpacked_gradients(model, facts, sequences)
    assert all("lora_" in name for name in expected)
    assert worst_gradient_error(packed_gradients(PackedPolicy(model, facts), sequences, WHOLE), expected) < GRADIENT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(family, use_reentrant, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    policy = PackedPolicy(model.train(), facts)
    sequences = groups(facts, prompts=2)
    expected = packed_gradients(policy, sequences, WHOLE)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    assert worst_gradient_error(packed_gradients(policy, sequences, WHOLE), expected) < 1e-5
    assert any(layer.gradient_checkpointing for layer in model.modules() if "DecoderLayer" in type(layer).__name__)


def count_tower_runs(policy):
    """Patches that each run of the vision tower reads, appended as it runs."""
    runs = []
    tower = policy.base_model.model.visual
    tower.register_forward_pre_hook(lambda module, args, kwargs: runs.append(len(args[0])), with_kwargs=True)
    return runs


@pytest.mark.parametrize("family", WITH_VISION)
def test_the_tower_reads_each_distinct_image_of_a_row_once(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    policy = PackedPolicy(model, facts)
    runs = count_tower_runs(policy)
    sequences = groups(facts)  # 12 sequences, 19 occurrences of 3 images
    policy.logprobs(sequences, WHOLE)
    assert runs == [4 * 6 + 8 * 4 + 4 * 4]


@pytest.mark.parametrize("family", WITH_VISION)
def test_features_of_a_frozen_tower_are_made_once_and_change_nothing(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    sequences = groups(facts)
    expected = PackedPolicy(model, facts).logprobs(sequences, WHOLE)
    freeze(model, facts, [Part.VISION, Part.MERGER])
    policy = PackedPolicy(model, facts)
    assert policy.vision_is_frozen
    runs = count_tower_runs(policy)
    for _ in range(2):
        for found, wanted in zip(policy.logprobs(sequences, TIGHT), expected, strict=True):
            assert torch.allclose(found, wanted, rtol=0, atol=NATS)
    assert sum(runs) == 4 * 6 + 8 * 4 + 4 * 4
    gradients = packed_gradients(policy, sequences, WHOLE)
    assert gradients and not any("visual" in name for name in gradients)
    assert sum(runs) == 4 * 6 + 8 * 4 + 4 * 4


def test_the_feature_cache_keeps_within_its_bytes(tiny_checkpoint):
    model, facts = load(tiny_checkpoint(Family.QWEN3_VL))
    freeze(model, facts, [Part.VISION, Part.MERGER])
    sequences = groups(facts)
    expected = PackedPolicy(model, facts).logprobs(sequences, WHOLE)
    size = 6 * facts.hidden_size * 4 * (1 + facts.num_deepstack)  # of the image of 4 x 6 patches
    policy = PackedPolicy(model, facts, feature_cache_bytes=size + 1)
    for found, wanted in zip(policy.logprobs(sequences, TIGHT), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=NATS)
    assert 0 < policy.features.bytes <= size + 1
    policy.features.clear()
    assert policy.features.bytes == 0


@pytest.mark.parametrize("family", WITH_VISION)
def test_an_idle_tower_stays_in_the_graph_where_it_must_and_adds_nothing(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    rng = np.random.default_rng(0)
    ids = text(rng, 9).astype(np.int64)
    plain = TokenSequence(token_ids=ids, mask=np.arange(9) > 2)
    policy = PackedPolicy(model, facts)
    alone = packed_gradients(policy, [plain], WHOLE)
    assert not any("visual" in name for name in alone)
    policy.always_run_vision = True
    joined = packed_gradients(policy, [plain], WHOLE)
    towers = {name for name, _ in model.named_parameters() if "visual" in name}
    assert towers and towers <= joined.keys()
    assert all(not joined[name].any() for name in towers)
    assert all(torch.equal(joined[name], gradient) for name, gradient in alone.items())


@pytest.mark.parametrize("family", WITH_VISION)
def test_the_same_picture_in_a_prompt_and_in_a_completion_sums_its_gradients(family, tiny_checkpoint):
    """One run of the tower, two occurrences: at different places, so with different gradients."""
    model, facts = load(tiny_checkpoint(family))
    rng, picture = np.random.default_rng(0), image(facts, 4, 4, 1)
    prompt = with_images(facts, rng, [picture])
    ids = np.concatenate([prompt, text(rng, 4), with_images(facts, rng, [picture]), text(rng, 4)]).astype(np.int64)
    mask = (np.arange(len(ids)) >= len(prompt)) & (ids != facts.image_token_id)
    sequence = TokenSequence(token_ids=ids, mask=mask, images=(picture, picture), prefix_length=len(prompt))
    expected = unpacked_gradients(model, facts, [sequence])
    policy = PackedPolicy(model, facts)
    runs = count_tower_runs(policy)
    assert worst_gradient_error(packed_gradients(policy, [sequence], WHOLE), expected) < GRADIENT
    assert runs == [16]


def test_gradients_survive_a_bfloat16_autocast(tiny_checkpoint):
    model, facts = load(tiny_checkpoint(Family.QWEN3_VL))
    policy, sequences = PackedPolicy(model, facts), groups(facts, prompts=1)
    exact = policy.logprobs(sequences, WHOLE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = policy.logprobs(sequences, WHOLE)
        found = packed_gradients(policy, sequences, WHOLE)
    # bfloat16 keeps 8 bits; the log-probabilities are about -6
    assert max(float((a - b).abs().max()) for a, b in zip(exact, rough, strict=True)) < 0.1
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())
