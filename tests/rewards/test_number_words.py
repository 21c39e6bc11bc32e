"""Numbers in words, and hedges around a number: what states it and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Completion, CountReward
from posttrain.rewards.counting import stated_count
from posttrain.rewards.number_words import HAN_DIGITS, NUMBER_WORDS, SCALE_WORDS, TENS_WORDS, english_number, han_number
from posttrain.rewards.numerals import stated_number


def english(number: int) -> str:
    """A whole number below 10**15 in words."""
    names = {value: word for word, value in {**NUMBER_WORDS, **TENS_WORDS}.items()}
    if number in names:
        return names[number]
    if number < 100:
        return f"{names[number // 10 * 10]}-{names[number % 10]}"
    power = max(power for power in SCALE_WORDS.values() if 10**power <= number)
    scale = next(word for word, value in SCALE_WORDS.items() if value == power)
    above, below = divmod(number, 10**power)
    joint = " and " if below < 100 else " "
    return f"{english(above)} {scale}" + (f"{joint}{english(below)}" if below else "")


def han(number: int) -> str:
    """A whole number below 10**12 in Chinese numerals."""
    digits = {value: digit for digit, value in HAN_DIGITS.items() if digit not in "两兩"}
    if number < 10:
        return digits[number]
    for power, unit in ((8, "亿"), (4, "万"), (3, "千"), (2, "百"), (1, "十")):
        above, below = divmod(number, 10**power)
        if above:
            filled = "零" if 0 < below < 10 ** (power - 1) else ""
            return han(above) + unit + filled + (han(below) if below else "")
    raise AssertionError("every number is below ten or above it")


@given(st.integers(0, 10**15 - 1))
def test_every_number_in_english_words_is_read_back(number: int) -> None:
    assert english_number(english(number)) == number
    assert stated_number(f"There are {english(number)} cups.") == number


@given(st.integers(0, 10**12 - 1))
def test_every_number_in_chinese_numerals_is_read_back(number: int) -> None:
    assert han_number(han(number)) == number
    assert stated_number(f"图中有{han(number)}个杯子。") == number


@given(st.lists(st.sampled_from([*NUMBER_WORDS, *TENS_WORDS, *SCALE_WORDS, "and"]), min_size=1, max_size=6))
def test_words_that_are_read_as_a_number_write_it(words: list[str]) -> None:
    number = english_number(" ".join(words))
    if number is not None and number < 10**15:
        without_and = [word for word in words if word != "and"]
        assert sum({**NUMBER_WORDS, **TENS_WORDS}.get(word, 0) for word in without_and) <= number


@given(st.text(alphabet="".join(HAN_DIGITS) + "十百千万亿", max_size=8))
def test_numerals_that_are_read_as_a_number_are_written_like_it(numerals: str) -> None:
    number = han_number(numerals) if numerals else None
    if number is not None and number < 10**12:
        plain = numerals.replace("两", "二").replace("兩", "二")
        assert han(number).replace("一十", "十") == plain.replace("一十", "十")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("一百", 100),
        ("一百零五个", 105),
        ("一百一十五个", 115),
        ("两千零三", 2003),
        ("一万零五百人。", 10_500),
        ("三百只", 300),
        ("3百只", 300),
        ("3千克", 3),
        ("one hundred twenty", 120),
        ("one hundred and five", 105),
        ("a hundred cups", 100),
        ("two hundred thousand", 200_000),
        ("3 hundred thousand", 300_000),
        ("twenty percent of them", None),
        ("一百五", None),  # 150 when spoken
        ("五百三只", None),
        ("一万万个", None),  # 一亿
        ("3百五十个", None),
        ("3千个", None),
        ("three four", None),
        ("one hundred and", 100),
        ("one hundred and two hundred", None),
        ("three and four", None),
        ("nineteen ninety", None),
        ("three or four hundred", None),
    ],
)
def test_words_follow_the_grammar_or_state_nothing(text: str, number: int | None) -> None:
    if text == "twenty percent of them":
        assert stated_number(text) == stated_number("20%")
    else:
        assert stated_number(text) == number


@pytest.mark.parametrize(
    "hedge",
    [
        *(
            "不止3个",
            "多于3个",
            "少于3个",
            "不足3个",
            "3个以上",
            "没有3个",
            "3个以内",
            "未满3个",
            "大于三个",
            "超過3個",
        ),
        *("30多个", "3个以下", "over 3", "under 3", "3 plus", "above 3", "below three", "over a hundred", "exceeds 3"),
        *("3 and above", "3 and up", "well over three", "more than 3"),
    ],
)
def test_a_hedge_states_no_number(hedge: str) -> None:
    assert stated_number(hedge) is None
    assert CountReward()(Completion(text=hedge), {"answer": 3}).value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        *("3个", "共3个", "没有红色的，有3个", "光线不足，有3个", "以上共3个", "图上有3个", "I see 3 over there"),
        *("3 cups above the table", "3 cups under it", "all 3", "It is 3 overall"),
    ],
)
def test_what_only_looks_like_a_hedge_states_it(text: str) -> None:
    assert stated_number(text) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("There are no cups.", 0),
        ("There are no red cups in the image.", 0),
        ("There is no cup on the table", 0),
        ("**There are no cups.**", 0),
        ("There are no more than three cups", None),
        ("There are no cups but some", None),
        ("There is no way to tell", None),
        ("There is no doubt", None),
        ("There are no fewer cups", None),
        ("There are no cups, there are plates", None),
        ("There are no cups and 3 plates", 3),
        ("There are none of the 3", 3),
        ("no idea", None),
    ],
)
def test_nothing_there_in_words(text: str, count: int | None) -> None:
    assert stated_count(text) == count
