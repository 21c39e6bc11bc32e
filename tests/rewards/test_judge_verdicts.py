"""Reading verdicts: one object with the right id, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards.judge_verdicts import Choice, NoVerdictError, Scale, VerdictFormat

ID = "0123456789abcdef"
ACCURACY = VerdictFormat({"correct": Choice((True, False))})
GRADES = VerdictFormat({"style": Scale(0, 10), "factuality": Scale(0, 10)})
RIGHT = f'{{"id": "{ID}", "correct": true}}'


@pytest.mark.parametrize(
    "reply",
    [RIGHT, f"\n {RIGHT}\n", f"```json\n{RIGHT}\n```", f"```\n{RIGHT}\n```", f"<think>hm {{}}</think>\n{RIGHT}"],
)
def test_one_object_bare_or_fenced_or_after_thoughts_is_a_verdict(reply: str) -> None:
    assert ACCURACY.parse(reply, ID) == {"correct": True}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "said nothing"),
        ("The answer is correct.", "one JSON object alone"),
        (f"Here you are: {RIGHT} or {RIGHT}", "one JSON object alone"),
        (f"{RIGHT} That is all.", "one JSON object alone"),
        (f"{RIGHT}\n{RIGHT}", "one JSON object alone"),
        (RIGHT[:-1], "one JSON object alone"),
        (f"[{RIGHT}]", "an object with id, correct"),
        ('{"correct": true}', "an object with id, correct"),
        (f'{{"id": "{ID}", "note": "x"}}', "an object with id, correct"),
        (f'{{"id": "{ID}", "correct": true, "correct": false}}', "one JSON object alone"),
        ('{"id": "fedcba9876543210", "correct": true}', "another id"),
        ('{"id": null, "correct": true}', "another id"),
        (f'{{"id": "{ID}", "correct": 1}}', "its correct is 1"),
        (f'{{"id": "{ID}", "correct": "true"}}', "its correct is 'true'"),
        (f"<think>{RIGHT}", "never stopped thinking"),
        (RIGHT + " " * 5 + "x" * 5000, "it said 5,0"),
        ("[" * 3000, "one JSON object alone"),
    ],
)
def test_anything_else_is_none_and_says_why(reply: str, why: str) -> None:
    with pytest.raises(NoVerdictError, match=why):
        ACCURACY.parse(reply, ID)


@pytest.mark.parametrize("grade", ["-1", "10.5", "11", "true", '"7"', "null", "NaN", "Infinity", "1e999", "[7]"])
def test_a_grade_outside_its_range_is_none(grade: str) -> None:
    with pytest.raises(NoVerdictError):
        GRADES.parse(f'{{"id": "{ID}", "style": {grade}, "factuality": 5}}', ID)


@given(st.floats(0, 10), st.integers(0, 10))
def test_grades_come_back_as_they_were_said(style: float, factuality: int) -> None:
    said = json.dumps({"id": ID, "style": style, "factuality": factuality})
    assert GRADES.parse(said, ID) == {"style": style, "factuality": factuality}


@given(st.text(alphabet=st.sampled_from('{}[]":,`\\\n truefals0123456789.eE-idcon<>/hk'), max_size=200))
def test_no_text_without_the_id_is_a_verdict(reply: str) -> None:
    with pytest.raises(NoVerdictError):
        GRADES.parse(reply, ID)


def test_the_request_shows_the_form_and_the_schema_keeps_the_id() -> None:
    asked = GRADES.request(ID)
    assert f'"id": "{ID}"' in asked and '"style": <a number from 0 to 10>' in asked
    assert ID not in json.dumps(GRADES.schema())
    assert GRADES.schema()["required"] == ["id", "style", "factuality"]
