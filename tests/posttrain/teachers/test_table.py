"""Each task has its teacher, each teacher is asked once, and what it says lies where the head looks for it."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from posttrain.model import Budget, ModelFacts, PackedPolicy, facts_of, pack
from posttrain.model.loading import load_model, load_processor
from posttrain.model.matching import DenseReference, TopReference

from posttrain.errors import ConfigError, DataError, TeacherError
from posttrain.teachers.cache import CachedTeacher
from posttrain.teachers.local import LocalTeacher
from posttrain.teachers.table import TeacherTable
from tests.posttrain.teachers.samples import CountingTeacher, text

K = 4
WHOLE = Budget(tokens=1 << 40)


def two(**options):
    """(table, maths teacher, teacher of everything else)."""
    maths, others = CountingTeacher(name="maths"), CountingTeacher(name="others", vocab_size=50)
    table = TeacherTable(
        {"maths": maths, "others": others}, {"gsm8k": "maths", "default": "others"}, top_k=K, **options
    )
    return table, maths, others


@pytest.fixture
def local(checkpoint) -> LocalTeacher:
    processor = load_processor(checkpoint("text"))
    model = load_model(checkpoint("text"), dtype=torch.float32)
    return LocalTeacher("near", PackedPolicy(model, facts_of(model.config, processor)), identity="i", budget=WHOLE)


@pytest.fixture
def facts(checkpoint) -> ModelFacts:
    model = load_model(checkpoint("student"), dtype=torch.float32)
    return facts_of(model.config, load_processor(checkpoint("student")).tokenizer)


def test_each_teacher_is_asked_once_for_its_own_tasks():
    table, maths, others = two()
    sequences = [text(10, seed=i) for i in range(4)]
    annotated, metrics = table.annotate(["gsm8k", "ocr", "gsm8k", "count"], sequences)
    assert maths.asked == [[sequences[0], sequences[2]]] and others.asked == [[sequences[1], sequences[3]]]
    assert [s.lane for s in annotated] == [0, 1, 0, 1]
    assert metrics["teacher/dropped_frac"].value == 0


def test_scores_lie_in_tables_with_the_tail_in_the_last_column():
    table, *_ = two()
    sequence = text(10, trained=5)
    ((found,), _) = table.annotate(["gsm8k"], [sequence])
    (scores,) = CountingTeacher().top_scores([sequence], K)
    assert np.array_equal(found.tables["teacher_ids"], scores.token_ids_NK)
    assert found.tables["teacher_ids"].dtype == np.int32 and found.tables["teacher_logprobs"].dtype == np.float32
    assert np.array_equal(found.tables["teacher_logprobs"][:, :K], scores.logprobs_NK)
    assert np.array_equal(found.tables["teacher_logprobs"][:, K], scores.tail_N)
    assert np.array_equal(found.token_ids, sequence.token_ids)


def test_a_rows_reference_is_what_its_own_sequences_brought(facts):
    table, maths, others = two()
    sequences = [text(10 + i, trained=2 + i, seed=i) for i in range(4)]
    tasks = ["gsm8k", "ocr", "gsm8k", "ocr"]
    annotated, _ = table.annotate(tasks, sequences)
    rows = pack([s for s in annotated if s is not None], facts, WHOLE)
    assert len(rows) == 2  # lanes never share a row
    for row in rows:
        reference = table.reference(row)
        assert isinstance(reference, TopReference)
        teacher = (maths, others)[row.lane]
        scores = teacher.top_scores([sequences[i] for i in row.sequence_ids], K)
        assert np.array_equal(reference.token_ids_TK, np.concatenate([s.token_ids_NK for s in scores]))
        assert np.array_equal(reference.logprobs_TK, np.concatenate([s.logprobs_NK for s in scores]))
        assert np.array_equal(reference.tail_T, np.concatenate([s.tail_N for s in scores]))


def test_a_local_teacher_is_asked_row_by_row_unless_its_scores_are_wanted_ahead(local, facts):
    sequences = [text(10, seed=i) for i in range(2)]
    far = CountingTeacher(name="far")
    routes = {"a": "near", "b": "far"}
    table = TeacherTable({"near": local, "far": far}, routes, top_k=K)
    annotated, _ = table.annotate(["a", "b"], sequences)
    assert not annotated[0].tables and annotated[1].tables and [s.lane for s in annotated] == [0, 1]
    kinds = {row.lane: type(table.reference(row)) for row in pack(annotated, facts, WHOLE)}
    assert kinds == {0: DenseReference, 1: TopReference}
    ahead, _ = TeacherTable({"near": local, "far": far}, routes, top_k=K, use_scores=True).annotate(
        ["a", "b"], sequences
    )
    (scores,) = local.top_scores(sequences[:1], K)
    assert np.array_equal(ahead[0].tables["teacher_ids"], scores.token_ids_NK)


def test_a_cached_epoch_never_loads_its_teacher(tmp_path, checkpoint, local, facts):
    sequences = [text(10, seed=i) for i in range(3)]

    def cached(teacher):
        return TeacherTable(
            {"near": CachedTeacher(teacher, tmp_path, top_k=K, settings={})}, {"default": "near"}, top_k=K
        )

    first = cached(local)
    expected, _ = first.annotate(["a"] * 3, sequences)
    first.close()

    def load():
        raise AssertionError("the teacher was loaded")

    second = cached(LocalTeacher("near", load, identity="i", budget=WHOLE, context=4096))
    found, _ = second.annotate(["a"] * 3, sequences)
    second.flush()
    for a, b in zip(found, expected, strict=True):
        assert all(np.array_equal(a.tables[name], b.tables[name]) for name in ("teacher_ids", "teacher_logprobs"))
    assert isinstance(second.reference(pack(found, facts, WHOLE)[0]), TopReference)


def test_the_default_route_serves_tasks_without_one_and_a_lone_teacher_serves_all():
    table, maths, others = two()
    assert table.teacher_of("gsm8k") is maths and table.teacher_of("anything") is others
    assert TeacherTable({"maths": maths}, {}, top_k=K).teacher_of("anything") is maths


def test_unknown_tasks_and_teachers_are_answered_with_the_nearest():
    teachers = {"maths": CountingTeacher(), "vision": CountingTeacher()}
    with pytest.raises(ConfigError, match="task 'ocr' is given to teacher 'visoin'.*did you mean 'vision'"):
        TeacherTable(teachers, {"ocr": "visoin"}, top_k=K)
    with pytest.raises(ConfigError, match=r"there are 2 teachers \(maths, vision\): say which task has which"):
        TeacherTable(teachers, {}, top_k=K)
    with pytest.raises(ConfigError, match="needs a teacher"):
        TeacherTable({}, {}, top_k=K)
    table = TeacherTable(teachers, {"gsm8k": "maths", "ocr": "vision"}, top_k=K)
    with pytest.raises(DataError, match="task 'gsm8' is routed to no teacher.*did you mean 'gsm8k'"):
        table.annotate(["gsm8"], [text(5)])


def test_a_sequence_beyond_its_teachers_context_is_dropped_with_a_warning_each(caplog):
    table, maths, _ = two()
    maths.context = 12
    sequences = [text(12), text(13), text(13, seed=1), text(14)]
    with caplog.at_level(logging.WARNING):
        annotated, metrics = table.annotate(["gsm8k", "gsm8k", "gsm8k", "ocr"], sequences)
    assert [s is None for s in annotated] == [False, True, True, False]
    assert maths.asked == [[sequences[0]]]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert warnings[0].startswith("dropped: a sequence of task 'gsm8k' has 13 tokens, teacher 'maths' reads 12; lower")
    assert metrics["teacher/dropped_frac"].total == 2 and metrics["teacher/dropped_frac"].count == 4


def test_sequences_that_train_nothing_come_back_untouched_and_are_asked_of_nobody():
    table, maths, others = two()
    nothing, empty = (
        text(5, trained=0),
        replace(text(1, trained=0), token_ids=np.empty(0, np.int64), mask=np.empty(0, bool)),
    )
    annotated, _ = table.annotate(["gsm8k", "no such task"], [nothing, empty])
    assert annotated[0] is nothing and annotated[1] is empty and maths.asked == others.asked == []
    assert table.annotate([], []) == ([], table.annotate([], [])[1])
    assert [len(x) for x in table.logprobs(["gsm8k"], [nothing])] == [0]


def test_logprobs_come_in_the_order_of_the_sequences():
    table, maths, others = two()
    sequences = [text(10 + i, trained=1 + i, seed=i) for i in range(4)]
    found = table.logprobs(["ocr", "gsm8k", "ocr", "gsm8k"], sequences)
    assert len(maths.asked) == len(others.asked) == 1
    for sequence, teacher, answer in zip(sequences, [others, maths] * 2, found, strict=True):
        assert np.array_equal(answer, teacher.logprobs([sequence])[0])


def test_a_teacher_with_scores_alone_needs_top_k():
    table = TeacherTable({"far": CountingTeacher()}, {}, top_k=None)
    assert len(table.logprobs(["a"], [text(5)])) == 1  # of the sampled tokens it can speak without
    with pytest.raises(ConfigError, match="'far' gives its likeliest tokens.*set top_k"):
        table.annotate(["a"], [text(5)])
    with pytest.raises(ConfigError, match="set top_k"):
        TeacherTable({"far": CountingTeacher()}, {}, top_k=None, use_scores=True)


def test_a_row_that_was_never_annotated_is_not_guessed_at(facts):
    table = TeacherTable({"far": CountingTeacher()}, {}, top_k=K)
    with pytest.raises(TeacherError, match="were never annotated"):
        table.reference(pack([text(5)], facts, WHOLE)[0])


def test_only_teachers_elsewhere_may_be_asked_in_a_thread(tmp_path, local):
    far = CountingTeacher()
    assert TeacherTable({"far": far}, {}, top_k=K).overlaps
    assert TeacherTable({"far": CachedTeacher(far, tmp_path / "a", top_k=K, settings={})}, {}, top_k=K).overlaps
    near = CachedTeacher(local, tmp_path / "b", top_k=K, settings={})
    assert not TeacherTable({"far": far, "near": near}, {"default": "far"}, top_k=K).overlaps
    assert not TeacherTable({"near": local}, {}, top_k=K).overlaps


def test_every_teacher_is_closed_even_where_one_fails_to():
    class Stuck(CountingTeacher):
        def close(self):
            raise TeacherError("teacher 'stuck': its scores cannot be written")

    last = CountingTeacher()
    table = TeacherTable({"stuck": Stuck(), "last": last}, {"default": "last"}, top_k=K)
    with pytest.raises(TeacherError, match="stuck"):
        table.close()
    assert last.closed
