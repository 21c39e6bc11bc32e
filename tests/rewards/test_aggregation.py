"""How several rewards become one score: sums, gates, clips, what truncation and missing verdicts earn, extraction."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Completion, RewardTable, Score, TaskRewards, WeightedReward, gated_sum, make_table
from posttrain.rewards.aggregation import clipped, weighted_sum


@dataclass(frozen=True)
class Says:
    """Gives the number that the completion says after its key: `a=1 b=0.5`; None for `a=none`."""

    key: str
    reads_whole_text: ClassVar[bool] = True

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        said = re.search(rf"{self.key}=(\S+)", completion.text)
        assert said is not None
        return Score.unscored("no verdict") if said[1] == "none" else Score(value=float(said[1]))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        return None


A = WeightedReward(Says("a"), 1.0, "a")
B = WeightedReward(Says("b"), 0.5, "b")
GATE = WeightedReward(Says("a"), 1.0, "a", gate=True)


def value(task: TaskRewards, text: str, **facts: Any) -> float | None:
    return RewardTable({"t": task}).score("t", Completion(text=text, **facts), {}).value


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("a=1 b=1", 1.5),
        ("a=0 b=1", 0.0),
        ("a=0.99 b=1", 0.99),
        ("a=1 b=-1", 0.5),
        ("a=0 b=-1", -0.5),
        ("a=-1 b=1", -1.0),
        ("a=none b=1", None),
        ("a=1 b=none", None),
    ],
)
def test_a_gate_pays_bonuses_on_right_answers_alone_and_always_charges_penalties(text: str, paid: float | None) -> None:
    assert value(TaskRewards((GATE, B), aggregation="gate_by_correctness"), text) == paid


def test_a_gate_opens_at_its_number_and_every_gate_must_be_open() -> None:
    soft = TaskRewards((WeightedReward(Says("a"), 1.0, "a", gate=0.5), B), aggregation="gate_by_correctness")
    assert value(soft, "a=0.5 b=1") == 1.0 and value(soft, "a=0.49 b=1") == pytest.approx(0.49)
    large = TaskRewards((WeightedReward(Says("a"), 1.0, "a", 2.0, True), B), aggregation="gate_by_correctness")
    assert value(large, "a=1 b=1") == 1.0 and value(large, "a=2 b=1") == 2.5
    two = TaskRewards((GATE, WeightedReward(Says("c"), 0.0, "c", gate=True), B), aggregation="gate_by_correctness")
    assert value(two, "a=1 c=1 b=1") == 1.5 and value(two, "a=1 c=0 b=1") == 1.0
    assert value(two, "a=1 c=none b=1") is None, "a gate that cannot be read decides nothing, whatever its weight"


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 2), st.booleans()), min_size=1, max_size=5))
def test_a_gated_sum_is_at_most_the_sum_and_is_it_where_all_gates_are_open(rows: list) -> None:
    values, weights = [v for v, _, _ in rows], [w for _, w, _ in rows]
    shut = gated_sum(values, weights, [1.0 if gate else None for _, _, gate in rows])
    assert shut <= weighted_sum(values, weights) + 1e-9
    assert gated_sum(values, weights, [-3.0 if gate else None for _, _, gate in rows]) == weighted_sum(values, weights)


def test_the_sum_is_clipped_and_so_is_the_full_score() -> None:
    task = TaskRewards((A, B), clip=(-0.25, 1.2))
    assert [value(task, text) for text in ("a=1 b=1", "a=0 b=-1", "a=1 b=0")] == [1.2, -0.25, 1.0]
    assert task.full_score == 1.2 and clipped(5.0, None) == 5.0


def test_a_missing_verdict_is_no_score_or_the_number_that_the_task_gives_it() -> None:
    assert value(TaskRewards((A, B)), "a=1 b=none") is None
    worth = RewardTable({"t": TaskRewards((A, B), error=-0.1)}).score("t", Completion(text="a=1 b=none"), {})
    assert (worth.value, worth.reason, worth.error) == (-0.1, "b: no verdict", False)


def test_the_values_of_a_score_are_those_of_the_rewards_that_count() -> None:
    task = TaskRewards((A, WeightedReward(Says("c"), 0.0, "c"), B), truncated="zero", aggregation="normalise_then_sum")
    table = RewardTable({"t": task})
    said = table.score("t", Completion(text="a=1 b=4 c=9"), {})
    assert said.value == 3.0 and task.values(said) == [1.0, 4.0]
    cut = table.score("t", Completion(text="a=1 b=4 c=9", truncated=True), {})
    assert task.values(cut) == [0.0, 0.0]
    assert task.values(table.score("t", Completion(text="a=none b=1 c=1"), {})) is None
    worth = TaskRewards((A, B), error=-3.0)
    values = worth.values(RewardTable({"t": worth}).score("t", Completion(text="a=none b=none"), {}))
    assert values is not None and values == [-2.0, -2.0] and weighted_sum(values, [1.0, 0.5]) == -3.0


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ((A, B), {"aggregation": "gate_by_correctness"}, "needs a reward with gate: true"),
        ((GATE, B), {}, "'a' is a gate, which weighted_sum has none of"),
        ((A,), {"aggregation": "mean"}, "there is no aggregation 'mean'"),
        ((A,), {"aggregation": "normalise_then_sum", "clip": (0, 1)}, "there is no sum to clip"),
        ((A,), {"clip": (1, 0)}, "low below high"),
        ((A,), {"answer": "boxed"}, "there is no extraction 'boxed'; did you mean 'last_boxed'"),
        ((A,), {"error": "zero"}, "'unscored' or a number"),
        ((A,), {"error": float("nan")}, "'unscored' or a number"),
        ((A,), {"deadline_s": 0}, "above 0 seconds"),
        ((A,), {"min_scored": 0}, "at least 1"),
        ((A, A), {}, r"give one another name \(label\)"),
    ],
)
def test_a_wrong_task_is_refused(rewards: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskRewards(rewards, **options)


def test_an_extraction_says_for_every_reward_of_answers_what_counts() -> None:
    """The reward alone takes any mark; the task wants a box. What judges the layout still sees everything."""
    tagged, boxed = "<answer>7</answer>", r"\boxed{7}"
    rewards = (WeightedReward(make("exact_match")), WeightedReward(make("number")), WeightedReward(make("format"), 0.0))

    def parts(text: str, answer: Any) -> list[float]:
        score = RewardTable({"t": TaskRewards(rewards, answer=answer)}).score(
            "t", Completion(text=f"<think>8</think>{text}"), {"answer": "7"}
        )
        return [score.parts[name] for name in ("exact_match", "number", "format")]

    assert parts(tagged, None) == [1.0, 1.0, 1.0] and parts(boxed, None) == [1.0, 1.0, 0.0]
    assert parts(tagged, "last_boxed") == [0.0, 0.0, 1.0] and parts(boxed, "last_boxed") == [1.0, 1.0, 0.0]
    assert parts(tagged, "tagged") == [1.0, 1.0, 1.0] and parts("it is\n7", "last_line") == [1.0, 1.0, 0.0]


def make(name: str) -> Any:
    return make_table({"t": name}).rewards_for("t").rewards[0].reward


def test_one_batch_mixes_tasks_with_rules_of_their_own() -> None:
    table = RewardTable(
        {
            "gated": TaskRewards((GATE, B), aggregation="gate_by_correctness"),
            "clipped": TaskRewards((A, B), clip=(0.0, 0.75)),
            "default": TaskRewards((A,), truncated="zero", error=0.25),
        }
    )
    texts = ["a=0 b=1", "a=1 b=1", "a=none b=1", "a=none b=none", "a=1 b=1", "a=0.5 b=0"]
    tasks = ["gated", "clipped", "poems", "gated", "gated", "clipped"]
    items = [(task, Completion(text=text), {}) for task, text in zip(tasks, texts, strict=True)]
    scores = table.score_batch(items)
    assert [score.value for score in scores] == [0.0, 0.75, 0.25, None, 1.5, 0.5]
    assert scores == [table.score(*item) for item in items]
    assert [table.entry_of(task) for task in ("gated", "poems")] == ["gated", "default"]
