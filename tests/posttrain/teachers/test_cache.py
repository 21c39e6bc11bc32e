"""A second run asks the teacher nothing, and nothing that lies on disk is believed without a check."""

import json
import logging
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import TeacherError
from posttrain.teachers.cache import CachedTeacher
from posttrain.teachers.shards import HalfScores
from posttrain.teachers.teacher import TopScores
from tests.posttrain.teachers.samples import CountingTeacher, text, with_picture

K = 8
SETTINGS = {"max_pixels": 1024, "tokenizer": "t"}


def opened(folder: Path, teacher: CountingTeacher | None = None, *, top_k: int = K, **changes) -> CachedTeacher:
    return CachedTeacher(teacher or CountingTeacher(), folder, top_k=top_k, settings={**SETTINGS, **changes})


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def same(a: TopScores, b: TopScores) -> bool:
    pairs = ((a.token_ids_NK, b.token_ids_NK), (a.logprobs_NK, b.logprobs_NK), (a.tail_N, b.tail_N))
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def test_a_second_run_makes_no_call_and_reads_the_same_numbers(tmp_path):
    sequences = [text(10, seed=1), text(20, trained=5, seed=2), text(30, trained=1, seed=3)]
    first = opened(tmp_path)
    written = first.top_scores(sequences, K)
    first.close()
    teacher = CountingTeacher()
    second = opened(tmp_path, teacher)
    read = second.top_scores(sequences[::-1], K)[::-1]
    assert teacher.asked == [] and (second.hits, second.misses) == (3, 0) and (first.hits, first.misses) == (0, 3)
    assert all(same(a, b) for a, b in zip(written, read, strict=True))


def test_scores_come_back_within_half_precision_and_sum_to_one(tmp_path):
    sequences = [text(40, trained=20, seed=seed) for seed in range(5)]
    cached = opened(tmp_path)
    for exact, kept in zip(CountingTeacher().top_scores(sequences, K), cached.top_scores(sequences, K), strict=True):
        assert np.array_equal(exact.token_ids_NK, kept.token_ids_NK)
        # Half a unit in float16's last place (2^-11 of the value), and as much again from summing to one.
        assert (np.abs(kept.logprobs_NK - exact.logprobs_NK) <= 2**-11 * np.abs(exact.logprobs_NK) + 2**-10).all()
        total = np.logaddexp(np.logaddexp.reduce(kept.logprobs_NK, axis=1), kept.tail_N)
        assert np.abs(total).max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0.01, 50), st.integers(0, 1000))
def test_half_precision_stays_a_distribution_whatever_its_spread(num_tokens, top_k, spread, seed):
    logits = np.random.default_rng(seed).normal(0, spread, (num_tokens, top_k + 1))
    logprobs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    scores = TopScores(
        token_ids_NK=np.tile(np.arange(top_k, dtype=np.int32), (num_tokens, 1)),
        logprobs_NK=logprobs[:, :-1],
        tail_N=logprobs[:, -1],
    )
    kept = HalfScores.of(scores).whole()
    total = np.logaddexp(np.logaddexp.reduce(kept.logprobs_NK, axis=1), kept.tail_N)
    assert np.isfinite(kept.logprobs_NK).all() and np.abs(total).max() < 1e-5


def test_a_whole_vocabulary_has_no_tail(tmp_path):
    teacher = CountingTeacher(vocab_size=6)
    (scores,) = opened(tmp_path, teacher, top_k=6).top_scores([text(9)], 6)
    assert (scores.tail_N == -np.inf).all() and np.isfinite(scores.logprobs_NK).all()


def test_a_masked_token_stays_finite():
    scores = TopScores(
        token_ids_NK=np.array([[0, 1]], np.int32),
        logprobs_NK=np.array([[0.0, -1e9]], np.float32),
        tail_N=np.array([-np.inf], np.float32),
    )
    assert np.isfinite(HalfScores.of(scores).whole().logprobs_NK).all()


def test_only_what_is_missing_is_asked_and_twins_are_asked_once(tmp_path):
    teacher = CountingTeacher()
    cached = opened(tmp_path, teacher)
    a, b = text(10, seed=1), text(10, seed=2)
    cached.top_scores([a], K)
    cached.top_scores([a, b, b], K)
    assert [len(asked) for asked in teacher.asked] == [1, 1] and teacher.asked[1] == [b]
    assert (cached.hits, cached.misses) == (1, 3)


def test_a_key_has_the_tokens_the_mask_and_the_pixels_in_it(tmp_path):
    teacher = CountingTeacher()
    cached = opened(tmp_path, teacher)
    one = with_picture(text(10), "ab")
    mask = one.mask.copy()
    mask[-1] = False
    others = [replace(one, images=()), with_picture(text(10), "a"), replace(one, mask=mask), text(10, seed=5)]
    cached.top_scores([one], K)
    cached.top_scores([*others, replace(one, lane=3, prefix_length=2)], K)
    assert teacher.asked[1] == others


def test_an_empty_sequence_has_scores_without_rows(tmp_path):
    cached = opened(tmp_path)
    nothing = text(5, trained=0)
    for _ in range(2):
        (scores,) = cached.top_scores([nothing], K)
        assert scores.logprobs_NK.shape == (0, K) and scores.tail_N.shape == (0,)
        cached.flush()
        cached = opened(tmp_path)


def test_a_process_that_dies_loses_only_what_was_not_flushed(tmp_path):
    dying = opened(tmp_path)
    dying.top_scores([text(10, seed=1), text(12, seed=2)], K)
    dying.flush()
    dying.top_scores([text(14, seed=3)], K)
    del dying  # closed by nobody
    cached = opened(tmp_path)
    cached.top_scores([text(10, seed=1), text(12, seed=2), text(14, seed=3)], K)
    assert (cached.hits, cached.misses) == (2, 1)


def test_a_flush_comes_by_itself_when_enough_has_gathered(tmp_path):
    cached = CachedTeacher(CountingTeacher(), tmp_path, top_k=K, settings=SETTINGS, flush_bytes=3 * (6 * K + 2))
    cached.top_scores([text(10, trained=3, seed=1)], K)
    assert shards(tmp_path) == []
    cached.top_scores([text(10, trained=3, seed=2)], K)
    assert len(shards(tmp_path)) == 1
    cached.flush()
    assert len(shards(tmp_path)) == 1  # nothing was left to write


def test_two_processes_share_a_folder(tmp_path):
    one, other_teacher = opened(tmp_path), CountingTeacher()
    other = opened(tmp_path, other_teacher)
    a, b = text(10, seed=1), text(10, seed=2)
    one.top_scores([a], K)
    other.top_scores([b], K)
    one.flush()
    other.flush()
    assert len(shards(tmp_path)) == 2
    other.top_scores([a], K)  # written by the first one after this one had opened the folder
    assert other_teacher.asked == [[b]]


@pytest.mark.parametrize("harm", ["cut short", "emptied", "one bit", "of another kind"])
def test_a_damaged_shard_is_dropped_with_one_warning_and_the_others_are_kept(tmp_path, caplog, harm):
    first = opened(tmp_path)
    hurt, whole = [text(10, seed=seed) for seed in range(4)], [text(10, seed=seed) for seed in range(4, 6)]
    first.top_scores(hurt, K)
    first.flush()
    (bad,) = shards(tmp_path)
    first.top_scores(whole, K)
    first.flush()
    content = bytearray(bad.read_bytes())
    match harm:
        case "cut short":
            content = content[:-7]
        case "emptied":
            content.clear()
        case "one bit":
            content[-4 * 16 - 1] ^= 64  # the tail of the last sequence's last token; behind it lie the keys
        case "of another kind":
            content = bytearray(b"\x02\0\0\0\0\0\0\0{}")
    bad.write_bytes(content)
    teacher = CountingTeacher()
    with caplog.at_level(logging.WARNING):
        again = opened(tmp_path, teacher)
        # The damaged sequence first: what else its file holds is not believed either.
        found = again.top_scores([*hurt[::-1], *whole], K)
    assert len([r for r in caplog.records if bad.name in r.getMessage()]) == 1
    assert teacher.asked == [hurt[::-1]] and not bad.exists()
    again.flush()
    exact = CountingTeacher().top_scores([*hurt[::-1], *whole], K)
    assert all(np.allclose(a.logprobs_NK, b.logprobs_NK, atol=0.02) for a, b in zip(found, exact, strict=True))
    untouched = CountingTeacher()
    opened(tmp_path, untouched).top_scores([*hurt, *whole], K)
    assert untouched.asked == []


def test_another_teacher_is_refused(tmp_path):
    opened(tmp_path).close()
    opened(tmp_path, CountingTeacher(name="renamed")).close()  # the weights count, not what a recipe calls them
    with pytest.raises(TeacherError, match="another teacher .'big' abc, not xyz.; choose another folder, or delete it"):
        opened(tmp_path, CountingTeacher(identity="xyz"))


def test_other_settings_are_refused_by_name(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(TeacherError, match="was made with max_pixels 1024, not 2048; choose another folder"):
        opened(tmp_path, max_pixels=2048)
    with pytest.raises(TeacherError, match="top_k 8, not 9 and min_pixels None, not 4"):
        opened(tmp_path, top_k=9, min_pixels=4)
    with pytest.raises(TeacherError, match="its cache holds top_k 8, 4 was asked for"):
        opened(tmp_path).top_scores([text(5)], 4)


def test_settings_that_json_writes_alike_are_the_same(tmp_path):
    opened(tmp_path, sizes=(1, 2)).close()
    opened(tmp_path, sizes=[1, 2]).close()


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(TeacherError, match=r"holds files but no manifest.json.*choose another folder"):
        opened(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"format": 1})])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TeacherError, match=r"manifest.json is damaged"):
        opened(tmp_path)


def test_a_place_that_cannot_be_written_to_is_named_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TeacherError, match=r"cannot be used .*choose another folder"):
        opened(tmp_path / "file" / "cache")


def test_a_full_disk_gives_one_sentence_and_keeps_what_was_written(tmp_path, no_room):
    cached = opened(tmp_path)
    small, large = text(10, seed=1), text(600, trained=500, seed=2)
    cached.top_scores([small], K)
    cached.flush()
    cached.top_scores([large], K)
    with no_room(), pytest.raises(TeacherError, match=r"cannot be written to .*free space and run again") as caught:
        cached.flush()
    assert "\n" not in str(caught.value)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    cached.close()  # with room again, what was still in memory is written
    teacher = CountingTeacher()
    opened(tmp_path, teacher).top_scores([small, large], K)
    assert teacher.asked == []


@pytest.fixture
def no_room():
    """Inside the block no file grows beyond 8 KiB."""

    @contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def test_scores_that_are_not_finite_or_of_another_shape_are_never_kept(tmp_path):
    class Broken(CountingTeacher):
        def top_scores(self, sequences, top_k):
            (scores,) = super().top_scores(sequences, top_k)
            if self.name == "short":
                return [replace(scores, logprobs_NK=scores.logprobs_NK[:-1])]
            return [replace(scores, logprobs_NK=np.where(scores.logprobs_NK < -3, np.nan, scores.logprobs_NK))]

    for name, said in (("short", "nothing was kept"), ("nan", "not finite")):
        cached = opened(tmp_path, Broken(name=name))
        with pytest.raises(TeacherError, match=said):
            cached.top_scores([text(9)], K)
        cached.close()
    assert shards(tmp_path) == []


def test_a_token_costs_six_bytes_a_candidate_and_two_for_the_tail(tmp_path):
    cached = opened(tmp_path)
    assert np.isnan(cached.bytes_per_token)
    cached.top_scores([text(600, trained=500, seed=seed) for seed in range(20)], K)
    cached.flush()
    # Beside them: 28 bytes a sequence and a header of some hundred bytes a file.
    assert 6 * K + 2 <= cached.bytes_per_token < 6 * K + 2 + 0.15


def test_everything_else_is_the_teachers_own(tmp_path):
    teacher = CountingTeacher(context=77)
    cached = opened(tmp_path, teacher)
    assert (cached.name, cached.identity, cached.context) == ("big", "abc", 77)
    (one,) = cached.logprobs([text(9)])
    assert np.array_equal(one, CountingTeacher().logprobs([text(9)])[0])
    cached.close()
    assert teacher.closed
