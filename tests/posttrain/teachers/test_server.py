"""A teacher on a server: exact where the server is right, and one sentence, never a score, where it is wrong."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from posttrain.model import ModelFacts, TokenSequence, facts_of
from posttrain.model.loading import load_processor
from transformers import AutoConfig

from posttrain.data.images import to_patches
from posttrain.errors import ConfigError, TeacherError
from posttrain.records import Example
from posttrain.rollout.engine import Sampling
from posttrain.teachers import server_client, server_tokenizer
from posttrain.teachers.answer import Answer, whole_text
from posttrain.teachers.server import ServerTeacher
from posttrain.teachers.server_tokenizer import probe_text
from tests.posttrain.teachers import fake_server, samples
from tests.posttrain.teachers.fake_server import FakeServer, edited, logprobs_TV, picture_in, status
from tests.waiting import GROWING_S, HANG_S, PATIENCE_S

K = 8


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load_processor(checkpoint("student"))


@pytest.fixture(scope="module")
def facts(checkpoint, processor) -> ModelFacts:
    return facts_of(AutoConfig.from_pretrained(checkpoint("student")), processor.tokenizer)


@pytest.fixture
def server(facts: ModelFacts) -> Iterator[FakeServer]:
    fake = FakeServer(facts)
    yield fake
    fake.stop()


@pytest.fixture
def ask(server: FakeServer, facts: ModelFacts, processor):
    """Makes a teacher on the server, and closes it after the test."""
    made: list[ServerTeacher] = []

    def teacher(**options) -> ServerTeacher:
        options = {"facts": facts, "processor": processor, "timeout_s": PATIENCE_S, "backoff_s": 0.02, **options}
        made.append(ServerTeacher("deep", server.url, **options))
        return made[-1]

    yield teacher
    for each in made:
        each.close()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def with_images(facts: ModelFacts, processor, pictures: list[Image.Image]) -> TokenSequence:
    """Pictures in turn, each between its marks and before a word; every other word is trained on."""
    images = tuple(to_patches(picture, processor.image_processor) for picture in pictures)
    ids, trained = [40, 41], [False, False]
    for i, image in enumerate(images):
        shown = [facts.image_token_id] * image.num_tokens(facts.merge_size)
        piece = [facts.vision_start_token_id, *shown, facts.vision_end_token_id, 50 + i, 60 + i]
        ids += piece
        trained += [False] * (len(piece) - 1) + [True]
    return TokenSequence(token_ids=np.array(ids, dtype=np.int64), mask=np.array(trained), images=images)


def expected(sequence: TokenSequence, facts: ModelFacts) -> np.ndarray:
    """[N, V] float32: what the fake server holds."""
    return logprobs_TV(sequence.token_ids.tolist(), facts.vocab_size)[sequence.mask]


def check_scores(scores, sequences, facts: ModelFacts, top_k: int = K) -> None:
    assert len(scores) == len(sequences)
    for found, sequence in zip(scores, sequences, strict=True):
        held = expected(sequence, facts)
        order = np.argsort(-held, axis=1, kind="stable")[:, :top_k]
        assert found.token_ids_NK.dtype == np.int32 and np.array_equal(found.token_ids_NK, order)
        likeliest = np.take_along_axis(held, order, axis=1)
        assert found.logprobs_NK.dtype == np.float32 and np.array_equal(found.logprobs_NK, likeliest)
        tail = np.log(1 - np.exp(likeliest.astype(np.float64)).sum(axis=1))
        assert found.tail_N.dtype == np.float32 and found.tail_N == pytest.approx(tail, abs=1e-5)


# What is right


def test_scores_are_the_servers_likeliest_tokens_and_what_they_leave(ask, server, facts) -> None:
    sequences = [samples.text(length, trained=4, seed=length) for length in (9, 30, 17)]
    check_scores(ask().top_scores(sequences, K), sequences, facts)
    assert set(server.paths()) == {"/inference/v1/generate"}


def test_logprobs_are_those_of_the_trained_tokens_themselves(ask, facts) -> None:
    sequences = [samples.text(length, trained=4, seed=length) for length in (9, 30)]
    for found, sequence in zip(ask().logprobs(sequences), sequences, strict=True):
        held = np.take_along_axis(expected(sequence, facts), sequence.token_ids[sequence.mask][:, None], axis=1)
        assert found.dtype == np.float32 and np.array_equal(found, held[:, 0])


def test_a_trained_token_among_the_likeliest_is_not_counted_twice(ask, facts) -> None:
    sequence = samples.text(12, trained=1)
    likeliest = expected(sequence, facts)[0].argsort()[::-1]
    for token in (likeliest[0], likeliest[K - 1], likeliest[K]):
        ids = sequence.token_ids.copy()
        ids[-1] = token
        changed = TokenSequence(token_ids=ids, mask=sequence.mask)
        check_scores(ask().top_scores([changed], K), [changed], facts)


def test_a_trained_token_that_ties_with_a_likely_one_does_not_take_its_place(ask, server) -> None:
    sequence = samples.text(12, trained=1)
    own = str(sequence.token_ids[-1])

    def tie(right) -> None:  # a server that counts how many are likelier gives equal tokens equal ranks
        entry = right["prompt_logprobs"][-1]
        third = next(token for token, score in entry.items() if score["rank"] == 3)
        assert third != own
        entry[own] = dict(entry[third])

    server.faults = [edited(tie)]
    (tied,) = ask().top_scores([sequence], K)
    (plain,) = ask().top_scores([sequence], K)
    assert np.array_equal(tied.token_ids_NK, plain.token_ids_NK)


def test_images_go_out_as_their_very_pixels_with_one_token_each(ask, server, facts, processor) -> None:
    pictures = [noise(64, 32), noise(32, 96, seed=1), noise(64, 32, seed=2)]
    sequence = with_images(facts, processor, pictures)
    check_scores(ask().top_scores([sequence], K), [sequence], facts)
    ((path, body),) = server.asked
    assert path == "/inference/v1/generate"
    assert body["token_ids"].count(facts.image_token_id) == 3
    shown = [picture_in(part["url"]) for part in body["content_parts"]]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(shown, pictures, strict=True))


def test_text_goes_where_every_server_takes_it_when_the_other_endpoint_is_closed(ask, server, facts) -> None:
    server.takes_tokens = False
    sequences = [samples.text(9, seed=1), samples.text(11, seed=2)]
    teacher = ask(concurrency=1)
    check_scores(teacher.top_scores(sequences, K), sequences, facts)
    assert server.paths() == ["/inference/v1/generate", "/v1/completions", "/v1/completions"]


def test_all_tokens_leave_no_tail(ask, server, facts) -> None:
    server.max_logprobs = facts.vocab_size
    (scores,) = ask().top_scores([samples.text(6, trained=2)], facts.vocab_size)
    assert (scores.tail_N == -np.inf).all()
    assert (np.sort(scores.token_ids_NK, axis=1) == np.arange(facts.vocab_size)).all()


def test_a_tail_below_rounding_is_said_to_be_a_millionth(ask, server) -> None:
    def sure(right) -> None:
        for score in right["prompt_logprobs"][-1].values():
            score["logprob"] = 0.0 if score["rank"] == 1 else -60.0

    server.faults = [edited(sure)]
    (scores,) = ask().top_scores([samples.text(6, trained=1)], K)
    assert scores.tail_N == pytest.approx([np.log(1e-6)], abs=1e-6)


def test_what_trains_nothing_is_not_asked_about(ask, server) -> None:
    teacher = ask()
    (scores,) = teacher.top_scores([samples.text(6, trained=0)], K)
    assert scores.token_ids_NK.shape == (0, K) and scores.tail_N.shape == (0,)
    assert [len(found) for found in teacher.logprobs([samples.text(6, trained=0)])] == [0]
    assert teacher.top_scores([], K) == [] and server.asked == []


def test_results_keep_the_order_of_the_sequences(ask, server, facts) -> None:
    server.faults = [fake_server.slow(0.3)]
    sequences = [samples.text(8 + i, seed=i) for i in range(6)]
    check_scores(ask().top_scores(sequences, K), sequences, facts)


def test_all_threads_together_keep_to_the_concurrency(ask, server, facts) -> None:
    teacher = ask(concurrency=3)
    server.faults = [fake_server.meeting(3)] * 3 + [fake_server.slow(0.05)] * 9
    batches = [[samples.text(8, seed=10 * b + i) for i in range(4)] for b in range(3)]
    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda b=b: found.update({b: teacher.top_scores(batches[b], K)})) for b in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for b, batch in enumerate(batches):
        check_scores(found[b], batch, facts)
    assert server.most_under_way == 3


def test_identity_and_context_are_what_the_server_says(ask) -> None:
    teacher = ask()
    assert teacher.name == "deep"
    assert teacher.identity == "big (/models/big)"
    assert teacher.context == 199  # a prompt of 200 leaves vLLM no token to say


# What passes


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503),
        status(429, "busy"),
        fake_server.cut,
        fake_server.gone,
        fake_server.half_json,
    ],
    ids=["500", "503", "busy", "cut", "gone", "half_json"],
)
def test_a_fault_that_passes_is_survived(ask, server, facts, fault) -> None:
    teacher = ask()
    server.faults = [fault, fault]
    sequence = samples.text(9)
    check_scores(teacher.top_scores([sequence], K), [sequence], facts)
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", [fake_server.hanging, fake_server.dripping])
def test_tries_that_do_not_end_are_ended_and_survived(ask, server, facts, fault) -> None:
    sequence = samples.text(9)
    for timeout_s in GROWING_S:
        server.asked.clear()
        server.faults = [fault, fault]
        with suppress(TeacherError):  # a machine that is slower than this
            check_scores(ask(timeout_s=timeout_s).top_scores([sequence], K), [sequence], facts)
            if len(server.asked) == 3:
                break
    assert len(server.asked) == 3 and not server.let_go.is_set()


def test_a_server_that_restarts_in_the_middle_is_waited_for(ask, server, facts) -> None:
    teacher = ask(concurrency=4, backoff_s=0.1, retries=10)

    def die(handler, right) -> None:
        server.restart(after_s=0.4)
        handler.hang_up()

    server.faults = [fake_server.slow(0.05)] * 8 + [die]
    sequences = [samples.text(8 + i % 5, seed=i) for i in range(24)]
    check_scores(teacher.top_scores(sequences, K), sequences, facts)


# What is wrong

_FIRST, _LAST = 6, 8  # trained places of the sequence that is asked about


def _put(place: int, value):
    def change(right) -> None:
        right["prompt_logprobs"][place] = value

    return edited(change)


def _score(value, *, rank: int | None = None):
    """One token's log-probability replaced: that of a rank, or of the trained token."""

    def change(right) -> None:
        entry = right["prompt_logprobs"][_LAST]
        key = next(iter(entry)) if rank is None else next(k for k, v in entry.items() if v["rank"] == rank)
        entry[key]["logprob"] = value

    return edited(change)


def _logits(right) -> None:
    for entry in right["prompt_logprobs"][1:]:
        for score in entry.values():
            score["logprob"] /= 10


def _renamed(right) -> None:
    entry = right["prompt_logprobs"][_LAST]
    first = next(key for key, score in entry.items() if score["rank"] == 1)
    entry["4000"] = entry.pop(first)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (_score(float("nan"), rank=2), "not finite.*--dtype"),
        (_score(None, rank=2), "not finite"),
        (_score(-9999.0, rank=2), "not finite"),
        (_score(float("inf"), rank=2), "not finite"),
        (_score(0.5, rank=1), r"0\.500, above 0.*--logprobs-mode raw_logprobs"),
        (edited(_logits), r"probability of .* together.*--logprobs-mode"),
        (_score("many", rank=2), "no numbers"),
        (status(400, "Out of range float values are not JSON compliant"), "not finite.*--dtype"),
        (_put(_FIRST, None), "gave None for token 6"),
        (_put(_FIRST, {}), "without the token"),
        (edited(lambda right: right["prompt_logprobs"].pop()), "8 entries for the 9 tokens"),
        (edited(lambda right: right["prompt_logprobs"].insert(1, right["prompt_logprobs"][1])), "10 entries"),
        (edited(lambda right: right.pop("prompt_logprobs")), "nothing for the 9 tokens"),
        (edited(lambda right: right["prompt_logprobs"].reverse()), "without the token"),
        (edited(lambda right: right["prompt_logprobs"][_LAST].popitem()), "no 8 likeliest tokens with ranks"),
        (edited(_renamed), "token 4000 .* head has .* rows"),
        (edited(lambda right: right["prompt_token_ids"].__setitem__(3, 7)), "other ones from token 3 on"),
        (edited(lambda right: right["prompt_token_ids"].append(7)), "read 10 tokens where the student has 9"),
        (edited(lambda right: right.pop("prompt_token_ids")), "return_token_ids"),
        (status(400, "Requested prompt logprobs of 8, which is greater than max allowed: 5"), "--max-logprobs 8,"),
        (status(400, "Token id 447 is out of vocabulary"), "tokenizer"),
        (status(404, "The model `big` does not exist. Valid aliases: other."), "no longer serves.*other"),
        (status(400, "At most 1 image(s) may be provided in one prompt."), "--limit-mm-per-prompt"),
        (status(418, "I am\na teapot"), "refused a request with 418: I am a teapot"),
        (lambda handler, right: handler.send(200, b"[1]"), "not of vLLM's shape"),
    ],
)
def test_a_wrong_answer_is_one_sentence_and_asked_for_once(ask, server, fault, sentence: str) -> None:
    teacher = ask()
    server.faults = [fault]
    with pytest.raises(TeacherError, match=sentence) as failure:
        teacher.top_scores([samples.text(9)], K)
    assert str(failure.value).startswith(f"teacher 'deep' at {server.url} ")
    assert "\n" not in str(failure.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("value", [float("nan"), None, -9999.0, 0.5, "many", {}])
def test_a_trained_tokens_own_number_is_not_believed_either(ask, server, value) -> None:
    teacher = ask()
    server.faults = [_score(value)]
    with pytest.raises(TeacherError, match="teacher 'deep' .* gave (log-probabilities|a log-probability)"):
        teacher.logprobs([samples.text(9)])


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (status(500, "CUDA out of memory"), r"answered 500 \(CUDA out of memory\) .*3 tries in .* log"),
        (fake_server.cut, "broke off .*3 tries"),
        (fake_server.gone, "broke off .*3 tries"),
        (fake_server.half_json, "no whole JSON .*3 tries"),
    ],
    ids=["500", "cut", "gone", "half_json"],
)
def test_a_fault_that_stays_is_one_sentence_after_the_last_try(ask, server, fault, sentence: str) -> None:
    teacher = ask(retries=2)
    server.faults = [fault] * 3
    with pytest.raises(TeacherError, match=sentence):
        teacher.top_scores([samples.text(9)], K)
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", [fake_server.hanging, fake_server.dripping])
def test_tries_that_never_end_are_one_sentence_after_the_last(ask, server, fault) -> None:
    teacher = ask(retries=2)
    teacher._client._timeout_s = 0.3  # only now: the server has said in peace what it serves
    teacher._client._http.timeout = 0.3
    server.faults = [fault] * 3
    with pytest.raises(TeacherError, match="no whole answer within 0.3 s .*3 tries in .*raise timeout_s"):
        teacher.top_scores([samples.text(9)], K)
    assert len(server.asked) <= 3 and not server.let_go.is_set()


def test_the_first_failure_ends_the_other_requests_tries(ask, server, monkeypatch) -> None:
    """The pauses between their tries are of minutes; afterwards all threads are free."""
    monkeypatch.setattr(server_client, "_LONGEST_PAUSE_S", HANG_S)
    teacher = ask(retries=8, backoff_s=HANG_S, concurrency=3)
    server.faults = [status(500), status(500), status(400, "no")] + [status(500)] * 9
    begun = time.monotonic()
    with pytest.raises(TeacherError, match="400: no"):
        teacher.top_scores([samples.text(9, seed=i) for i in range(6)], K)
    assert time.monotonic() - begun < PATIENCE_S
    assert len(server.asked) <= 4  # the thread that failed may have begun one more
    monkeypatch.setattr(server_client, "_LONGEST_PAUSE_S", 0.1)
    server.asked.clear()
    server.faults = [fake_server.meeting(3)] * 3
    teacher.top_scores([samples.text(9, seed=i) for i in range(3)], K)
    assert len(server.asked) <= 4, "they did not meet"  # again with that one more


def test_a_server_that_is_down_is_named_when_the_teacher_is_made(ask, server) -> None:
    server.stop()
    with pytest.raises(TeacherError, match=r"teacher 'deep' at .* cannot be reached .*3 tries.*start it") as failure:
        ask(retries=2)
    assert server.url in str(failure.value)
    server.start()


def test_a_server_that_comes_back_with_other_weights_is_found_out(ask, server) -> None:
    teacher = ask()
    teacher.logprobs([samples.text(9)])
    server.models[0]["root"] = "/models/other"
    with pytest.raises(TeacherError, match="now serves 'big' \\(/models/other\\), no longer .*/models/big"):
        teacher.logprobs([samples.text(9)])


def test_images_want_the_endpoint_that_takes_tokens(ask, server, facts, processor) -> None:
    server.takes_tokens = False
    with pytest.raises(TeacherError, match="--enable-scale-out"):
        ask().top_scores([with_images(facts, processor, [noise(64, 32)])], K)


def test_images_that_the_server_cuts_otherwise_are_never_scored(ask, server, facts, processor) -> None:
    def resized(right) -> None:
        right["prompt_token_ids"].remove(facts.image_token_id)
        right["prompt_logprobs"].pop()

    teacher = ask()
    server.faults = [edited(resized)]
    with pytest.raises(TeacherError, match="read 13 tokens where the student has 14.*patch size.*limits of pixels"):
        teacher.top_scores([with_images(facts, processor, [noise(64, 32)])], K)


def test_images_without_their_places_are_refused_before_the_server_is_asked(ask, server, facts, processor) -> None:
    sequence = with_images(facts, processor, [noise(64, 32), noise(64, 32, seed=1)])
    touching = np.delete(sequence.token_ids, np.arange(11, 15))  # what stands between the two images
    mask = np.arange(len(touching)) == len(touching) - 1
    teacher = ask()
    with pytest.raises(TeacherError, match="2 images and 1 places"):
        teacher.logprobs([TokenSequence(token_ids=touching, mask=mask, images=sequence.images)])
    assert server.asked == []


def test_a_sequence_over_the_context_is_refused_before_anything_is_asked(ask, server) -> None:
    teacher = ask()
    teacher.logprobs([samples.text(199)])
    server.asked.clear()
    with pytest.raises(TeacherError, match="reads 199 tokens, a sequence has 200.*--max-model-len"):
        teacher.top_scores([samples.text(9), samples.text(200)], K)
    assert server.asked == []


@pytest.mark.parametrize("top_k", [0, 10_000])
def test_a_top_k_outside_the_vocabulary_is_refused(ask, top_k: int) -> None:
    with pytest.raises(TeacherError, match=f"top_k {top_k}"):
        ask().top_scores([samples.text(9)], top_k)


# Which server, which model, which key


def test_a_model_that_is_not_served_is_answered_with_those_that_are(ask, server) -> None:
    server.models.append({"id": "domain", "root": "/adapters/domain", "parent": "big", "max_model_len": 200})
    with pytest.raises(TeacherError, match="does not serve 'huge', it serves 'big', 'domain'"):
        ask(model="huge")
    assert ask(model="domain").identity == "domain (/adapters/domain)"
    assert ask().identity == "big (/models/big)"  # adapters are taken only by name
    server.models.append({"id": "second", "root": "/models/second", "parent": None, "max_model_len": 200})
    with pytest.raises(TeacherError, match="serves 'big', 'domain', 'second': say which"):
        ask()


def test_an_address_with_v1_is_the_same_address(server, facts, processor) -> None:
    teacher = ServerTeacher("deep", server.url + "/v1/", facts=facts, processor=processor)
    teacher.logprobs([samples.text(9)])
    teacher.close()
    assert server.paths() == ["/inference/v1/generate"]


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://me:secret@host:1", "http://h/?k=secret", "http://[::"]
)
def test_an_address_that_cannot_be_right_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:8000") as failure:
        ServerTeacher("deep", url, facts=None, processor=None)
    assert "secret" not in str(failure.value)


def test_the_key_goes_to_the_server_and_into_no_message(ask, server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-right"
    with pytest.raises(TeacherError, match="wants an API key .*api_key_env"):
        ask()
    monkeypatch.setenv("TEACHER_KEY", "sk-wrong")
    with pytest.raises(TeacherError, match=r"refuses the API key in \$TEACHER_KEY") as failure:
        ask(api_key_env="TEACHER_KEY")
    assert "sk-" not in str(failure.value)
    monkeypatch.setenv("TEACHER_KEY", "sk-right\n")
    teacher = ask(api_key_env="TEACHER_KEY")
    server.faults = [status(400, "the key sk-right is odd")]
    with pytest.raises(TeacherError, match=r"the key \*\*\* is odd"):
        teacher.logprobs([samples.text(9)])


@pytest.mark.parametrize("value", [None, "", " ", "sk-\u00fc", "a\nb"])
def test_a_key_that_is_not_there_is_asked_for_by_the_variables_name(ask, monkeypatch, value: str | None) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(ConfigError, match="TEACHER_KEY"):
        ask(api_key_env="TEACHER_KEY")


def test_a_proxy_is_used_for_other_machines_only(ask, server, facts, processor, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    ask().logprobs([samples.text(9)])
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, server.url)
    far = ServerTeacher("far", "http://teacher.invalid:8000", facts=facts, processor=processor)
    far.logprobs([samples.text(9)])
    far.close()


def test_a_server_without_a_context_gives_answers_but_no_scores(ask, server) -> None:
    server.models = [{"id": "big", "owned_by": "someone"}]
    teacher = ask()
    assert teacher.identity == "big (big)"
    with pytest.raises(TeacherError, match="scores want a vLLM server"):
        teacher.logprobs([samples.text(9)])


# Tokenizers


def test_a_tokenizer_that_agrees_passes(ask, server, processor) -> None:
    server.tokenizer = processor.tokenizer
    ask().check_tokenizer(processor.tokenizer)


def test_the_first_token_of_another_tokenizer_is_named(ask, server, checkpoint, processor) -> None:
    other = load_processor(checkpoint("student")).tokenizer
    other.add_tokens(["<depth>"])
    server.tokenizer = other
    ours = processor.tokenizer.encode(probe_text(other), add_special_tokens=False)
    assert "<depth>" not in processor.tokenizer.convert_ids_to_tokens(ours)
    teacher = ask()
    teacher.check_tokenizer(processor.tokenizer)  # more tokens there do no harm to text without them
    server.tokenizer = processor.tokenizer
    with pytest.raises(TeacherError, match=rf"is \d+ \('.*'\) there and {len(other) - 1} \('<depth>'\) here; choose"):
        teacher.check_tokenizer(other)


def test_the_probe_holds_every_added_token_of_a_large_vocabulary(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_tokenizer, "_PIECES", 10)  # as few for this vocabulary as there are for a large one
    text = probe_text(processor.tokenizer)
    assert all(token in text for token in processor.tokenizer.get_added_vocab())
    assert 10 <= len(text.encode()) < 2000


def test_a_tokenizer_with_swapped_ids_is_found_out(ask, server, processor) -> None:
    class Swapped:
        """The student's, with two tokens that no probe text singles out exchanged."""

        def encode(self, text, add_special_tokens):
            ids = processor.tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return [{300: 301, 301: 300}.get(i, i) for i in ids]

        convert_ids_to_tokens = processor.tokenizer.convert_ids_to_tokens

    server.tokenizer = Swapped()
    with pytest.raises(TeacherError, match=r"is 30[01] \(.*\) there and 30[01] \(.*\) here"):
        ask().check_tokenizer(processor.tokenizer)


# Answers


def example(name: str, *parts, images=(), **reference) -> Example:
    messages = ({"role": "user", "content": list(parts)}, {"role": "assistant", "content": "the reference"})
    return Example(id=name, task="t", messages=messages, images=tuple(images), reference=reference)


SAMPLING = Sampling(max_new_tokens=7, temperature=0.6, top_p=0.95, top_k=20, seed=3)
TEXT, IMAGE = {"type": "text", "text": "How many?"}, {"type": "image"}


def answers(ask, examples, *, n=2, sampling=SAMPLING, thinking=None):
    return ask(facts=None, processor=None).answer(examples, n=n, sampling=sampling, thinking=thinking)


def test_an_example_is_asked_with_its_images_in_place_and_without_its_answer(ask, server) -> None:
    pictures = [noise(40, 30), noise(7, 9, seed=1)]
    found = answers(ask, [example("a", IMAGE, TEXT, IMAGE, images=pictures)])
    assert found == [[Answer(text="answer 0", finished=True), Answer(text="answer 1", finished=True)]]
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions"
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text", "image_url"]
    shown = [picture_in(part["image_url"]["url"]) for part in message["content"] if part["type"] == "image_url"]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(shown, pictures, strict=True))
    assert body | {"messages": [], "seed": 0} == {
        "model": "big",
        "messages": [],
        "n": 2,
        "max_tokens": 7,
        "temperature": 0.6,
        "top_p": 0.95,
        "seed": 0,
        "top_k": 20,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def test_a_server_that_is_not_vllm_is_asked_for_what_all_know(ask, server) -> None:
    server.models[0]["owned_by"] = "someone"
    answers(ask, [example("a", TEXT)], sampling=Sampling(max_new_tokens=7), thinking=False)
    (_, body) = server.asked[0]
    known = {"model", "messages", "n", "max_tokens", "temperature", "top_p", "seed", "chat_template_kwargs"}
    assert set(body) == known and body["chat_template_kwargs"] == {"enable_thinking": False}


def test_an_examples_seed_is_its_own_whatever_it_is_asked_with(ask, server) -> None:
    answers(ask, [example("a", TEXT), example("b", TEXT)])
    answers(ask, [example("b", TEXT)])
    answers(ask, [example("b", TEXT)], sampling=Sampling(max_new_tokens=7, seed=4))
    a, b = (next(body for _, body in server.asked[:2] if body["seed"] == seed) for seed in seeds(server)[:2])
    assert a["seed"] != b["seed"]
    assert seeds(server)[2] in (a["seed"], b["seed"]) and seeds(server)[3] not in (a["seed"], b["seed"])


def seeds(server: FakeServer) -> list[int]:
    return [body["seed"] for _, body in server.asked]


def test_a_greedy_answer_is_asked_for_once(ask, server) -> None:
    (found,) = answers(ask, [example("a", TEXT)], n=3, sampling=Sampling(max_new_tokens=7, temperature=0))
    assert [answer.text for answer in found] == ["answer 0"] * 3
    assert server.asked[0][1]["n"] == 1


def test_tools_are_shown_and_calls_stay_text(ask, server) -> None:
    tool = {"type": "function", "function": {"name": "zoom", "parameters": {}}}
    answers(ask, [example("a", TEXT, tools=[tool])])
    (_, body) = server.asked[0]
    assert body["tools"] == [tool] and body["tool_choice"] == "none"


def test_answers_are_whole_again_and_say_whether_they_ended(ask, server) -> None:
    said = [
        ({"reasoning": "\nthree\n", "content": "\n\n3"}, "stop"),
        ({"reasoning_content": "three", "content": "3"}, "stop"),
        ({"reasoning": "thre", "content": None}, "length"),
        ({"content": "three\n</think>\n\n3"}, "stop"),
        ({"content": "<think>\nthree\n</think>\n\n3"}, "stop"),
        ({"content": "3"}, "abort"),
    ]
    server.say = lambda body: [
        {"index": i, "message": message, "finish_reason": reason} for i, (message, reason) in enumerate(said)
    ][::-1]  # in any order
    (found,) = answers(ask, [example("a", TEXT)], n=6)
    whole = "<think>\nthree\n</think>\n\n3"
    assert [answer.text for answer in found] == [whole, whole, "<think>\nthre", whole, whole, "3"]
    assert [answer.finished for answer in found] == [True, True, False, True, True, False]


def test_text_without_thoughts_stays_as_it_is() -> None:
    for text in ("", " 3\n", "a <think> b", "<think>\n\n</think>\n\n3", "\n<think>a</think>b"):
        assert whole_text("", text) == text
    assert whole_text("\n", "3") == "3"


def test_a_prompt_that_is_too_long_is_left_without_answers(ask, server, caplog) -> None:
    server.faults = [status(400, "This model's maximum context length is 200 tokens. However, your prompt ...")]
    found = answers(ask, [example("train:7", TEXT)])
    assert found == [[]]
    assert "train:7 is too long" in caplog.text


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (edited(lambda right: right["choices"].pop()), "gave 1 answers to a prompt, not 2"),
        (edited(lambda right: right.pop("choices")), "no chat completion"),
        (edited(lambda right: right["choices"][0].pop("message")), "no chat completion"),
        (status(400, "/m/x is not a multimodal model"), "asked for train:7, .*text model and cannot see images"),
        (status(400, "As of transformers v4.44, no chat template"), "asked for train:7, refused .* no chat template"),
    ],
)
def test_answers_that_are_none_are_one_sentence(ask, server, fault, sentence: str) -> None:
    server.faults = [fault]
    with pytest.raises(TeacherError, match=sentence):
        answers(ask, [example("train:7", TEXT)])


def test_faults_that_pass_are_survived_by_answers_too(ask, server) -> None:
    server.faults = [status(500), fake_server.cut, fake_server.half_json]
    assert [len(found) for found in answers(ask, [example("a", TEXT)])] == [2]


def test_a_template_that_thinks_alike_either_way_is_found_out(ask, server) -> None:
    answers(ask, [example("a", TEXT)], thinking=True)
    assert server.asked[-1][1]["chat_template_kwargs"] == {"enable_thinking": True}
    server.reads_thinking = False
    with pytest.raises(TeacherError, match="does not read enable_thinking"):
        answers(ask, [example("a", TEXT)], thinking=False)


def test_a_teacher_made_to_answer_scores_nothing(ask) -> None:
    with pytest.raises(TeacherError, match="made to answer"):
        ask(facts=None, processor=None).logprobs([samples.text(9)])


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"timeout_s": 0}, {"retries": -1}, {"backoff_s": -1.0}])
def test_settings_that_cannot_be_right_are_refused(ask, options) -> None:
    with pytest.raises(ConfigError, match="teacher 'deep'"):
        ask(**options)
