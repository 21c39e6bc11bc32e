"""Wrong answers made from right ones: they are wrong for every verifier, and a reward that pays for them is named."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from posttrain.rewards import Completion, Score, available, corrupted, extract_answer, make_reward, make_table

from tests.waiting import PATIENCE_S

PATIENT_MATH = {"name": "math", "deadline_s": PATIENCE_S}
REFERENCES: dict[str, list[dict[str, Any]]] = {
    "math": [
        {"answer": answer}
        for answer in ("5", "1/2", r"\frac{3}{4}", "0.5", r"\{1, 2\}", "12 cm^2", "x_1 = 5", "odd", "3/3", "1:1", "A")
    ],
    "exact_match": [{"answer": a} for a in ("5", "cat", ["cat", "feline"], "feline", "上海市的", "Level 3", "?", "ab")],
    "multiple_choice": [{"answer": "B"}, {"answer": "Z"}, {"answer": "cat", "options": ["dog", "cat", "bird"]}],
    "number": [{"answer": a} for a in ("5", "0.5", "10%", 3, -4.25, "1/2", 0)],
    "count": [{"answer": a} for a in (5, 0, "12")],
    "text_similarity": [{"answer": a} for a in ("the cat", "hello world", ["a b", "cc"], "The Year 1984")],
    "ocr": [{"answer": a} for a in ("STOP", "line one\nline 2", "12:30")],
    "clock": [{"answer": "3:15"}, {"answer": "12:00"}],
    "grounding_iou": [{"bbox_2d": box} for box in ([0, 0, 1000, 1000], [10, 20, 30, 40], [500, 500, 1000, 1000])],
    "grounding_boxes": [
        {"boxes": [{"bbox_2d": [0, 0, 100, 100], "label": "a"}, {"bbox_2d": [100, 0, 200, 100], "label": "a"}]},
        {"boxes": [{"bbox_2d": [0, 0, 1000, 1000], "label": "b"}]},
    ],
    "json_match": [{"answer": {"a": 1, "b": "x"}}, {"answer": [1, 2]}],
    "json_schema": [{"schema": {"type": "object"}, "answer": {"a": 1}}],
}
TOLERANT = [
    {"name": "clock", "tolerance_min": 20, "zero_min": 60},
    {"name": "number", "absolute_tolerance": 1.0},
    {"name": "number", "relative_tolerance": 0.05},
    {"name": "count", "partial": True},
    {"name": "text_similarity", "measure": "word_f1"},
    {"name": "grounding_boxes", "thresholds": [0.1]},
    {"name": "exact_match", "ignore_case": True},
    {"name": "ocr", "measure": "anls"},
]


@pytest.mark.parametrize("spec", [*REFERENCES, *TOLERANT], ids=str)
def test_sound_rewards_pay_for_no_wrong_answer(spec: Any) -> None:
    table = make_table({"t": make_reward(spec, deadline_s=PATIENCE_S)})
    name = spec if isinstance(spec, str) else spec["name"]
    references = REFERENCES[name]
    for place, reference in enumerate(references):
        assert table.check("t", reference) == []
        assert table.check_wrong("t", reference, references[:place]) == []


def test_the_rewards_that_compare_with_a_reference_are_tried() -> None:
    assert set(REFERENCES) <= set(available())


@pytest.mark.parametrize(
    ("perfect", "wrong"),
    [
        (r"\boxed{1/2}", r"\boxed{1739/21}"),
        ("<answer>B</answer>", "<answer>C</answer>"),
        ("<answer>Paris is big</answer>", "<answer>Prais is big</answer>"),
        ("<answer>aaaaab</answer>", "<answer>aaaaba</answer>"),
        ('[{"bbox_2d": [10, 20, 30, 60]}]', '[{"bbox_2d": [30.0, 20.0, 50.0, 60.0]}]'),
        ('[{"bbox_2d": [980, 20, 990, 60]}]', '[{"bbox_2d": [990.0, 20.0, 1000.0, 60.0]}]'),
        ('[{"bbox_2d": [985, 20, 995, 60]}]', '[{"bbox_2d": [975.0, 20.0, 985.0, 60.0]}]'),
    ],
)
def test_a_right_answer_is_made_wrong(perfect: str, wrong: str) -> None:
    assert next(iter(corrupted(perfect)))[1] == wrong


def test_what_cannot_be_changed_safely_is_left_to_nonsense() -> None:
    program = "```python\nx1 = 2\n```"
    for perfect in ("<answer>Z</answer>", "<answer>cat</answer>", r"\boxed{x+y}", "<answer>ooooo</answer>", program):
        assert [how for how, _ in corrupted(perfect)] == ["nonsense"]


@dataclass(frozen=True)
class Careless:
    """Pays for what the function likes."""

    likes: Any

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        return Score(value=float(self.likes(extract_answer(completion.text) or "", str(reference["answer"]))))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        return f"<answer>{reference['answer']}</answer>"


def test_a_reward_that_searches_or_pays_for_anything_is_named() -> None:
    anything = make_table({"t": Careless(lambda said, right: True)})
    problems = anything.check_wrong("t", {"answer": "17"})
    assert problems[0] == (
        "Careless: the wrong answer '<answer>17739</answer>' (more digits in its numbers) earns full marks; right is "
        "'<answer>17</answer>'"
    )
    assert "(nonsense)" in problems[1]
    starts = make_table({"t": Careless(lambda said, right: said.startswith(right))})
    assert len(starts.check_wrong("t", {"answer": "17"})) == 1
    letters = make_table({"t": Careless(lambda said, right: sorted(said) == sorted(right))})
    assert "two letters swapped" in letters.check_wrong("t", {"answer": "horse"})[0]


def test_another_row_s_answer_is_wrong_unless_it_is_the_same_answer() -> None:
    inside = make_table({"t": Careless(lambda said, right: right in said)})
    (problem,) = inside.check_wrong("t", {"answer": "cat"}, [{"answer": "catalogue"}])
    assert "'<answer>catalogue</answer>' (right in another row)" in problem
    assert make_table({"t": PATIENT_MATH}).check_wrong("t", {"answer": "1/2"}, [{"answer": "0.5"}]) == []
    several = make_table({"t": "exact_match"})
    assert several.check_wrong("t", {"answer": ["cat", "feline"]}, [{"answer": "feline"}]) == []


def test_a_reward_may_offer_its_own_wrong_answers_instead() -> None:
    @dataclass(frozen=True)
    class Near(Careless):
        def wrong_answers(self, reference: Mapping[str, Any]) -> Iterable[str]:
            return [f"<answer>{int(reference['answer']) + 1}</answer>", self.perfect_answer(reference)]

    near = make_table({"t": Near(lambda said, right: abs(int(said) - int(right)) <= 1)})
    (problem,) = near.check_wrong("t", {"answer": "7"})
    assert "'<answer>8</answer>' (the reward itself says so)" in problem


def test_penalties_layouts_and_rows_that_are_named_already_are_not_tried() -> None:
    table = make_table({"t": [PATIENT_MATH, "format", "length"]})
    assert table.check_wrong("t", {"answer": "]["}) == []
    assert len(table.check("t", {"answer": "]["})) == 1


def test_a_reward_that_raises_on_its_own_perfect_answer_is_named() -> None:
    broken = make_table({"t": Careless(lambda said, right: 1 / 0)})
    assert broken.check("t", {"answer": "7"}) == ["Careless: it raises ZeroDivisionError: division by zero"]
    assert broken.check_wrong("t", {"answer": "7"}) == []
    assert broken.check("t", {}) == ["Careless: it raises KeyError: 'answer'"]


def test_gsm8k_references_are_right_and_no_corrupted_one_is(shared_data: Path) -> None:
    (file, *_) = sorted((shared_data / "gsm8k").rglob("*.jsonl"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:40]]
    table = make_table({"t": PATIENT_MATH})
    for place, row in enumerate(rows):
        assert table.check("t", row) == [] and table.check_wrong("t", row, rows[max(place - 2, 0) : place]) == []
    math, shuffled = make_reward(PATIENT_MATH), rows[1:] + rows[:1]
    perfect = [math.perfect_answer(row) or "" for row in rows]
    scores = [math(Completion(text=text), row).value for text, row in zip(perfect, shuffled, strict=True)]
    assert sum(score or 0.0 for score in scores) <= 2, "a few neighbours have equal answers"
