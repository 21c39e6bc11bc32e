"""Tool calls are read from whatever a policy writes, by the rules of the format reward, and nothing raises."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.rewards import Completion, make_reward

from posttrain.environments import parse_reply

ZOOM = '{"name": "zoom", "arguments": {"img_idx": 0}}'
CALL = f"<tool_call>\n{ZOOM}\n</tool_call>"


def test_the_cookbooks_call() -> None:
    arguments = {"label": "the sign", "bbox_2d": [574, 301, 660, 468], "img_idx": 0}
    body = f'{{"name": "image_zoom_in_tool", "arguments": {json.dumps(arguments)}}}'
    text = f"I look closer.\n<tool_call>\n{body}\n</tool_call>"
    reply = parse_reply(text)
    assert reply.text == text
    (found,) = reply.calls
    assert (found.name, found.arguments, found.problem) == ("image_zoom_in_tool", arguments, "")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The answer is 4.", []),
        ("", []),
        (ZOOM, []),  # no tags
        (CALL, ["zoom"]),
        (CALL.replace("\n", ""), ["zoom"]),
        (f"{CALL}\n{CALL.replace('zoom', 'turn')}", ["zoom", "turn"]),
        (f"<think>perhaps {CALL}</think>no", []),
        (f"perhaps {CALL}</think>no", []),  # the template opened the thought
        (f"<think>hm</think>{CALL}", ["zoom"]),
        (f"hm</think>{CALL}<think>and {CALL}</think>{CALL}", ["zoom", "zoom"]),
        (f"<tool_response>{CALL}</tool_response>", ["zoom"]),  # the policy's own words, whatever it pretends
        ("<|vision_start|><|image_pad|><|vision_end|>", []),
    ],
)
def test_calls_are_found(text: str, names: list[str]) -> None:
    assert [call.name for call in parse_reply(text).calls] == names


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "not JSON"),
        ("zoom(0)", "not JSON"),
        ("{'name': 'zoom', 'arguments': {}}", "not JSON"),
        ('{"name": "zoom", "arguments": {}} and more', "not JSON"),
        ('{"name": "zoom", "arguments": {"x": NaN}}', "NaN"),
        ('{"name": "zoom", "arguments": {"x": -Infinity}}', "Infinity"),
        ('{"name": "zoom", "arguments": {"x": 1e999}}', "1e999"),
        ('{"name": "zoom", "arguments": {"x": 1, "x": 2}}', "twice"),
        ('{"name": "zoom"}', '"arguments"'),
        ('{"name": "zoom", "arguments": "{}"}', '"arguments" an object'),
        ('{"name": "zoom", "arguments": []}', '"arguments" an object'),
        ('{"name": "", "arguments": {}}', '"name" must be text'),
        ('{"name": 3, "arguments": {}}', '"name" must be text'),
        ('{"name": "zoom", "arguments": {}, "id": 1}', "nothing else"),
        ("[1, 2]", '"name" and "arguments"'),
        ("[" * 100_000, "nested"),
        ('{"name": "zoom", "arguments": {"x": ' + "[" * 65 + "]" * 65 + "}}", "nested"),
        ('{"name": "zoom", "arguments": {"x": "' + "x" * 300_000 + '"}}', "characters"),
        ('{"name": "zoom", "arguments": {"x": ' + "9" * 5000 + "}}", "not JSON"),
    ],
)
def test_a_call_that_cannot_be_read_says_why(body: str, says: str) -> None:
    (found,) = parse_reply(f"<tool_call>\n{body}\n</tool_call>").calls
    assert found.name == "" and found.arguments == {}
    assert says in found.problem and len(found.problem) < 400


@pytest.mark.parametrize(
    "text", [f"<tool_call>{ZOOM}", f"{ZOOM}</tool_call>", f"<tool_call><tool_call>{ZOOM}</tool_call>"]
)
def test_a_tag_without_its_partner_is_a_problem(text: str) -> None:
    assert any("no partner" in call.problem for call in parse_reply(text).calls)


def test_lone_surrogates_become_replacement_characters() -> None:
    (found,) = parse_reply(
        '<tool_call>{"name": "a\\ud800", "arguments": {"\\udc00": ["\\ud83d", 1]}}</tool_call>'
    ).calls
    assert found.name == "a\ufffd" and found.arguments == {"\ufffd": ["\ufffd", 1]}
    reply = parse_reply("half a pair: \ud83d")
    reply.text.encode()
    assert (
        parse_reply('<tool_call>{"name": "\\ud83d\\ude00", "arguments": {}}</tool_call>').calls[0].name == "\U0001f600"
    )


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" + "[" * 1_000_000,
        "<tool_call>" + '{"name": ' * 110_000 + "</tool_call>",
        "<tool_call>" * 90_000,
        "</think>" * 120_000 + CALL,
        f"{CALL}</think>" * 15_000,
        "<tool_call>" + "<|image_pad|>" * 80_000 + "</tool_call>",
    ],
    ids=["brackets", "nested", "tags", "thoughts", "taken back", "vision tokens"],
)
def test_a_megabyte_is_read_in_time(text: str) -> None:
    started = time.process_time()
    parse_reply(text)
    assert time.process_time() - started < 30  # about 0.3 s; anything quadratic takes minutes


PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<tool_response>",
        "</tool_response>",
        "<|im_end|>",
        "<|image_pad|>",
        ZOOM,
        '{"name": "zoom", "arguments": {"x": NaN}}',
        '"',
        "\\",
        "\ud800",
        "{",
        "}",
        "[",
        "\n",
    ]
)


@given(st.lists(PIECES | st.text(max_size=20), max_size=30).map("".join))
@settings(max_examples=400, deadline=None)
def test_reading_never_raises_and_agrees_with_the_format_reward(text: str) -> None:
    reply = parse_reply(text)
    score = make_reward("tool_call_format")(Completion(text=text), {})
    if "</think>" not in text:  # else the reward, which reads many turns at once, may take a thought for a turn
        assert score.parts["num_calls"] == len(reply.calls)
        assert score.parts["num_malformed"] == sum(bool(call.problem) for call in reply.calls)
    for call in reply.calls:
        assert bool(call.name) is not bool(call.problem)
        json.dumps([call.name, dict(call.arguments), call.problem], allow_nan=False, ensure_ascii=False).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=4))
@settings(deadline=None)
def test_what_is_written_is_what_is_read(name: str, arguments: dict[str, object]) -> None:
    body = json.dumps({"name": name, "arguments": arguments})
    found = parse_reply(f"<tool_call>\n{body}\n</tool_call>").calls
    if "<" not in body:  # a name may hold a tag of its own
        assert [(call.name, call.arguments) for call in found] == [(name, arguments)]
