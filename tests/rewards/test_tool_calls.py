"""The format of tool calls, and their number."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import (
    BadReferenceError,
    Completion,
    RewardTable,
    TaskRewards,
    ToolCall,
    ToolCallFormat,
    ToolCount,
    WeightedReward,
    make_reward,
)

ZOOM = {
    "type": "function",
    "function": {
        "name": "zoom",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {"type": "array"},
                "label": {"type": "string"},
                "factor": {"type": ["number", "null"]},
                "count": {"type": "integer"},
                "any": {},
                "gap": None,
            },
            "required": ["bbox_2d"],
        },
    },
}
TOOLS = {"tools": [ZOOM, {"name": "rotate"}, "stop"]}


def call(name: object = "zoom", **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


BOX = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "with_tools", "without"),
    [
        ("no call at all", 1, 1),
        (call(bbox_2d=BOX), 1, 1),
        (call(bbox_2d=BOX) + "\n" + call("stop"), 1, 1),
        ("I look closer." + call(bbox_2d=BOX, label="sign", factor=2.5, count=2, any={}), 1, 1),
        (call(bbox_2d=BOX, factor=None, count=2.0), 1, 1),
        (call("rotate", angle=90), 1, 1),
        (call("crop", bbox_2d=BOX), 0, 1),
        (call(), 0, 1),
        (call(bbox_2d=BOX, zoom=2), 0, 1),
        (call(bbox_2d=BOX, gap=1), 0, 1),
        (call(bbox_2d="1,2,3,4"), 0, 1),
        (call(bbox_2d=BOX, count=2.5), 0, 1),
        (call(bbox_2d=BOX, count=True), 0, 1),
        (call(bbox_2d=BOX, label=None), 0, 1),
        (call(bbox_2d=BOX) + call("crop"), 0, 1),
        (call(7), 0, 0),
        (call(""), 0, 0),
        ('<tool_call>{"name": "zoom"}</tool_call>', 0, 0),
        ('<tool_call>{"name": "zoom", "arguments": "{}"}</tool_call>', 0, 0),
        ('<tool_call>{"name": "stop", "arguments": {}, "id": 3}</tool_call>', 0, 0),
        ('<tool_call>{"name": "stop", "name": "stop", "arguments": {}}</tool_call>', 0, 0),
        ("<tool_call>zoom(1, 2)</tool_call>", 0, 0),
        ("<tool_call>[]</tool_call>", 0, 0),
        ("<tool_call></tool_call>", 0, 0),
        ("<tool_call>" + '{"name": "stop", "arguments": {}}', 0, 0),
        ('{"name": "stop", "arguments": {}}</tool_call>', 0, 0),
        ("<tool_call><tool_call>" + '{"name": "stop", "arguments": {}}</tool_call>', 0, 0),
        ("<tool_call>" + "[" * 10_000 + "]" * 10_000 + "</tool_call>", 0, 0),
        ("<think>I could say <tool_call> now</think>" + call("stop"), 1, 1),
        ("<think>" + call("crop") + "</think>none", 1, 1),
        ("opened by the template: <tool_call> now</think>" + call("stop"), 1, 1),
        (call("stop") + "second turn: <tool_call> now</think>done", 1, 1),
        (call("stop") + "<tool_call> oh</think>" + call("crop"), 0, 1),
    ],
)
def test_tool_call_format(text: str, with_tools: int, without: int) -> None:
    assert ToolCallFormat()(Completion(text=text), TOOLS).value == with_tools
    assert ToolCallFormat()(Completion(text=text), {**TOOLS, "tools": json.dumps(TOOLS["tools"])}).value == with_tools
    assert ToolCallFormat()(Completion(text=text), {}).value == without


def test_calling_can_be_required_and_calls_are_counted() -> None:
    assert ToolCallFormat(required=True)(Completion(text="no"), {}).value == 0.0
    score = ToolCallFormat(required=True)(Completion(text=call("stop") + "<tool_call>"), {})
    assert score.value == 0.0 and score.parts == {"num_calls": 2.0, "num_malformed": 1.0}


def test_further_arguments_can_be_allowed_by_the_schema() -> None:
    free = {"name": "zoom", "parameters": {"properties": {"a": {"type": "string"}}, "additionalProperties": True}}
    assert ToolCallFormat()(Completion(text=call(b=1)), {"tools": [free]}).value == 1.0
    assert ToolCallFormat()(Completion(text=call(a=1)), {"tools": [free]}).value == 0.0


@pytest.mark.parametrize(
    "tools", [3, "{", {"zoom": {}}, [3], [{}], [{"function": {}}], [{"name": "a", "parameters": 3}]]
)
def test_tools_that_are_none_are_an_error_of_the_data(tools: object) -> None:
    with pytest.raises(BadReferenceError):
        ToolCallFormat().perfect_answer({"tools": tools})


@given(st.text(alphabet='<tool_call>/think{}"name:arguments,[] ', max_size=200) | st.text(max_size=100))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert ToolCallFormat()(Completion(text=text), TOOLS).value in (0.0, 1.0)


@pytest.mark.parametrize(
    "piece", ["<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_call>[</tool_call>", "<"]
)
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    started = time.process_time()
    ToolCallFormat()(Completion(text=piece * (10**6 // len(piece))), TOOLS)
    assert time.process_time() - started < 30  # a quadratic scan takes hours


@pytest.mark.parametrize(
    ("calls", "target", "value"),
    [
        (0, 0, 1),
        (1, 0, 0),
        (9, 0, 0),
        (2, 2, 1),
        (1, 2, 0.5),
        (3, 2, 0.5),
        (4, 2, 0),
        (9, 2, 0),
        (0, 3, 0),
        (2, 3.0, 2 / 3),
    ],
)
def test_tool_count_falls_in_a_line_on_both_sides_of_the_target(calls: int, target: float, value: float) -> None:
    score = ToolCount()(Completion(text=call() * 7, num_tool_calls=calls), {"num_tool_calls": target})
    assert score.value == pytest.approx(value)


def ran(*boxes: int, failed: int = 0) -> Completion:
    """A zoom into each of the boxes, then calls that failed."""
    calls = [ToolCall(name="zoom", arguments={"bbox_2d": [0, 0, box, box], "label": "x"}) for box in boxes]
    calls += [ToolCall(name="zoom", arguments={"bbox_2d": [9, 9, i, i]}, error="no such box") for i in range(failed)]
    return Completion(text="", tool_calls=tuple(calls), num_tool_calls=len(boxes))


@pytest.mark.parametrize(
    ("completion", "target", "value"),
    [
        (ran(1, 2, 3), 3, 1),
        (ran(1, 1, 1), 3, 1 / 3),
        (ran(1, 2, failed=1), 3, 2 / 3),
        (ran(failed=3), 3, 0),
        (ran(1, 2, 3, failed=1), 3, 2 / 3),
        (ran(1, 2, 3, failed=97), 3, 0),
        (ran(1, 2, 3, 3), 3, 2 / 3),
        (ran(failed=1), 0, 0),
    ],
)
def test_calls_that_fail_or_repeat_bring_nobody_nearer_to_the_target_and_cost_beyond_it(
    completion: Completion, target: int, value: float
) -> None:
    assert ToolCount()(completion, {"num_tool_calls": target}).value == pytest.approx(value)


@given(st.lists(st.integers(1, 4), max_size=6), st.integers(0, 6), st.integers(0, 8), st.integers(1, 5))
def test_no_waste_ever_pays(boxes: list[int], failed: int, target: int, more: int) -> None:
    """More failures, or the same call again, never earn more than the episode without them."""
    reference = {"num_tool_calls": target}
    plain = ToolCount()(ran(*boxes, failed=failed), reference).value or 0.0
    assert (ToolCount()(ran(*boxes, failed=failed + more), reference).value or 0.0) <= plain
    assert (ToolCount()(ran(*boxes, *boxes[:1] * more, failed=failed), reference).value or 0.0) <= plain
    exact = ran(*range(target))
    assert ToolCount()(exact, reference).value == 1.0


def test_tools_whose_answers_change_may_be_asked_the_same_again() -> None:
    assert ToolCount(repeats=True)(ran(1, 1, 1), {"num_tool_calls": 3}).value == 1.0
    twice = Completion(text="", tool_calls=(ToolCall(name="a", arguments={"x": 1, "y": 2}),) * 2, num_tool_calls=2)
    assert ToolCount()(twice, {"num_tool_calls": 2}).parts == {"num_calls": 2.0, "num_useful": 1.0, "target": 2.0}


def test_behind_a_gate_calls_pay_on_right_answers_alone() -> None:
    right = WeightedReward(make_reward("exact_match"), 0.8, "right", gate=True)
    calls = WeightedReward(make_reward("tool_count"), 0.2, "calls")
    table = RewardTable({"t": TaskRewards((right, calls), aggregation="gate_by_correctness")})
    reference = {"answer": "7", "num_tool_calls": 2}
    paid = [table.score("t", replace(ran(1, 2), text=text), reference).value for text in ("7", "8")]
    assert paid == [pytest.approx(1.0), 0.0]


def test_a_target_beyond_what_the_environment_allows_is_cut() -> None:
    assert ToolCount(max_calls=4)(Completion(text="", num_tool_calls=4), {"num_tool_calls": 9}).value == 1.0


@pytest.mark.parametrize("target", [None, -1, 1.5, True, "2", []])
def test_a_target_that_is_no_count_is_an_error_of_the_data(target: object) -> None:
    with pytest.raises(BadReferenceError):
        ToolCount().perfect_answer({"num_tool_calls": target})
