"""Transcription: NED and ANLS, by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, OCRReward


@pytest.mark.parametrize(
    ("answer", "text", "ned_reward", "anls"),
    [
        ("STOP", "STOP", 1, 1),
        ("STOP", "Stop", 0.25, 1),
        ("STOP", "SHOP", 0.75, 0.75),
        ("abcd", "ab", 0.5, 0),  # ANLS: a distance of one half is already nothing
        ("abcde", "abc", 0.6, 0.6),
        ("abcd", "wxyz", 0, 0),
        ("12.50", "The total is 12.50", 5 / 18, 0),
        (["12.50", "$12.50"], "$12.50", 1, 1),
        ("two\nlines", "two lines", 1, 1),
        ("营业时间\n九点", "营业时间九点", 1, 1),
        ("营业时间", "营业时同", 0.75, 0.75),
        ("ＡＢＣ１", "ABC1", 1, 1),
        ("Cafe\u0301", "Café", 1, 1),
        ("STOP", "```\nSTOP\n```", 1, 1),
        ("STOP", "<answer>STOP</answer>", 1, 1),
        ("STOP", "<think>it says STOP", 0, 0),
        ("STOP", "", 0, 0),
        ("مخرج", "مخرج", 1, 1),
    ],
)
def test_ocr(answer: object, text: str, ned_reward: float, anls: float) -> None:
    completion, reference = Completion(text=text), {"answer": answer}
    assert OCRReward()(completion, reference).value == pytest.approx(ned_reward)
    assert OCRReward(measure="anls")(completion, reference).value == pytest.approx(anls)


@settings(deadline=None)  # the first example imports RapidFuzz
@given(st.text(min_size=1, max_size=60), st.text(max_size=60))
def test_ocr_is_bounded_and_anls_is_never_more_than_the_case_blind_similarity(gold: str, said: str) -> None:
    if not gold.strip():
        return
    completion, reference = Completion(text=said), {"answer": gold}
    for measure in ("ned", "anls"):
        score = OCRReward(measure=measure)(completion, reference)
        assert score.value is not None and 0 <= score.value <= 1
        assert score.value in (0.0, 1 - score.parts.get("ned", 1.0))


def test_bad_thresholds_and_references_are_refused() -> None:
    with pytest.raises(ValueError, match="threshold"):
        OCRReward(threshold=0)
    for answer in (None, "", ["a", ""], {"text": "a"}):
        with pytest.raises(BadReferenceError):
            OCRReward().perfect_answer({"answer": answer})
