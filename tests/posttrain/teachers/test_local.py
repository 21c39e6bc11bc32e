"""Teachers in this process say what transformers says of each sequence alone, and are loaded when they are asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from posttrain.model import Budget, PackedPolicy, facts_of, pack
from posttrain.model.loading import load_model, load_processor, save_model
from posttrain.model.lora import add_lora
from posttrain.model.matching import DenseReference

from posttrain.errors import ConfigError, TeacherError
from posttrain.teachers.local import LocalTeacher, StudentTeacher
from tests.model.draws import groups, image, with_images
from tests.posttrain.teachers import samples

WHOLE, TIGHT = Budget(tokens=1 << 40), Budget(tokens=60, patches=60)
NATS = 1e-5
"""What a float32 forward pass of these models is off by, rows packed otherwise."""


def model_of(folder):
    """(float32 model, its facts, its processor)."""
    processor = load_processor(folder)
    model = load_model(folder, dtype=torch.float32)
    return model, facts_of(model.config, getattr(processor, "tokenizer", processor)), processor


@pytest.fixture
def student(checkpoint):
    return model_of(checkpoint("student"))


@pytest.fixture
def ask(student):
    """Name or folder -> a teacher of that checkpoint for the student."""

    def teacher(path, *, dtype=torch.float32, budget=WHOLE, **options):
        options = {"student": student[2], "student_facts": student[1], **options}
        return LocalTeacher.from_checkpoint("big", path, budget=budget, device="cpu", dtype=dtype, **options)

    return teacher


def given(model, facts, **options):
    """A teacher over a model in memory."""
    return LocalTeacher("big", PackedPolicy(model, facts), identity="i", budget=WHOLE, **options)


def texts(count=5):
    """Two groups under a prompt each, and single sequences."""
    prompt = samples.text(9, trained=0, seed=99).token_ids
    made = []
    for seed in range(count):
        one = samples.text(6 + seed, trained=4, seed=seed)
        if seed < 4:
            ids = np.concatenate([prompt[seed // 2 :], one.token_ids])
            mask = np.arange(len(ids)) >= len(ids) - 4
            one = replace(one, token_ids=ids, mask=mask, prefix_length=len(prompt) - seed // 2)
        made.append(one)
    return made


@torch.no_grad()
def unpacked(model, facts, sequence):
    """[N, V] log-probabilities by transformers' own forward pass of this sequence alone."""
    ids = torch.from_numpy(sequence.token_ids)[None]
    vision = {}
    if sequence.images:
        vision = {
            "pixel_values": torch.cat([one.pixel_values_PD for one in sequence.images]),
            "image_grid_thw": torch.tensor([one.grid_thw for one in sequence.images]),
            "mm_token_type_ids": (ids == facts.image_token_id).int(),
        }
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0, :-1]
    return logits.log_softmax(-1)[torch.from_numpy(sequence.mask[1:])]


def by_sequence(teacher, sequences, student_facts, budget):
    """Each sequence's [N, V] log-probabilities from `dense` on the rows that the student trains on."""
    found = {}
    for row in pack(sequences, student_facts, budget):
        reference = teacher.dense(row)
        assert isinstance(reference, DenseReference)
        logprobs = (reference.hidden_TH @ reference.weight_VH.T).log_softmax(-1)
        found.update(zip(row.sequence_ids, logprobs.split(row.lengths_S.tolist()), strict=True))
    return [found[place] for place in range(len(sequences))]


def agree(found, wanted):
    return all(torch.allclose(a, b, rtol=0, atol=NATS) for a, b in zip(found, wanted, strict=True))


def test_dense_on_the_students_rows_equals_transformers_unpacked(checkpoint, student, ask):
    sequences = groups(student[1])  # shared prompts, images, and tool turns with images of their own
    model, facts, _ = model_of(checkpoint("teacher"))
    assert facts.hidden_size != student[1].hidden_size
    wanted = [unpacked(model, facts, sequence) for sequence in sequences]
    for budget in (WHOLE, TIGHT):
        assert agree(by_sequence(ask(checkpoint("teacher")), sequences, student[1], budget), wanted)


def test_top_scores_are_the_leading_entries_of_the_whole_distribution(checkpoint, student, ask):
    sequences = groups(student[1], prompts=2)
    model, facts, _ = model_of(checkpoint("teacher"))
    teacher = ask(checkpoint("teacher"), budget=TIGHT)
    for k in (1, 7):
        for sequence, scores in zip(sequences, teacher.top_scores(sequences, k), strict=True):
            logprobs = unpacked(model, facts, sequence)
            values, ids = logprobs.topk(k)
            assert np.array_equal(scores.token_ids_NK, ids) and scores.token_ids_NK.dtype == np.int32
            assert np.allclose(scores.logprobs_NK, values, rtol=0, atol=NATS)
            rest = logprobs.scatter(1, ids, -torch.inf).logsumexp(-1)
            assert np.allclose(scores.tail_N, rest, rtol=0, atol=1e-4)  # of a small rest, from 1 minus the others


def test_top_scores_of_the_whole_vocabulary_leave_no_tail(checkpoint, student, ask):
    sequence = texts()[-1]
    (scores,) = ask(checkpoint("teacher")).top_scores([sequence], student[1].vocab_size)
    assert np.exp(scores.tail_N).max() < 1e-5
    assert np.abs(np.logaddexp.reduce(scores.logprobs_NK, axis=1)).max() < 1e-5
    with pytest.raises(TeacherError, match="'big' has 448 tokens to choose from, top_k 449 is more"):
        ask(checkpoint("teacher")).top_scores([sequence], 449)


def test_logprobs_are_those_of_the_tokens_themselves(checkpoint, student, ask):
    sequences = groups(student[1], prompts=1)
    model, facts, _ = model_of(checkpoint("teacher"))
    for sequence, found in zip(sequences, ask(checkpoint("teacher")).logprobs(sequences), strict=True):
        targets = torch.from_numpy(sequence.token_ids[sequence.mask])[:, None]
        wanted = unpacked(model, facts, sequence).gather(1, targets)[:, 0]
        assert np.allclose(found, wanted, rtol=0, atol=NATS) and found.dtype == np.float32


def test_sequences_that_train_nothing_have_scores_without_rows(checkpoint, ask):
    first, second = texts(2)
    nothing = samples.text(5, trained=0)
    teacher = ask(checkpoint("text"))
    scores = teacher.top_scores([first, nothing, second], 3)
    assert [s.logprobs_NK.shape for s in scores] == [(4, 3), (0, 3), (4, 3)]
    assert [len(x) for x in teacher.logprobs([first, nothing, second])] == [4, 0, 4]
    assert np.array_equal(scores[2].token_ids_NK, teacher.top_scores([second], 3)[0].token_ids_NK)


def test_lanes_streams_and_tables_of_the_student_change_no_score(checkpoint, ask):
    teacher = ask(checkpoint("text"))
    plain = texts()
    stream = {"advantages": np.zeros(plain[0].num_tokens, dtype=np.float32)}
    table = {"teacher_ids": np.zeros((4, 2), dtype=np.int32)}
    marked = [replace(plain[0], streams=stream, tables=table), *(replace(s, lane=i) for i, s in enumerate(plain[1:]))]
    for a, b in zip(teacher.logprobs(plain), teacher.logprobs(marked), strict=True):
        assert np.array_equal(a, b)


def test_a_text_teacher_scores_text_rows_of_a_vision_language_student(checkpoint, student, ask):
    sequences = texts()
    model, facts, _ = model_of(checkpoint("text"))
    wanted = [unpacked(model, facts, sequence) for sequence in sequences]
    teacher = ask(checkpoint("text"))
    assert agree(by_sequence(teacher, sequences, student[1], WHOLE), wanted)
    for scores, whole in zip(teacher.top_scores(sequences, 5), wanted, strict=True):
        assert np.allclose(scores.logprobs_NK, whole.topk(5).values, rtol=0, atol=NATS)


def test_a_vision_language_teacher_scores_rows_of_a_text_student(checkpoint):
    student = model_of(checkpoint("text"))
    sequences = texts()
    model, facts, _ = model_of(checkpoint("teacher"))
    assert agree(
        by_sequence(given(model, facts), sequences, student[1], WHOLE),
        [unpacked(model, facts, sequence) for sequence in sequences],
    )


def test_a_text_teacher_refuses_images(checkpoint, student, ask):
    sequences = groups(student[1], prompts=1)
    (row,) = pack(sequences, student[1], WHOLE)
    teacher = ask(checkpoint("text"))
    for asked in (
        lambda: teacher.dense(row),
        lambda: teacher.top_scores(sequences, 4),
        lambda: teacher.logprobs(sequences),
    ):
        with pytest.raises(
            TeacherError, match="'big' is a text model .* route their tasks to a vision-language teacher"
        ):
            asked()


def test_other_patches_are_refused_where_there_are_images_and_nowhere_else(checkpoint, student, ask):
    teacher = ask(checkpoint("larger_patches"))
    (row,) = pack(groups(student[1], prompts=1), student[1], WHOLE)
    with pytest.raises(TeacherError, match="'big' reads images with patch_size 10, the student with 8: route tasks"):
        teacher.dense(row)
    (row,) = pack(texts(1), student[1], WHOLE)
    teacher.dense(row)


def test_other_image_statistics_are_refused(checkpoint, student, ask):
    processor = load_processor(checkpoint("student"))
    processor.image_processor.image_mean = [0.48, 0.46, 0.41]
    teacher = ask(checkpoint("teacher"), student=processor)
    with pytest.raises(TeacherError, match=r"normalises images by image_mean \[0.5, 0.5, 0.5\], the student by \[0.48"):
        teacher.logprobs(groups(student[1], prompts=1))


def test_nothing_is_loaded_before_something_is_asked(checkpoint, student, ask):
    teacher = ask(checkpoint("teacher"))
    assert teacher.name == "big" and teacher.context == 4096 and len(teacher.identity) == 32
    assert not teacher.is_loaded
    (row,) = pack(texts(1), student[1], WHOLE)
    teacher.dense(row)
    assert teacher.is_loaded
    teacher.close()
    assert not teacher.is_loaded
    teacher.dense(row)  # a stage after that one may ask again


def test_a_teacher_is_frozen_and_keeps_its_own_dtype_under_autocast(checkpoint, student, ask):
    (row,) = pack(groups(student[1], prompts=1), student[1], WHOLE)
    for dtype in (torch.bfloat16, torch.float32):
        teacher = ask(checkpoint("teacher"), dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = teacher.dense(row)
        outside = teacher.dense(row)
        assert inside.hidden_TH.dtype == inside.weight_VH.dtype == dtype
        assert not inside.hidden_TH.requires_grad and not inside.weight_VH.requires_grad
        assert torch.equal(inside.hidden_TH, outside.hidden_TH)


def test_hidden_states_that_are_not_finite_are_refused_with_the_teachers_name(checkpoint, student):
    model, facts, _ = model_of(checkpoint("teacher"))
    (row,) = pack(texts(1), student[1], WHOLE)
    with torch.no_grad():
        model.model.language_model.norm.weight[3] = torch.inf
    with pytest.raises(
        TeacherError, match="'big' gives numbers that are not finite in float32; its weights are damaged"
    ):
        given(model, facts).dense(row)
    for asked in (lambda t: t.logprobs(texts(2)), lambda t: t.top_scores(texts(2), 3)):
        with pytest.raises(TeacherError, match="'big' gives numbers that are not finite"):
            asked(given(model, facts))
    with torch.no_grad():
        damaged, text_facts, _ = model_of(checkpoint("text"))
        damaged.get_output_embeddings().weight[7, 7] = torch.nan
    with pytest.raises(TeacherError, match="'big' has a head with weights that are not finite"):
        given(damaged, text_facts).dense(row)
    half = model.to(torch.bfloat16)
    with pytest.raises(TeacherError, match="not finite in bfloat16; values may overflow there: set its dtype float32"):
        given(half, facts).dense(row)


def test_rows_that_only_pad_the_teachers_head_are_never_among_its_likeliest(checkpoint, student):
    model, _, processor = model_of(checkpoint("teacher"))
    model.resize_token_embeddings(student[1].vocab_size + 3)
    with torch.no_grad():  # the padding repeats the likeliest rows there are
        weight = model.get_output_embeddings().weight
        weight[-3:] = weight[20:23]
    facts = facts_of(model.config, processor.tokenizer)
    sequences = texts()
    scores = given(model, facts, vocab_size=student[1].vocab_size).top_scores(sequences, 6)
    for sequence, found in zip(sequences, scores, strict=True):
        wanted = unpacked(model, facts, sequence)
        values, ids = wanted[:, : student[1].vocab_size].topk(6)
        assert np.array_equal(found.token_ids_NK, ids)
        assert np.allclose(found.logprobs_NK, values, rtol=0, atol=NATS)
        total = np.logaddexp(np.logaddexp.reduce(found.logprobs_NK, axis=1), found.tail_N)
        assert np.abs(total).max() < 1e-5


def test_a_sequence_beyond_the_context_is_refused(checkpoint, ask):
    with pytest.raises(TeacherError, match="'big' reads 4096 tokens, a sequence has 4097; lower max_length"):
        ask(checkpoint("text")).logprobs([samples.text(4097)])


def test_a_checkpoint_that_cannot_be_a_teacher_is_refused_by_name(tmp_path, checkpoint, ask):
    with pytest.raises(TeacherError, match="teacher 'big': there is no folder"):
        ask(tmp_path / "nowhere")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(TeacherError, match="teacher 'big': .* is a model of type 'bert'"):
        ask(tmp_path / "bert")


def test_an_adapters_folder_is_a_teacher_with_the_adapter_on(tmp_path, checkpoint, student, ask):
    model, facts, processor = model_of(checkpoint("teacher"))
    adapted = with_trained_adapters(model, facts)
    save_model(adapted, processor, tmp_path / "adapter")
    sequences = groups(student[1], prompts=1)
    wanted = PackedPolicy(adapted, facts).logprobs(sequences, WHOLE)
    teacher = ask(tmp_path / "adapter")
    assert agree([torch.from_numpy(x) for x in teacher.logprobs(sequences)], wanted)
    assert teacher.context == 4096


def with_trained_adapters(model, facts):
    torch.manual_seed(0)
    adapted = add_lora(model, facts, rank=4, parts=["vision", "language"])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return adapted


def test_the_student_as_its_own_teacher_is_the_model_under_its_adapters(checkpoint, student):
    model, facts, _ = model_of(checkpoint("student"))
    sequences = groups(facts)
    base = PackedPolicy(student[0], facts).logprobs(sequences, WHOLE)
    policy = PackedPolicy(with_trained_adapters(model, facts), facts)
    trained = policy.logprobs(sequences, WHOLE)
    flags = {name: p.requires_grad for name, p in policy.named_parameters()}
    teacher = StudentTeacher("self", policy, identity="i", budget=TIGHT)
    found = by_sequence(teacher, sequences, facts, TIGHT)
    assert agree(found, [unpacked(student[0], facts, sequence) for sequence in sequences])
    assert agree([torch.from_numpy(x) for x in teacher.logprobs(sequences)], base)
    assert agree(
        [torch.from_numpy(s.logprobs_NK) for s in teacher.top_scores(sequences, 4)], [x.topk(4).values for x in found]
    )
    # Its adapters are on again, and are trained on.
    assert agree(policy.logprobs(sequences, WHOLE), trained) and not agree(trained, base)
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == flags
    assert teacher.context == 4096


def test_frozen_vision_adapters_keep_their_own_features_beside_the_base_models(checkpoint):
    model, facts, _ = model_of(checkpoint("student"))
    policy = PackedPolicy(with_trained_adapters(model, facts), facts)
    policy.requires_grad_(False)  # a frozen tower's features are kept from pass to pass
    sequences = groups(facts, prompts=1)
    teacher = StudentTeacher("self", policy, identity="i", budget=WHOLE)
    taught, own = teacher.logprobs(sequences), policy.logprobs(sequences, WHOLE)
    fresh = PackedPolicy(policy.model, facts)
    assert agree(own, fresh.logprobs(sequences, WHOLE))
    assert agree([torch.from_numpy(x) for x in teacher.logprobs(sequences)], [torch.from_numpy(x) for x in taught])


def test_a_student_without_adapters_cannot_be_its_own_teacher(student):
    with pytest.raises(ConfigError, match="'self' is the student without its adapters.*add model.lora"):
        StudentTeacher("self", PackedPolicy(student[0], student[1]), identity="i", budget=WHOLE)


def test_the_teacher_sees_the_images(checkpoint, student, ask):
    """Other pixels, other scores: the features reach the language model."""
    teacher = ask(checkpoint("teacher"))
    facts = student[1]
    first, second = (image(facts, 4, 6, seed) for seed in (1, 2))
    ids = with_images(facts, np.random.default_rng(0), [first])
    mask = np.arange(len(ids)) >= len(ids) - 3
    one = replace(samples.text(5), token_ids=ids, mask=mask, images=(first,))
    a, b = teacher.logprobs([one, replace(one, images=(second,))])
    assert np.abs(a - b).max() > 1e-3
