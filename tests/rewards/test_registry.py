"""Naming, describing and making rewards."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from posttrain.rewards import (
    BadRewardError,
    Completion,
    FunctionReward,
    GroundingBoxes,
    MathReward,
    Reward,
    Score,
    available,
    describe,
    make_reward,
    make_table,
    register,
)

ASKED = Completion(text="7", prompt="3 + 4?", token_ids=(1, 2))


def test_every_verifier_is_registered_and_every_option_is_documented() -> None:
    assert set(available()) >= {"math", "grounding_iou", "grounding_boxes", "exact_match", "multiple_choice", "format"}
    for name, cls in available().items():
        assert isinstance(make_reward(name), cls) and cls.__doc__
        for option in describe(name):
            assert option.doc, f"{name}.{option.name} has no line below it"


def test_describe_tells_types_and_defaults() -> None:
    key, deadline = describe("math")
    assert (key.name, key.type, key.default, key.required) == ("answer_key", str, "answer", False)
    assert (deadline.name, deadline.type, deadline.default) == ("deadline_s", float, 5.0)
    assert "seconds" in deadline.doc


def test_rewards_are_made_from_names_mappings_objects_and_paths() -> None:
    assert make_reward("math") == MathReward()
    assert make_reward({"name": "math", "deadline_s": 2}) == MathReward(deadline_s=2.0)
    assert make_reward({"name": "grounding_boxes", "thresholds": [0.5]}) == GroundingBoxes(thresholds=(0.5,))
    reward = MathReward()
    assert make_reward(reward) is reward
    assert make_reward("posttrain.rewards:MathReward") == reward
    assert make_reward({"name": "posttrain.rewards:MathReward", "answer_key": "gold"}) == MathReward(answer_key="gold")
    assert isinstance(make_reward("math:hypot"), FunctionReward)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maths", "there is no reward 'maths'; did you mean 'math'?"),
        ({"name": "math", "deadline": 2}, "reward 'math' has no option 'deadline'; did you mean 'deadline_s'?"),
        ({"name": "math", "deadline_s": "5"}, "option 'deadline_s' got '5', wanted a valid number"),
        ({"name": "math", "deadline_s": -1}, "deadline_s must be above 0"),
        ({"name": "grounding_iou", "match_label": 1}, "option 'match_label' got 1, wanted a valid boolean"),
        ({"name": "grounding_iou", "measure": "diou"}, "wanted 'iou' or 'giou'"),
        ({"deadline_s": 2}, "needs a 'name'"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("posttrain.no_such:f", "there is no module 'posttrain.no_such'"),
        ("posttrain.rewards:MathRewards", "did you mean 'MathReward'?"),
        ("posttrain.rewards:Completion", "no dataclass with the Reward protocol"),
        ({"name": "math:hypot", "factor": 2}, "has no option 'factor'"),
        (7, "7 is no reward"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_nearest_valid_word(spec: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared literally
        make_reward(spec)
    assert message in str(caught.value)


def test_only_a_frozen_dataclass_reward_under_a_new_name_can_be_registered() -> None:
    @register("always_right")
    @dataclass(frozen=True)
    class AlwaysRight:
        bonus: float = 0.0
        """What is added."""

        def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
            return Score(value=1.0 + self.bonus)

        def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
            return None

    reward: Reward = make_reward({"name": "always_right", "bonus": 0.5})
    assert reward(ASKED, {}).value == 1.5
    assert [(option.name, option.doc) for option in describe("always_right")] == [("bonus", "What is added.")]
    with pytest.raises(ValueError, match="already"):
        register("math")(AlwaysRight)
    with pytest.raises(TypeError, match="frozen dataclass"):
        register("other")(type("Plain", (), {}))
    with pytest.raises(ValueError, match="lower-case"):
        register("Math!")


def test_a_function_is_called_as_trl_calls_it() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts, completions, answer, **columns) -> list[float | None]:
        seen.update(prompts=prompts, completions=completions, answer=answer, **columns)
        return [1, None, math.nan]

    made = make_reward(reward)
    assert isinstance(made, FunctionReward)
    scores = made.score_batch([ASKED] * 3, [{"answer": "7"}, {"answer": "8", "level": 2}, {"answer": "9"}])
    assert [score.value for score in scores] == [1.0, None, None]
    assert scores[1].reason == "it gave no verdict" and not scores[1].error
    assert callable(seen.pop("log_metric")) and callable(seen.pop("log_extra"))
    assert seen == {
        "prompts": [[{"role": "user", "content": "3 + 4?"}]] * 3,
        "completions": [[{"role": "assistant", "content": "7"}]] * 3,
        "completion_ids": [[1, 2]] * 3,
        "final_answers": [None] * 3,
        "answer": ["7", "8", "9"],
        "level": [None, 2, None],
    }


def test_trl_s_own_rewards_run_unchanged() -> None:
    rewards = pytest.importorskip("trl.rewards")
    made = make_reward(rewards.think_format_reward)
    assert made(Completion(text="<think>a</think>b"), {}).value == 1.0
    assert made(Completion(text="b"), {}).value == 0.0


def test_what_a_function_logs_as_trl_lets_it_becomes_parts_and_remarks() -> None:
    def careful(completions: Any, log_metric: Any, log_extra: Any, **_: Any) -> list[float | None]:
        log_metric("mean_length", 2.5)
        log_extra("length", [len(turns[-1]["content"]) for turns in completions])
        log_extra("heard", ["yes", "no"])
        log_extra("odds", [float("nan"), True])
        return [1.0, None]

    made = FunctionReward(function=careful)
    score, silent = made.score_batch([Completion(text="abc"), Completion(text="ab")], [{}, {}])
    assert (score.value, dict(score.parts)) == (1.0, {"mean_length": 2.5, "length": 3.0})
    assert score.reason == "heard: yes; odds: nan"
    assert (silent.value, dict(silent.parts)) == (None, {"mean_length": 2.5, "length": 2.0, "odds": 1.0})
    assert silent.reason == "it gave no verdict; heard: no"
    with pytest.raises(BadRewardError, match=r"log_extra\('heard'\) got 2 values for 1 completions"):
        made(Completion(text="abc"), {})


def test_a_function_can_have_plain_texts_and_gets_only_what_it_names() -> None:
    def lengths(completions) -> list[float]:
        return [float(len(text)) for text in completions]

    assert FunctionReward(function=lengths, conversational=False)(Completion(text="four"), {"answer": 1}).value == 4.0


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], "returned 0 values for 1 completions"),
        ([1.0, 2.0], "returned 2 values for 1 completions"),
        ("1", "must return a list of numbers"),
        (1.0, "must return a list of numbers"),
        (["good"], "a number was wanted"),
        (["1.0"], "a number was wanted"),
        ([[1.0]], "a number was wanted"),
        (None, "must return a list of numbers"),
        ({"score": 1.0}, "must return a list of numbers"),
    ],
)
def test_a_function_that_returns_something_else_is_named(returned: Any, message: str) -> None:
    def reward(**rows: Any) -> Any:
        return returned

    with pytest.raises(BadRewardError, match=f"reward function 'reward' .*{message}"):
        make_reward(reward)(ASKED, {})


def test_a_function_that_wants_a_missing_column_is_told_what_there_is() -> None:
    def reward(completions, solution):
        return [0.0]

    with pytest.raises(BadRewardError, match="wants 'solution', but the references hold: answer"):
        make_reward(reward)(ASKED, {"answer": 1})


def test_an_infinite_number_is_no_score() -> None:
    score = make_reward(lambda completions: [math.inf])(ASKED, {})
    assert (score.value, score.reason, score.error) == (None, "it returned inf", True)


def test_an_async_function_is_awaited_outside_and_inside_an_event_loop() -> None:
    async def slow(completions, final_answers):
        await asyncio.gather(*(asyncio.sleep(0) for _ in completions))
        return [float(answer == "7") for answer in final_answers]

    table = make_table({"t": slow})
    items = [("t", ASKED, {}), ("t", Completion(text=r"\boxed{8}"), {})]

    async def inside() -> list[Score]:
        return table.score_batch(items)

    assert [score.value for score in table.score_batch(items)] == [1.0, 0.0]
    assert asyncio.run(inside()) == table.score_batch(items)


def test_the_deadline_of_a_task_is_passed_to_rewards_that_take_one() -> None:
    assert make_reward("math", deadline_s=2.5) == MathReward(deadline_s=2.5)
    assert make_reward({"name": "math", "deadline_s": 1.0}, deadline_s=2.5) == MathReward(deadline_s=1.0)
    assert make_reward("exact_match", deadline_s=2.5) == make_reward("exact_match")
    own = MathReward()
    assert make_reward(own, deadline_s=2.5) is own
