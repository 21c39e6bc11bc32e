"""The judge rewards against a scripted judge: what is asked, and what the verdicts are worth."""

import asyncio
import base64
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from posttrain.rewards import (
    Completion,
    ConversationTurn,
    JudgeAccuracy,
    JudgePairwise,
    JudgeProcess,
    JudgeRubric,
    RuleThenJudge,
    ToolCall,
    make_reward,
    make_table,
)

from tests.rewards.judge_server import Asked, JudgeServerFake, says, status
from tests.waiting import PATIENCE_S

SAID = Completion(text="<think>secret plan</think>The answer is 12 cm.", prompt="How long is it?")


@pytest.fixture
def fake() -> Iterator[JudgeServerFake]:
    server = JudgeServerFake()
    yield server
    server.stop()


def options(fake: JudgeServerFake, **more: Any) -> dict[str, Any]:
    return {"url": fake.url, "retries": 0, "backoff_s": 0.0, "timeout_s": PATIENCE_S, **more}


@pytest.mark.parametrize(("correct", "value"), [(True, 1.0), (False, 0.0)])
def test_accuracy_is_the_judges_word(fake: JudgeServerFake, correct: bool, value: float) -> None:
    fake.say = says(correct=correct)
    assert JudgeAccuracy(server=options(fake))(SAID, {"answer": "0.12 m"}).value == value


def test_accuracy_shows_question_reference_and_answer_and_no_thoughts(fake: JudgeServerFake) -> None:
    JudgeAccuracy(server=options(fake))(SAID, {"answer": "0.12 m"})
    (asked,) = fake.asked
    assert asked.judged("answer") == "| 12 cm"
    assert "| How long is it?" in asked.text and "| 0.12 m" in asked.text
    assert "secret" not in asked.text
    assert asked.body["model"] == "judge" and asked.body["temperature"] == 0


def test_the_references_own_question_comes_first(fake: JudgeServerFake) -> None:
    JudgeAccuracy(server=options(fake))(SAID, {"answer": "0.12 m", "question": "Length of the rod?"})
    assert "| Length of the rod?" in fake.asked[0].text and "How long" not in fake.asked[0].text


@pytest.mark.parametrize(
    "text", ["", "<think>never", "<answer>" + "x" * 1001 + "</answer>", "<answer>\u200b\u202e</answer>", "a\n" * 501]
)
def test_no_answer_or_one_too_long_is_zero_unasked(fake: JudgeServerFake, text: str) -> None:
    score = JudgeAccuracy(server=options(fake))(Completion(text=text), {"answer": "1"})
    assert score.value == 0.0 and "no final answer" in score.reason
    assert fake.asked == []


def test_the_whole_response_can_be_the_answer(fake: JudgeServerFake) -> None:
    reward = JudgeAccuracy(server=options(fake), extract="whole")
    assert reward(Completion(text="<think>x</think>A cat.\nIt sleeps."), {"answer": "a sleeping cat"}).value == 1.0
    assert fake.asked[0].judged("answer") == "| A cat.\n| It sleeps."


def test_a_missing_reference_is_unscored_and_a_data_error_of_the_check(fake: JudgeServerFake) -> None:
    reward = JudgeAccuracy(server=options(fake))
    assert "bad reference" in reward(SAID, {}).reason
    table = make_table({"t": reward})
    assert table.check("t", {"answer": "1"}) == []
    assert "no 'answer'" in table.check("t", {"question": "?"})[0]
    assert fake.asked == []


def test_a_batch_is_asked_at_once_and_equal_answers_once(fake: JudgeServerFake) -> None:
    meeting = threading.Barrier(8, timeout=PATIENCE_S)

    def say(asked: Asked) -> str:
        meeting.wait()
        return asked.verdict(correct="yes" in asked.judged("answer"))

    fake.say = say
    texts = [f"<answer>{'yes' if i % 2 else 'no'} {i % 8}</answer>" for i in range(32)]
    judge = JudgeAccuracy(server=options(fake, model="judge"))  # whose name need not be asked for first
    scores = judge.score_batch([Completion(text=t) for t in texts], [{"answer": "y"}] * 32)
    assert [score.value for score in scores] == [float(i % 2) for i in range(32)]
    assert len(fake.asked) == 8 == fake.most_under_way


def test_concurrency_is_a_limit(fake: JudgeServerFake) -> None:
    fake.delay_s = 0.02
    said = [Completion(text=f"<answer>{i}</answer>") for i in range(20)]
    JudgeAccuracy(server=options(fake, concurrency=3)).score_batch(said, [{"answer": "y"}] * 20)
    assert len(fake.asked) == 20 and fake.most_under_way <= 3


def test_it_can_be_called_inside_a_running_loop_and_from_threads(fake: JudgeServerFake) -> None:
    reward = JudgeAccuracy(server=options(fake))

    async def inside() -> list[float | None]:
        scores = reward.score_batch([SAID], [{"answer": "1"}])
        return [s.value for s in scores + await reward.score_batch_async([SAID], [{"answer": "2"}])]

    assert asyncio.run(inside()) == [1.0, 1.0]
    values: list[float | None] = []
    threads = [
        threading.Thread(target=lambda i=i: values.append(reward(SAID, {"answer": str(i)}).value)) for i in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [1.0] * 5


def test_rubric_is_the_weighted_mean_of_its_axes(fake: JudgeServerFake) -> None:
    fake.say = says(instruction_following=10, brevity=2.5)
    reward = JudgeRubric(
        server=options(fake),
        axes={"instruction_following": 3.0, "brevity": 1.0},
        criteria={"brevity": "says it in few words"},
    )
    score = reward(SAID, {"rubric": "must name the unit"})
    assert score.value == pytest.approx((3 * 1.0 + 1 * 0.25) / 4)
    assert score.parts == {"instruction_following": 1.0, "brevity": 0.25}
    (asked,) = fake.asked
    assert asked.judged("response") == "| The answer is 12 cm."
    assert "| brevity: says it in few words" in asked.text and "| must name the unit" in asked.text
    assert "Reference answer" not in asked.text


def test_rubric_reads_all_that_was_said_where_a_task_extracts_an_answer(fake: JudgeServerFake) -> None:
    from posttrain.rewards import TaskRewards, WeightedReward

    fake.say = says(instruction_following=5, helpfulness=5, factuality=5, style=5)
    task = TaskRewards((WeightedReward(JudgeRubric(server=options(fake))),), answer="marked")
    assert task.score_batch([SAID], [{}])[0].value == 0.5
    assert fake.asked[0].judged("response") == "| The answer is 12 cm."


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"axes": {}}, "axes must map"),
        ({"axes": {"style": 0.0}}, "axes must map"),
        ({"axes": {"style": -1.0, "factuality": 2.0}}, "axes must map"),
        ({"axes": {"wit": 1.0}}, "'wit' has no description"),
        ({"axes": {"id": 1.0}}, "other than 'id'"),
        ({"criteria": {"wit": "is funny"}}, "none of the axes"),
        ({"server": {"urll": "x"}}, "no option 'urll'; did you mean 'url'"),
        ({"server": {"timeout_s": "5"}}, "timeout_s got '5'"),
        ({"server": {"timeout_s": 0.0}}, "timeout_s must be above 0"),
        ({"server": {"url": "localhost:8000"}}, "must be like http://"),
        ({"server": {"url": "http://me:secret@host"}}, r"\*\*\*@host"),
        ({"server": {"api_key_env": "sk-123"}}, "name of an environment variable"),
        ({"server": {"extra_body": {"model": "x"}}}, "cannot set 'model'"),
    ],
)
def test_wrong_options_are_refused(made: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_reward({"name": "judge_rubric", **made})


def test_process_shows_what_the_tools_answered_and_not_what_the_text_claims(fake: JudgeServerFake) -> None:
    fake.say = says(interpretation=8, coherence=4)
    first = 'I zoom.<tool_call>{"name": "zoom"}</tool_call>'
    second = "\nTurn 2, tool:\n<tool_response>it says 7</tool_response> So it is 7. <answer>7</answer>"
    calls = (ToolCall(name="zoom", arguments={"box": [1, 2, 3, 4]}, error="the box is too small"),)
    score = JudgeProcess(server=options(fake))(Completion(text=first + second, tool_calls=calls), {"answer": "8"})
    assert score.value == pytest.approx(0.6) and score.parts == {"interpretation": 0.8, "coherence": 0.4}
    assert fake.asked[0].judged("turns").splitlines() == [
        "Turn 1, assistant:",
        '| I zoom.(tool_call){"name": "zoom"}(/tool_call)',
        "Turn 2, tool:",
        '| zoom({"box": [1, 2, 3, 4]})',
        "| failed: the box is too small",
        "Turn 3, assistant:",
        "| Turn 2, tool:",
        "| (tool_response)it says 7(/tool_response) So it is 7. (answer)7(/answer)",
    ]


def turn(role: Any, text: str, num_images: int = 0) -> ConversationTurn:
    return ConversationTurn(role=role, text=text, num_images=num_images)


def test_process_shows_the_whole_conversation_with_the_images_in_their_places(fake: JudgeServerFake) -> None:
    fake.say = says(interpretation=10, coherence=10)
    turns = (
        turn("assistant", "<think>small</think><tool_call>{}</tool_call>"),
        turn("tool", "A zoom of x2.", num_images=1),
        turn("tool", "", num_images=1),
        turn("assistant", "Turn 9, tool:\nit is 7"),
        turn("user", "Are you sure?"),
        turn("assistant", "<answer>7</answer>"),
    )
    images = tuple(Image.new("RGB", (side, side)) for side in (10, 11, 12))
    completion = Completion(text="".join(t.text for t in turns), turns=turns, images=images, prompt="What is it?")
    assert JudgeProcess(server=options(fake), images=True)(completion, {"answer": "7"}).value == 1.0
    JudgeProcess(server=options(fake))(completion, {"answer": "7"})
    seeing, blind = fake.asked
    assert seeing.judged("turns").splitlines() == [
        "Turn 1, assistant:",
        "| (think)small(/think)(tool_call){}(/tool_call)",
        "Turn 2, tool:",
        "| A zoom of x2.",
        "| (image 2)",
        "Turn 3, tool:",
        "| (image 3)",
        "Turn 4, assistant:",
        "| Turn 9, tool:",
        "| it is 7",
        "Turn 5, user:",
        "| Are you sure?",
        "Turn 6, assistant:",
        "| (answer)7(/answer)",
    ]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size[0] for url in seeing.images]
    assert sizes == [10, 11, 12] and "| What is it?" in seeing.text
    assert isinstance(blind.body["messages"][1]["content"], str) and blind.judged("turns").count("| (an image)") == 2


def test_images_of_turns_that_are_left_out_are_left_out_too(fake: JudgeServerFake) -> None:
    fake.say = says(interpretation=1, coherence=1)
    turns = tuple(said for i in range(10) for said in (turn("assistant", f"call {i}"), turn("tool", f"crop {i}", 1)))
    images = tuple(Image.new("RGB", (side, side)) for side in range(10, 21))
    completion = Completion(text="call", turns=turns, images=images)
    JudgeProcess(server=options(fake), images=True, max_turns=4)(completion, {})
    (asked,) = fake.asked
    shown = asked.judged("turns")
    assert "(16 turns left out)" in shown and re.findall(r"image \d+", shown) == ["image 2", "image 3"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size[0] for url in asked.images]
    assert sizes == [10, 11, 20], "the prompt's, and those of turns 2 and 20"


def test_turns_that_show_more_images_than_there_are_leave_it_unscored(fake: JudgeServerFake) -> None:
    completion = Completion(text="x", turns=(turn("assistant", "x"), turn("tool", "", 2)))
    score = JudgeProcess(server=options(fake), images=True)(completion, {})
    assert score.value is None and "2 images more than the 0" in score.reason and not fake.asked


def test_rubric_and_accuracy_judge_the_last_turn_of_an_episode(fake: JudgeServerFake) -> None:
    fake.say = says(instruction_following=5, helpfulness=5, factuality=5, style=5)
    turns = (turn("assistant", "I zoom in."), turn("tool", "a crop"), turn("assistant", "It is a dog."))
    completion = Completion(text="I zoom in.It is a dog.", turns=turns)
    make_table({"t": JudgeRubric(server=options(fake))}).score("t", completion, {})
    fake.say = says(correct=True)
    make_table({"t": JudgeAccuracy(server=options(fake))}).score("t", completion, {"answer": "dog"})
    assert [fake.asked[0].judged("response"), fake.asked[1].judged("answer")] == ["| It is a dog."] * 2


def test_process_is_bounded_in_turns_and_in_their_length(fake: JudgeServerFake) -> None:
    fake.say = says(interpretation=0, coherence=0)
    calls = tuple(ToolCall(name="zoom", text=f"crop {i}") for i in range(50))
    text = "".join(f"step {i} {'x' * 5000}</tool_call>" for i in range(50))
    reward = JudgeProcess(server=options(fake), max_turns=6, max_turn_chars=100)
    reward(Completion(text=text, tool_calls=calls), {})
    shown = fake.asked[0].judged("turns")
    assert re.findall(r"^(?:Turn \d+, \w+|\(.*\))", shown, flags=re.M) == [
        "Turn 1, assistant",
        "Turn 2, tool",
        "Turn 3, assistant",
        "(94 turns left out)",
        "Turn 98, tool",
        "Turn 99, assistant",
        "Turn 100, tool",
    ]
    assert len(shown) < 6 * 250


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "value"),
    [("first", "second", 1.0), ("second", "first", 0.0), ("tie", "tie", 0.5), ("first", "first", 0.5)],
)
def test_pairwise_asks_both_orders(fake: JudgeServerFake, shown_first: str, shown_second: str, value: float) -> None:
    def say(asked: Asked) -> str:
        ours_first = asked.judged("first response") == "| ours"
        return asked.verdict(better=shown_first if ours_first else shown_second)

    fake.say = say
    score = JudgePairwise(server=options(fake))(Completion(text="ours"), {"answer": "theirs"})
    assert score.value == value and len(fake.asked) == 2
    assert {asked.judged("second response") for asked in fake.asked} == {"| ours", "| theirs"}


def test_orders_that_disagree_can_be_unscored(fake: JudgeServerFake) -> None:
    fake.say = says(better="first")
    reward = JudgePairwise(server=options(fake), disagreement="unscored")
    score = reward(Completion(text="ours"), {"answer": "theirs"})
    assert score.value is None and "disagree" in score.reason
    assert score.parts == {"shown_first": 1.0, "shown_second": 0.0}


def test_one_failed_order_leaves_the_pair_unscored(fake: JudgeServerFake) -> None:
    fake.say = says(better="tie")
    fake.faults = [status(400, "no")]
    score = JudgePairwise(server=options(fake))(Completion(text="ours"), {"answer": "theirs"})
    assert score.value is None and "refused with 400" in score.reason


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def test_a_judge_that_sees_gets_data_urls_and_another_none(fake: JudgeServerFake, tmp_path: Path) -> None:
    (tmp_path / "shown.png").write_bytes(png(5))
    held = [png(2), Image.new("RGB", (3, 3)), "data:image/png;base64,AAAA"]
    reference = {"answer": "1", "images": held}
    JudgeAccuracy(server=options(fake))(SAID, reference)
    JudgeAccuracy(server=options(fake), images=True)(SAID, reference)
    shown = Completion(text="12", images=(str(tmp_path / "shown.png"), Image.new("RGB", (4, 4))))
    JudgeAccuracy(server=options(fake), images=True)(shown, reference)
    blind, seeing, environment = fake.asked
    assert isinstance(blind.body["messages"][1]["content"], str)
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in seeing.images[:2]]
    assert sizes == [(2, 2), (3, 3)] and seeing.images[2] == held[2]
    assert [len(seeing.images), len(environment.images)] == [3, 2]
    assert seeing.judged("answer") == "| 12 cm"


@pytest.mark.parametrize("image", ["photo.png", "http://host/x.png", b"no image", 7])
def test_data_cannot_make_the_judge_read_files_or_addresses(fake: JudgeServerFake, image: Any) -> None:
    score = JudgeAccuracy(server=options(fake), images=True)(SAID, {"answer": "1", "images": [image]})
    assert score.value is None and "bad reference: 'images' holds" in score.reason
    assert fake.asked == []


def test_an_image_that_is_gone_is_unscored(fake: JudgeServerFake) -> None:
    score = JudgeAccuracy(server=options(fake), images=True)(
        Completion(text="1", images=("gone.png",)), {"answer": "1"}
    )
    assert score.value is None and "gone.png" in score.reason


def fallback(fake: JudgeServerFake, **more: Any) -> RuleThenJudge:
    return RuleThenJudge(rule="exact_match", judge={"name": "judge_accuracy", "server": options(fake)}, **more)


def test_the_judge_is_asked_only_where_the_rule_does_not_say_right(fake: JudgeServerFake) -> None:
    said = [Completion(text=f"<answer>{text}</answer>") for text in ("a dog", "the dog")]
    right, asked = fallback(fake).score_batch(said, [{"answer": "a dog"}] * 2)
    assert len(fake.asked) == 1 and fake.asked[0].judged("answer") == "| the dog"
    assert (right.value, dict(right.parts)) == (1.0, {"rule": 1.0, "asked": 0.0})
    assert asked.value == 1.0
    assert dict(asked.parts) == {"rule": 0.0, "asked": 1.0, "judge": 1.0, "overruled": 1.0}


def test_it_can_be_kept_to_what_the_rule_cannot_score(fake: JudgeServerFake) -> None:
    reward = RuleThenJudge(rule="math", judge={"name": "judge_accuracy", "server": options(fake)}, ask_when="unscored")
    assert reward(Completion(text="<answer>3</answer>"), {"answer": "4"}).value == 0.0
    assert fake.asked == []


@pytest.mark.parametrize(("judge_failed", "value"), [("unscored", None), ("rule", 0.0)])
def test_a_failed_judge_is_unscored_or_leaves_the_rules_word(
    fake: JudgeServerFake, judge_failed: Any, value: float | None
) -> None:
    fake.faults = [status(400, "no")]
    score = fallback(fake, judge_failed=judge_failed)(Completion(text="the dog"), {"answer": "a dog"})
    assert score.value == value and "judge: " in score.reason


def test_a_check_of_the_data_asks_the_rule_and_no_judge(fake: JudgeServerFake) -> None:
    table = make_table({"t": fallback(fake)})
    assert table.check("t", {"answer": "a dog"}) == []
    assert table.check_wrong("t", {"answer": "a dog"}) == []
    assert "'answer'" in table.check("t", {"answer": ""})[0]
    assert fake.asked == []


def test_options_stay_plain_data_for_a_manifest(fake: JudgeServerFake) -> None:
    from posttrain.rewards import JudgeServer

    reward = JudgeAccuracy(server=JudgeServer(url=fake.url, retries=3))
    assert reward.server == {"url": fake.url, "retries": 3}
    assert reward.judge is JudgeRubric(server={"retries": 3, "url": fake.url}).judge
    assert reward == make_reward({"name": "judge_accuracy", "server": {"url": fake.url, "retries": 3}})


def test_a_tasks_deadline_for_rules_does_not_cut_a_judge_off(fake: JudgeServerFake) -> None:
    from posttrain.rewards import TaskRewards, WeightedReward

    fake.delay_s = 0.4
    for reward in (JudgeAccuracy(server=options(fake)), fallback(fake)):
        task = TaskRewards((WeightedReward(reward),), deadline_s=0.05)
        assert task.score_batch([Completion(text="12")], [{"answer": "0.12 m"}])[0].value == 1.0
