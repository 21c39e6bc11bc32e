"""What no answer may do, whoever reads it: raise, hang, or earn anything for noise."""

import math
import time

import pytest
from posttrain.rewards import BadReferenceError, Completion, make_reward

from tests.waiting import PATIENCE_S

REFERENCES = {
    "number": {"answer": 3},
    "count": {"answer": 3},
    "text_similarity": {"answer": "a red cup"},
    "ocr": {"answer": "出口 EXIT"},
    "json_valid": {},
    "json_schema": {"schema": {"type": "object", "required": ["name"]}},
    "json_match": {"answer": {"name": "cup"}},
    "tool_call_format": {"tools": ["zoom"]},
    "tool_count": {"num_tool_calls": 2},
    "repetition": {},
    "language": {"answer": "cup"},
    "clock": {"answer": "3:15"},
    "multiple_choice": {"answer": "B", "options": ["red", "blue"]},
    "exact_match": {"answer": "cup"},
    "math": {"answer": r"\frac{1}{2}"},
    "grounding_iou": {"bbox_2d": [10, 10, 200, 200]},
    "grounding_boxes": {"boxes": [{"bbox_2d": [10, 10, 200, 200], "label": "cup"}]},
    "points": {"points": [{"point_2d": [500, 500]}]},
    "count_points": {"answer": 3},
}
PIECES = {
    "nothing": "",
    "blank": " \n\t",
    "brackets": "[" * 10**6,
    "braces": "{}" * 50_000,
    "deep": '{"name":' * 10_000 + "1" + "}" * 10_000,
    "surrogates": "\ud800\udfff" * 1000,
    "invalid UTF-8": b"\xff\xfe\x80 xyz".decode("utf-8", "surrogateescape"),
    "invalid UTF-8, replaced": b"\xff\xfe\x80".decode("utf-8", "replace"),
    "NaN": '{"name": NaN}',
    "other digits": "٣٣٣ ३३ ๓",
    "right to left": "\u202e\u200f5:3\u202c",
    "zeros": "0" * 10**6,
    "one line": "9" * 999,
    "exponent": "1e" + "9" * 90,
    "slashes": "\\boxed{" * 50_000,
    "tags": "<answer>" * 50_000,
    "calls": "<tool_call>" * 50_000,
    "NUL": "\x00" * 1000,
    "combining": "a" + "\u0301" * 50_000,
    "Chinese answers": "答案是" * 60_000,
    "Chinese choices": "所以，故选" * 40_000,
    "reasons": "B, because " * 20_000,
    "options": "选项A、" * 40_000,
    "boxes": '[{"bbox_2d": [NaN, 1e999, 9, -Infinity]}]' * 4_000,
}


@pytest.mark.parametrize("where", ["bare", "tag", "thought"])
@pytest.mark.parametrize("piece", PIECES)
def test_no_text_raises_takes_long_or_earns_anything(piece: str, where: str) -> None:
    text = {"bare": "{}", "tag": "<answer>{}</answer>", "thought": "<think>{}"}[where].replace("{}", PIECES[piece], 1)
    for name, reference in REFERENCES.items():
        reward = make_reward(name, deadline_s=PATIENCE_S)
        started = time.process_time()
        score = reward(Completion(text=text, prompt="What is in the picture?"), reference)
        assert time.process_time() - started < PATIENCE_S, name
        assert score.value is not None and math.isfinite(score.value), (name, score.reason)
        score.reason.encode()  # a report must be able to write it
        most = {"json_valid": 1.0, "tool_call_format": 1.0, "text_similarity": 0.2, "ocr": 0.2}.get(name, 0.0)
        assert score.value <= most, name


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_of_the_wrong_shape_is_refused_or_does_not_matter(name: str) -> None:
    reward = make_reward(name, deadline_s=PATIENCE_S)
    for wrong in (None, [], {}, object(), float("nan"), b"3", {"a": object()}, True):
        reference = dict.fromkeys([*REFERENCES[name], "answer", "tools", "language", "options"], wrong)
        try:
            reward.perfect_answer(reference)
            reward(Completion(text="x", prompt="y"), reference)
        except BadReferenceError as error:
            str(error).encode()
