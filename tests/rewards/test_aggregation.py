"""How several rewards become one score: sums, gates, clips, what truncation and missing verdicts earn, extraction."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import (
    Completion,
    ConversationTurn,
    RewardTable,
    Score,
    TaskRewards,
    WeightedReward,
    gated_sum,
    make_table,
)
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
    half = worth.values(RewardTable({"t": worth}).score("t", Completion(text="a=1 b=none"), {}))
    assert half == [-2.0, -2.0], "what an error is worth is not mended by what another reward said"


LOOP = Completion(text="no " * 400)
PENALTIES = ("repetition", "language", {"name": "length", "max_tokens": 100, "buffer_tokens": 10})


@pytest.mark.parametrize("penalty", PENALTIES)
def test_full_marks_of_a_penalty_are_zero_and_it_adds_nothing_to_those_of_a_task(penalty: Any) -> None:
    spec = {"name": penalty} if isinstance(penalty, str) else penalty
    task = make_table({"t": ["exact_match", {**spec, "weight": 0.5}]}).rewards_for("t")
    assert [weighted.full_marks for weighted in task.rewards] == [1.0, 0.0] and task.full_score == 1.0
    assert make_table({"t": penalty}).full_score("t") == 0.0


def test_a_penalty_opens_its_gate_where_it_finds_nothing() -> None:
    right = WeightedReward(make("exact_match"), 1.0, "right")
    calm = WeightedReward(make("repetition"), 0.5, "calm", gate=True)
    task = TaskRewards((right, calm), aggregation="gate_by_correctness")
    table = RewardTable({"t": task})
    assert table.score("t", Completion(text="yes"), {"answer": "yes"}).value == 1.0
    looped = table.score("t", LOOP, {"answer": LOOP.text})
    assert looped.value is not None and looped.value == pytest.approx(0.5 * looped.parts["calm"]) and looped.value < 0
    some = TaskRewards(
        (right, WeightedReward(make("repetition"), 0.5, "calm", gate=-0.999)), aggregation=task.aggregation
    )
    assert (RewardTable({"t": some}).score("t", LOOP, {"answer": LOOP.text}).value or 0) > 0.5


def test_a_class_says_its_own_full_marks_and_a_function_may_give_anything() -> None:
    @dataclass(frozen=True)
    class Stars(Says):
        full_score: ClassVar[float] = 5.0

    stars = WeightedReward(Stars("a"), 0.2, "stars", gate=True)
    assert (stars.full_marks, stars.opens_at) == (5.0, 5.0) and WeightedReward(
        Stars("a"), full_score=3.0
    ).full_marks == 3
    free = make_table({"t": lambda completions, **_: [7.0]}).rewards_for("t")
    assert not free.is_bounded and TaskRewards((stars,), aggregation="gate_by_correctness").is_bounded
    assert WeightedReward(free.rewards[0].reward, gate=6.5).opens_at == 6.5
    assert WeightedReward(make("environment_score"), gate=50.0).opens_at == 50.0, "a game counts as it likes"


@pytest.mark.parametrize(
    ("name", "gate", "message"),
    [
        ("repetition", 0.5, "'repetition' gives 0 at best, so that a gate of 0.5 never opens"),
        ("exact_match", 1.5, "'exact_match' gives 1 at best, so that a gate of 1.5 never opens; set a lower number"),
    ],
)
def test_a_gate_that_can_never_open_is_refused(name: str, gate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedReward(make(name), gate=gate)


def test_bounds_between_which_no_answer_differs_from_another_are_refused() -> None:
    with pytest.raises(ValueError, match="gives every answer the same score: none earns more than 0"):
        TaskRewards((WeightedReward(make("repetition")),), clip=(0, 1))
    with pytest.raises(ValueError, match="none earns more than 1"):
        TaskRewards((WeightedReward(make("exact_match")),), clip=(1, 2))
    free = make_table({"t": lambda completions, **_: [7.0]}).rewards_for("t").rewards
    assert TaskRewards(free, clip=(1, 9)).clip == (1, 9)


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


SEEN = (
    ConversationTurn(
        role="assistant", text='<think>7?</think><answer>7</answer><tool_call>{"box": [0, 0, 9, 9]}</tool_call>'
    ),
    ConversationTurn(role="tool", text="<answer>8</answer>", num_images=1),
    ConversationTurn(role="assistant", text='<think>no <tool_call></think>8<tool_call>{"n": 9}</tool_call>'),
)
EPISODE = Completion(text=SEEN[0].text + SEEN[2].text, turns=SEEN, num_turns=2)


def test_the_answer_of_an_episode_is_what_its_last_turn_says_beside_tool_calls() -> None:
    table = make_table({"t": ["exact_match", {"name": "number", "weight": 0.5}, {"name": "language", "weight": 0.1}]})
    assert table.score("t", EPISODE, {"answer": "8"}).value == 1.5
    assert table.score("t", EPISODE, {"answer": "7"}).value == 0.0
    marked = RewardTable({"t": TaskRewards((WeightedReward(make("exact_match")),), answer="tagged")})
    assert marked.score("t", EPISODE, {"answer": "7"}).value == 0.0, (
        "an earlier turn is no answer, however it is marked"
    )


@pytest.mark.parametrize("closing", ["</tool_call>", ""])
def test_the_arguments_of_a_call_are_no_answer(closing: str) -> None:
    call = f'I zoom.<tool_call>{{"name": "zoom", "arguments": {{"bbox_2d": [1, 2, 30, 40]}}}}{closing}'
    only = Completion(text=call, turns=(ConversationTurn(role="assistant", text=call),))
    reference = {"bbox_2d": [1, 2, 30, 40]}
    for name in ("grounding_iou", "grounding_boxes", "points", "json_match"):
        assert make_table({"t": name}).score("t", only, {**reference, "answer": reference}).value == 0.0


def test_an_episode_is_laid_out_by_its_last_turn_and_repeats_itself_in_all() -> None:
    said = "<think>I look.</think>" + "again and again " * 200
    turns = (SEEN[0], SEEN[1], ConversationTurn(role="assistant", text="<think>so</think><answer>8</answer>"))
    episode = Completion(text=said + turns[2].text, turns=turns)
    table = make_table({"t": ["format", {"name": "repetition", "weight": 0.5}]})
    parts = table.score("t", episode, {}).parts
    assert parts["format"] == 1.0 and parts["repetition"] < -0.5


def test_functions_get_the_turns_of_an_episode_as_messages() -> None:
    def last(completions: Any, final_answers: Any, **_: Any) -> list[float]:
        assert [turn["role"] for turn in completions[0]] == ["assistant", "tool", "assistant"]
        return [float(answer) for answer in final_answers]

    assert make_table({"t": last}).score("t", EPISODE, {}).value == 8.0
