"""A judge in trouble: each fault is survived within the retries, or ends as unscored with its reason, never as 0."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from posttrain.rewards import Completion, JudgeAccuracy, Score, judge_client, judge_metrics
from posttrain.rewards.judge_client import _retry_after_s

from tests.rewards import judge_server
from tests.rewards.judge_server import Asked, Fault, Handler, JudgeServerFake, half_json, status, text
from tests.waiting import HANG_S, PATIENCE_S

REFERENCE = {"answer": "1"}


@pytest.fixture
def fake() -> Iterator[JudgeServerFake]:
    server = JudgeServerFake()
    yield server
    server.stop()


def reward(fake: JudgeServerFake, **more: Any) -> JudgeAccuracy:
    return JudgeAccuracy(server={"url": fake.url, "retries": 2, "backoff_s": 0.01, "timeout_s": PATIENCE_S, **more})


def said(number: int) -> list[Completion]:
    return [Completion(text=f"<answer>{i}</answer>") for i in range(number)]


def ask(judge: JudgeAccuracy, answer: str = "1") -> Score:
    return judge(Completion(text=f"<answer>{answer}</answer>"), REFERENCE)


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429), status(408), half_json, judge_server.gone],
    ids=lambda f: f.__name__,
)
def test_what_may_pass_is_tried_again(fake: JudgeServerFake, fault: Fault) -> None:
    fake.faults = [fault, fault]
    judge = reward(fake)
    assert ask(judge).value == 1.0
    assert len(fake.asked) == 3
    assert judge.metrics()["judge/retries"] == 2 and judge.metrics()["judge/failed_frac"] == 0


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (status(500, "out of memory"), r"answered 500 \(out of memory\) \(3 tries"),
        (status(429), r"is busy \(429\) \(3 tries"),
        (half_json, "are no JSON"),
        (judge_server.gone, "broke off"),
    ],
)
def test_what_does_not_pass_is_unscored_with_the_reason(fake: JudgeServerFake, fault: Fault, why: str) -> None:
    fake.faults = [fault] * 3
    judge = reward(fake)
    score = ask(judge)
    assert score.value is None and score.error and re.search(why, score.reason)
    assert len(fake.asked) == 3 and judge.metrics()["judge/failed_frac"] == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_asked_again(fake: JudgeServerFake, code: int) -> None:
    fake.faults = [status(code, "this context is too long")]
    score = ask(reward(fake))
    assert score.value is None and str(code) in score.reason
    assert len(fake.asked) == 1


@pytest.mark.parametrize("fault", [judge_server.hanging, judge_server.dripping])
def test_a_try_that_does_not_end_is_ended_at_its_timeout(fake: JudgeServerFake, fault: Fault) -> None:
    fake.faults = [fault] * 2
    begun = time.monotonic()
    score = ask(reward(fake, model="judge", retries=1, timeout_s=0.3))
    assert score.value is None and "gave no whole answer within 0.3 s (2 tries" in score.reason
    assert time.monotonic() - begun < PATIENCE_S / 2


def test_retry_after_is_waited_for(fake: JudgeServerFake) -> None:
    fake.faults = [status(429, "later", Retry_After="0.7")]
    start = time.monotonic()
    assert ask(reward(fake)).value == 1.0
    assert time.monotonic() - start > 0.7


@pytest.mark.parametrize(
    ("header", "seconds"), [("", 0), ("3", 3), ("900", 60), ("-1", 0), ("nan", 0), ("soon", 0), ("inf", 60)]
)
def test_retry_after_is_read_with_a_bound(header: str, seconds: float) -> None:
    assert _retry_after_s(header) == seconds
    assert _retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert _retry_after_s("Fri, 31 Dec 2999 23:59:59 GMT") == 60


def test_a_judge_that_disappears_for_a_while_is_survived(fake: JudgeServerFake) -> None:
    judge = reward(fake, retries=12, backoff_s=0.1)
    assert ask(judge, "0").value == 1.0  # a connection is open, and will be dead
    fake.away(1.0)
    scores = judge.score_batch(said(8), [{"answer": "2"}] * 8)
    assert [score.value for score in scores] == [1.0] * 8


def test_the_usual_retries_outlast_a_minute() -> None:
    from posttrain.rewards import JudgeServer

    server = JudgeServer()
    pauses = [min(server.backoff_s * 2**i, 30.0) / 2 for i in range(server.retries)]  # the shortest that are drawn
    assert 60 < sum(pauses) < server.outage_s


def test_a_dead_judge_costs_one_outage_and_not_one_for_every_completion(
    fake: JudgeServerFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_client, "_LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(judge_client, "_PROBE_EVERY_S", HANG_S)
    judge = reward(fake, model="judge", retries=100, backoff_s=0.05, outage_s=0.5, concurrency=4)
    fake.stop()
    scores = judge.score_batch(said(64), [REFERENCE] * 64)
    assert all(score.value is None for score in scores)
    assert sum("is down: no answer for" in score.reason for score in scores) >= 60
    assert judge.metrics()["judge/failed"] == 64
    fake.start()
    assert "is down" in ask(judge).reason and fake.asked == [], "it is not asked before the next try is due"


def test_a_judge_that_is_back_is_found_by_one_probe(fake: JudgeServerFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "_LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(judge_client, "_PROBE_EVERY_S", 0.2)
    judge = reward(fake, model="judge", retries=100, backoff_s=0.05, outage_s=0.3)
    fake.stop()
    assert ask(judge).value is None
    time.sleep(0.3)
    assert "down for" in ask(judge).reason  # a probe that failed
    fake.start()
    time.sleep(0.3)
    assert [score.value for score in judge.score_batch(said(20), [REFERENCE] * 20)] == [1.0] * 20


@pytest.mark.parametrize(
    "reply", ["I think it is right.", "", '{"id": "x", "correct": true}', "```json\n{}\n```", "<think>hm", "null"]
)
def test_a_reply_that_is_no_verdict_is_asked_for_anew(fake: JudgeServerFake, reply: str) -> None:
    fake.faults = [text(reply)] * 2
    judge = reward(fake)
    assert ask(judge).value == 1.0
    assert judge.metrics()["judge/unreadable"] == 2
    first, second, third = fake.asked
    assert [asked.body["temperature"] for asked in fake.asked] == pytest.approx([0, 0.3, 0.6])
    assert len({asked.verdict_id for asked in (first, second, third)}) == 3
    assert len({asked.boundary for asked in (first, second, third)}) == 3


def test_a_judge_that_only_talks_is_unscored_after_so_many_tries(fake: JudgeServerFake) -> None:
    fake.say = lambda asked: "It depends."
    score = ask(reward(fake, verdict_tries=2))
    assert score.value is None and "no verdict in 2 tries" in score.reason and "It depends." in score.reason
    assert len(fake.asked) == 2


def test_a_verdict_that_the_token_limit_cut_is_none(fake: JudgeServerFake) -> None:
    fake.finish_reason = "length"
    assert "cut off after 512 tokens" in ask(reward(fake)).reason


@pytest.mark.parametrize(
    "answer", [{"choices": []}, {"choices": [{}]}, {}, [], {"choices": [{"message": "x"}]}, 7, None], ids=str
)
def test_an_answer_that_is_no_chat_completion_is_unscored(fake: JudgeServerFake, answer: Any) -> None:
    import json

    fake.faults = [lambda handler, right: handler.send(200, json.dumps(answer).encode())] * 3
    assert "sent no chat completion" in ask(reward(fake)).reason


def test_a_reply_without_content_is_no_verdict(fake: JudgeServerFake) -> None:
    def empty(handler: Handler, right: dict[str, Any]) -> None:
        right["choices"][0]["message"]["content"] = None
        handler.send(200, right)

    fake.faults = [empty] * 3
    assert "it said nothing" in ask(reward(fake)).reason


def test_a_budget_of_requests_is_kept_exactly(fake: JudgeServerFake) -> None:
    judge = reward(fake, max_requests=5)
    scores = judge.score_batch(said(12), [REFERENCE] * 12)
    assert [score.value for score in scores].count(1.0) == 5 == len(fake.asked)
    assert {s.reason for s in scores if s.value is None} == {"the judge's budget of 5 requests is spent (max_requests)"}


@pytest.mark.parametrize("usage", [True, False])
def test_a_budget_of_tokens_ends_it(fake: JudgeServerFake, usage: bool) -> None:
    fake.usage = usage
    judge = reward(fake, max_tokens=250, concurrency=1)
    scores = judge.score_batch(said(12), [REFERENCE] * 12)
    assert 1 <= len(fake.asked) <= 3
    assert "budget of 250 tokens" in scores[-1].reason


def test_the_only_model_is_found_and_several_want_a_name(fake: JudgeServerFake) -> None:
    assert ask(reward(fake)).value == 1.0
    fake.models = ["small", "big"]
    assert "serves ['small', 'big']: name one" in ask(reward(fake, timeout_s=19.0)).reason
    assert ask(reward(fake, model="big")).value == 1.0
    assert fake.asked[-1].body["model"] == "big"


def test_the_key_is_sent_and_never_shown(fake: JudgeServerFake, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    fake.key = "sk-secret"
    judge = reward(fake, api_key_env="JUDGE_KEY")
    assert ask(judge).value == 1.0
    fake.key = "another"
    score = ask(judge, "2")
    assert "refused with 401: Unauthorized: Bearer ***" in score.reason
    assert "sk-secret" not in score.reason + caplog.text + repr(judge) + repr(judge.judge.server)
    assert "wants an API key (401)" in ask(reward(fake, model="judge")).reason


def test_a_missing_key_is_unscored_and_named(fake: JudgeServerFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert "JUDGE_KEY" in ask(reward(fake, api_key_env="JUDGE_KEY")).reason


def test_loopback_never_goes_through_a_proxy(fake: JudgeServerFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask(reward(fake)).value == 1.0


def test_nothing_is_opened_before_the_first_completion() -> None:
    judge = JudgeAccuracy(server={"url": "http://127.0.0.1:9", "cache": "/nowhere/at/all.sqlite"})
    assert judge.metrics()["judge/requests"] == 0
    assert judge.score_batch([], []) == []
    assert judge(Completion(text=""), REFERENCE).value == 0.0


def test_more_fields_are_sent_and_null_drops_one(fake: JudgeServerFake) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 9}
    ask(reward(fake, extra_body=extra, structured=True))
    body = fake.asked[0].body
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert body["response_format"]["json_schema"]["schema"]["properties"]["correct"] == {"enum": [True, False]}


def test_metrics_add_up_over_judges(fake: JudgeServerFake) -> None:
    before = judge_metrics().get("judge/asked", 0.0)
    ask(reward(fake, temperature=0.1))
    ask(reward(fake, temperature=0.2))
    assert judge_metrics()["judge/asked"] == before + 2


def test_one_odd_question_does_not_cost_the_others_their_verdicts(fake: JudgeServerFake) -> None:
    def say(asked: Asked) -> str:
        return "prose" if asked.judged("answer") == "| 3" else asked.verdict(correct=True)

    fake.say = say
    values = [score.value for score in reward(fake).score_batch(said(6), [REFERENCE] * 6)]
    assert values == [1.0, 1.0, 1.0, None, 1.0, 1.0]


def test_interrupting_the_caller_stops_the_asking(fake: JudgeServerFake, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    judge = reward(fake, concurrency=1)
    ask(judge, "warm")  # the connection is open
    fake.delay_s = 0.05
    real: Callable[..., Any] = Future.result

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        monkeypatch.setattr(Future, "result", real)
        time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge.score_batch(said(10), [REFERENCE] * 10)
    begun = len(fake.asked)
    time.sleep(1)
    assert len(fake.asked) <= begun + 2  # the others would have taken half of this second
