"""The K likeliest tokens and the others' mass: against float64, in chunks, and through whole models."""

import pytest
import torch
from posttrain.model import Budget, PackedPolicy, TokenSequence, top_logprobs
from posttrain.model import head as head_module
from posttrain.model.families import Family

from tests.model.draws import groups, load

T, V, H, K = 23, 307, 12, 9


def problem(scale=0.5, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(T, H, generator=draw).to(dtype)
    weight_VH = (scale * torch.randn(V, H, generator=draw)).to(dtype)
    return hidden_TH, weight_VH, torch.randint(0, V, (T,), generator=draw)


def reference(hidden_TH, weight_VH, targets_T, k):
    log_TV = (hidden_TH.double() @ weight_VH.double().t()).log_softmax(-1)
    logprobs_TK, ids_TK = log_TV.topk(k)
    others_TV = log_TV.scatter(1, ids_TK, -torch.inf)
    return ids_TK, logprobs_TK, others_TV.logsumexp(-1), log_TV.gather(1, targets_T[:, None])[:, 0]


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_ids_logprobs_tail_and_targets_equal_the_float64_reference(scale):
    """At scale 8 the tail is e^-30 and less: the sum of the others, which 1 minus the sum of the top k would lose."""
    inputs = problem(scale)
    found, wanted = top_logprobs(*inputs, K), reference(*inputs, K)
    assert torch.equal(found.token_ids_TK.long(), wanted[0])
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5 * scale)
    assert [tensor.dtype for tensor in found] == [torch.int32, torch.float32, torch.float32, torch.float32]
    assert (float(found.tail_T.min()) < -30) == (scale == 8.0)


def test_top_and_tail_sum_to_one():
    found = top_logprobs(*problem(), K)
    total = torch.cat([found.logprobs_TK, found.tail_T[:, None]], dim=1).logsumexp(-1)
    assert torch.allclose(total, torch.zeros(T), atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 4])
def test_chunks_change_nothing(monkeypatch, tokens):
    whole = top_logprobs(*problem(), K)
    monkeypatch.setitem(head_module._CHUNK_BYTES, "cpu", 4 * V * tokens)
    monkeypatch.setattr(head_module, "_CHUNK_TOKENS", tokens)
    monkeypatch.setitem(head_module._SCRATCH_BYTES, "cpu", 4 * V * 3)
    for ours, theirs in zip(top_logprobs(*problem(), K), whole, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_whole_vocabulary_leaves_no_tail():
    found = top_logprobs(*problem(), V)
    assert bool((found.tail_T == -torch.inf).all())
    assert torch.allclose(found.logprobs_TK.exp().sum(-1), torch.ones(T), atol=1e-5)
    assert found.token_ids_TK.sort(-1).values.tolist() == [list(range(V))] * T


def test_bfloat16_is_within_its_own_precision():
    inputs = problem(dtype=torch.bfloat16)
    found, wanted = top_logprobs(*inputs, K), reference(*inputs, K)
    # 8 bits: 2^-8 relative in each logit of up to 6
    assert torch.allclose(found.logprobs_TK.double(), wanted[1], atol=3e-2)
    assert torch.allclose(found.tail_T.double(), wanted[2], atol=3e-2)


@pytest.mark.parametrize("k", [0, V + 1])
def test_a_k_outside_the_vocabulary_is_refused(k):
    with pytest.raises(ValueError, match="ask for 1 to 307"):
        top_logprobs(*problem(), k)


def test_no_graph_is_kept():
    hidden_TH, weight_VH, targets_T = problem()
    assert not any(tensor.requires_grad for tensor in top_logprobs(hidden_TH.requires_grad_(), weight_VH, targets_T, K))


@pytest.mark.parametrize("family", [Family.QWEN3_VL, Family.QWEN3])
def test_a_policy_gives_each_sequence_its_own_whatever_the_rows(family, tiny_checkpoint):
    model, facts = load(tiny_checkpoint(family))
    policy = PackedPolicy(model, facts)
    sequences = groups(facts, prompts=2)
    sequences.insert(3, TokenSequence(token_ids=sequences[0].token_ids[:5], mask=sequences[0].mask[:5]))
    logprobs = policy.logprobs(sequences, Budget(tokens=1 << 40))
    whole, tight = (policy.top_logprobs(sequences, budget, K) for budget in (Budget(tokens=1 << 40), Budget(tokens=60)))
    for sequence, found, again, own in zip(sequences, whole, tight, logprobs, strict=True):
        n = sequence.num_trained
        assert [tuple(tensor.shape) for tensor in found] == [(n, K), (n, K), (n,), (n,)]
        assert torch.allclose(found.target_logprobs_T, own, atol=1e-5)
        assert torch.allclose(found.logprobs_TK, again.logprobs_TK, atol=1e-5)
        assert torch.allclose(found.tail_T, again.tail_T, atol=1e-5)
        said = torch.from_numpy(sequence.token_ids[sequence.mask])[:, None]
        likely = found.token_ids_TK == said
        assert torch.allclose((found.logprobs_TK * likely).sum(-1)[likely.any(-1)], own[likely.any(-1)], atol=1e-5)
    assert not whole[3].logprobs_TK.numel()
