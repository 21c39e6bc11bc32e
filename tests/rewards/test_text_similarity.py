"""Fuzzy text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, TextSimilarity
from posttrain.rewards.text_similarity import MAX_CHARS, edit_likeness, without_punctuation, word_f1
from posttrain.rewards.words import squeezed, words


def plain_distance(first: str, second: str) -> int:
    """Levenshtein's distance, as its definition has it."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        row, above = [i], row
        for j, b in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


@settings(deadline=None)  # the first example imports RapidFuzz
@given(st.text(alphabet="abc猫 ", max_size=12), st.text(alphabet="abc猫 ", max_size=12))
def test_likeness_is_one_minus_the_normalised_levenshtein_distance(first: str, second: str) -> None:
    longer = max(len(first), len(second), 1)
    assert edit_likeness(first, second) == pytest.approx(1 - plain_distance(first, second) / longer)


@pytest.mark.parametrize(
    ("options", "answer", "text", "value"),
    [
        ({}, "kitten", "sitting", 1 - 3 / 7),
        ({}, "Paris", "  paris\n", 1),
        ({"ignore_case": False}, "Paris", "paris", 0.8),
        ({}, "Zu\u0308rich", "Z\u00fcrich", 1),
        ({}, ["Rome", "Paris"], "Paris", 1),
        ({}, "Paris", "<think>Rome</think>Paris", 1),
        ({}, "Paris", "<think>Paris", 0),
        ({}, "Paris", "I say <answer>Paris</answer>", 1),
        ({"threshold": 0.9}, "Paris", "Pari", 0),
        ({"threshold": 0.8}, "Paris", "Pari", 0.8),
        ({}, "a red cup", "the red cup", 1 - 3 / 11),
        ({"ignore_articles": True}, "a red cup", "The red cup", 1),
        ({"ignore_punctuation": True}, "red, round", "red round!", 1),
        ({"ignore_punctuation": True}, "-5", "5", 0.5),
        ({"ignore_punctuation": True}, "5%", "5", 0.5),
        ({"ignore_punctuation": True}, "3.5", "35", 2 / 3),
        ({"measure": "sorted_words"}, "red cup", "cup red", 1),
        ({"measure": "word_f1"}, "red cup", "a red cup here", 2 * 2 / 6),
        ({"measure": "word_f1"}, "red cup", "red red red red", 2 / 6),
        ({"measure": "word_f1"}, "红色杯子", "杯子", 2 * 2 / 6),
        ({"measure": "word_f1"}, "red", "", 0),
    ],
)
def test_text_similarity(options: dict, answer: object, text: str, value: float) -> None:
    reward, reference = TextSimilarity(**options), {"answer": answer}
    assert reward(Completion(text=text), reference).value == pytest.approx(value)
    assert reward(Completion(text=reward.perfect_answer(reference)), reference).value == 1.0


def test_listing_everything_does_not_pay() -> None:
    everything = " ".join(f"word{i}" for i in range(200)) + " paris"
    for measure in ("edit", "sorted_words", "word_f1"):
        value = TextSimilarity(measure=measure)(Completion(text=everything), {"answer": "paris"}).value
        assert value is not None and value < 0.02


def test_an_endless_answer_earns_nothing_and_an_endless_reference_is_refused() -> None:
    assert TextSimilarity()(Completion(text="a" * 10**6), {"answer": "a"}).value == 0.0
    with pytest.raises(BadReferenceError, match="longer than"):
        TextSimilarity()(Completion(text="a"), {"answer": "a" * (MAX_CHARS + 1)})


@pytest.mark.parametrize(
    ("options", "answer"), [({"ignore_punctuation": True}, "..."), ({"measure": "word_f1"}, "!"), ({}, []), ({}, " ")]
)
def test_a_reference_of_which_nothing_is_compared_is_refused(options: dict, answer: object) -> None:
    with pytest.raises(BadReferenceError):
        TextSimilarity(**options).perfect_answer({"answer": answer})


@given(st.text(max_size=80))
def test_normalising_twice_changes_nothing(text: str) -> None:
    reward = TextSimilarity(ignore_punctuation=True, ignore_articles=False)
    assert reward.normal(reward.normal(text)) == reward.normal(text)
    assert 0 <= word_f1(text, squeezed(text)) <= 1


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert words("It's 3 cats, 两只狗。") == ["It", "s", "3", "cats", "两", "只", "狗"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]  # Python's \w leaves out the vowel signs
    assert words("แมว") == ["แ", "ม", "ว"]
    assert squeezed(" 出\n口 Exit \n now ") == "出口 Exit now"
    assert without_punctuation("a-b, -3.5%!") == "a b  -3.5% "
