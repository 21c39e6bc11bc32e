"""JSON: found, parsed strictly, compared with a schema and field by field."""

import contextlib
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, JSONMatch, JSONSchemaReward, JSONValid, make_reward
from posttrain.rewards.json_text import JSONAnswerError, answer_json, strict_json


def said(value: object) -> Completion:
    return Completion(text=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ("  [1, 2]\n", "[1, 2]"),
        ('Here you are:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}'),
        ('```\n{"a": 1}\n```', '{"a": 1}'),
        ('```json{"a": 1}```', '{"a": 1}'),
        ('```json\n{"a": 1}\n```\nno:\n```json\n{"a": 2}\n```', '{"a": 2}'),
        ('```json\n{"a": 1}\n```\n```python\nprint([1])\n```', '{"a": 1}'),
        ('```python\nx = [1]\n```\nso {"a": 1}', '{"a": 1}'),
        ('```json\n{"code": "```python\\nprint()```"}\n```', '{"code": "```python\\nprint()```"}'),
        ('{"code": "```json\\n[1]\\n```"}', '{"code": "```json\\n[1]\\n```"}'),
        ('The result is {"a": [1, {"b": "]}"}]}.', '{"a": [1, {"b": "]}"}]}'),
        ('It\'s {"a": "she said \\"}\\""}', '{"a": "she said \\"}\\""}'),
        ('{"a": 1} or {"a": 2}', '{"a": 2}'),
        ('<think>{"a": 1}</think>{"a": 2}', '{"a": 2}'),
        ('{"a": 1} <answer>{"a": 2}</answer> {"a": 3}', '{"a": 2}'),
    ],
)
def test_json_is_found(text: str, found: str) -> None:
    assert answer_json(text).strip() == found


@pytest.mark.parametrize(
    ("text", "anywhere", "alone"),
    [
        ('{"a": 1}', 1, 1),
        ("[]", 1, 1),
        ('<think>hm</think>\n```json\n{"a": 1}\n```', 1, 1),
        ('```\n{"a": 1}\n```', 1, 1),
        ('Sure: {"a": 1}', 1, 0),
        ('```json\n{"a": 1}\n```\nThat is all.', 1, 0),
        ('```json\n{"a": 1}\n```\n```json\n{"a": 1}\n```', 1, 0),
        ('{"a": 1} {"a": 1}', 0, 0),
        ('{"a": 1', 0, 0),
        ('```json\n{"a": 1\n```', 0, 0),
        ("{'a': 1}", 0, 0),
        ('{"a": 1,}', 0, 0),
        ('{"a": 1, "a": 1}', 0, 0),
        ('{"b": {"a": 1, "a": 2}}', 0, 0),
        ('{"a": NaN}', 0, 0),
        ('{"a": -Infinity}', 0, 0),
        ('{"a": 1e999}', 0, 0),
        ('{"a": ' + "9" * 5000 + "}", 0, 0),
        ("7", 0, 0),
        ('"text"', 0, 0),
        ("", 0, 0),
        ('<think>{"a": 1}', 0, 0),
        ("[" * 10_000 + "]" * 10_000, 0, 0),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, 0, 0),
        ("[" * 64 + "]" * 64, 1, 1),
        ("[" * 65 + "]" * 65, 0, 0),
        ('["' + "[" * 1000 + '"]', 1, 1),
        ("[" * 10**6, 0, 0),
    ],
)
def test_json_valid(text: str, anywhere: int, alone: int) -> None:
    assert JSONValid()(said(text), {}).value == anywhere
    assert JSONValid(alone=True)(said(text), {}).value == alone


def test_the_kind_at_the_top() -> None:
    assert JSONValid(kind="object")(said("[]"), {}).value == 0.0
    assert JSONValid(kind="list")(said("[]"), {}).value == 1.0


def test_a_refusal_names_its_reason() -> None:
    for text, reason in [
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[" * 99, "balanced"),
    ]:
        assert reason in JSONValid()(said(text), {}).reason


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
documents = st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4)


@given(documents)
def test_what_is_json_is_read_back_bare_and_fenced(document: object) -> None:
    text = json.dumps(document)
    for wrapped in (text, f"```json\n{text}\n```", f"Here:\n```json\n{text}\n```\nthanks"):
        assert strict_json(answer_json(wrapped)) == document


@given(st.text(alphabet='[]{}"\\,:1aeNIu `\njson<>/answer', max_size=200) | st.text(max_size=100))
def test_finding_and_parsing_raise_nothing_but_their_own_error(text: str) -> None:
    with contextlib.suppress(JSONAnswerError):
        strict_json(answer_json(text))


@pytest.mark.parametrize("piece", ["[", "{", '"', '["', "```", "```json\n", "\\", '{"a":', "]", "`", '\\"', "``` \n"])
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    started = time.process_time()
    JSONValid()(said(piece * (10**6 // len(piece))), {})
    assert time.process_time() - started < 20  # a quadratic scan takes minutes


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}, "size": {"$ref": "#/$defs/size"}},
    "required": ["name"],
    "$defs": {"size": {"enum": ["S", "M"]}},
}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"name": "aa"}, 1),
        ('```json\n{"name": "a", "size": "M"}\n```', 1),
        ({"name": "aa", "size": "L"}, 0),
        ({"size": "M"}, 0),
        ({"name": 3}, 0),
        ([], 0),
        ("no idea", 0),
        ('{"name": "a", "name": "a"}', 0),
    ],
)
def test_json_schema(answer: object, value: int) -> None:
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        assert JSONSchemaReward(deadline_s=60)(said(answer), {"schema": schema}).value == value
    assert JSONSchemaReward(schema=SCHEMA, deadline_s=60)(said(answer), {}).value == value


def test_a_pattern_that_backtracks_for_ever_costs_a_deadline_and_is_unscored() -> None:
    score = JSONSchemaReward(deadline_s=0.5)(said({"name": "a" * 40 + "!"}), {"schema": SCHEMA})
    assert not score.is_scored and "deadline" in score.reason


def test_violations_are_counted_and_told() -> None:
    score = JSONSchemaReward(deadline_s=60)(said({"name": 3, "size": "L"}), {"schema": SCHEMA})
    assert score.parts["violations"] == 2 and "$.size" in score.reason


@pytest.mark.parametrize("target", ["https://example.org/schema.json", "http://localhost:1/x", "file:///etc/passwd"])
def test_a_reference_out_of_the_schema_is_not_followed(target: str) -> None:
    score = JSONSchemaReward(deadline_s=60)(said({"a": 1}), {"schema": {"$ref": target}})
    assert not score.is_scored and "Unresolvable" in score.reason


def test_a_schema_that_leads_to_itself_is_unscored() -> None:
    assert not JSONSchemaReward(deadline_s=60)(said({"a": 1}), {"schema": {"$ref": "#"}}).is_scored


@pytest.mark.parametrize(
    "schema", [None, "", "{", 3, [], {"type": "dog"}, {"pattern": "("}, {"$schema": []}, {1: 2.5j}]
)
def test_a_schema_that_is_none_is_an_error_of_the_data(schema: object) -> None:
    with pytest.raises(BadReferenceError):
        JSONSchemaReward().perfect_answer({"schema": schema})
    scores = JSONSchemaReward(deadline_s=60).score_batch(
        [said({}), said({"name": "a"})], [{"schema": schema}, {"schema": SCHEMA}]
    )
    assert [score.value for score in scores] == [None, 1.0]


def test_json_schema_checks_its_options_and_a_references_own_answer() -> None:
    with pytest.raises(ValueError, match="no JSON schema"):
        make_reward({"name": "json_schema", "schema": {"type": "dog"}})
    reward, reference = JSONSchemaReward(deadline_s=60), {"schema": SCHEMA, "answer": {"name": "a"}}
    perfect = reward.perfect_answer(reference)
    assert perfect is not None and reward(said(perfect), reference).value == 1.0
    assert reward.perfect_answer({"schema": SCHEMA}) is None


GOLD = {
    "shop": "Café",
    "items": [{"name": "tea", "price": 2.5}, {"name": "cake", "price": 4}],
    "paid": True,
    "tip": None,
}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (GOLD, 1),
        ({**GOLD, "shop": "Cafe\u0301 "}, 1),
        ({**GOLD, "items": [{"price": 2.50, "name": "tea"}, {"name": "cake", "price": 4.0}]}, 1),
        ({**GOLD, "paid": 1}, 2 * 6 / 14),
        ({**GOLD, "tip": 0}, 2 * 6 / 14),
        ({**GOLD, "shop": "CAFÉ"}, 2 * 6 / 14),
        ({**GOLD, "items": GOLD["items"][::-1]}, 2 * 3 / 14),
        ({"shop": "Café"}, 2 * 1 / 8),
        ({**GOLD, **{f"extra{i}": i for i in range(7)}}, 2 * 7 / 21),
        ({"shop": {"shop": "Café"}}, 0),
        ({}, 0),
        ([GOLD], 0),
        ("no idea", 0),
    ],
)
def test_json_match_is_the_f1_of_the_fields(answer: object, value: float) -> None:
    for gold in (GOLD, json.dumps(GOLD)):
        assert JSONMatch()(said(answer), {"answer": gold}).value == pytest.approx(value)


def test_options_of_json_match() -> None:
    turned = {**GOLD, "items": GOLD["items"][::-1]}
    assert JSONMatch(ordered_lists=False)(said(turned), {"answer": GOLD}).value == 1.0
    assert JSONMatch(ignore_case=True)(said({**GOLD, "shop": "CAFÉ"}), {"answer": GOLD}).value == 1.0
    assert JSONMatch()(said([]), {"answer": []}).value == 1.0
    assert JSONMatch()(said({}), {"answer": []}).value == 0.0


@given(documents)
def test_every_reference_earns_full_marks_with_its_perfect_answer(document: dict | list) -> None:
    for reward in (JSONMatch(), JSONMatch(ordered_lists=False, ignore_case=True)):
        reference = {"answer": document}
        assert reward(Completion(text=reward.perfect_answer(reference)), reference).value == 1.0


@given(documents, documents)
def test_json_match_is_bounded_and_symmetric(first: dict | list, second: dict | list) -> None:
    one = JSONMatch()(said(first), {"answer": second}).value
    assert one is not None and 0 <= one <= 1
    assert one == JSONMatch()(said(second), {"answer": first}).value


@pytest.mark.parametrize("answer", [None, "", "{", "3", 3, {"a": math.nan}, {"a": {1j}}, '{"a": 1, "a": 2}'])
def test_json_match_refuses_a_reference_that_is_no_document(answer: object) -> None:
    with pytest.raises(BadReferenceError):
        JSONMatch().perfect_answer({"answer": answer})
