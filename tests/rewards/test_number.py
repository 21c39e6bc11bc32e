"""Numbers and counts: what states one, and what a hedge, a unit or a digit in something else must not earn."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, CountReward, NumberReward
from posttrain.rewards.numerals import stated_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("42.", 42),
        ("-5", -5),
        ("−5", -5),
        ("- 5", -5),
        ("+5", 5),
        (".5", Fraction(1, 2)),
        ("1,234.50", Fraction(2469, 2)),
        ("1 234 567", 1_234_567),
        ("1\u202f234", 1234),
        ("1'234", 1234),
        (r"1{,}234", 1234),
        (r"1\,234", 1234),
        ("$1,234", 1234),
        ("-$5", -5),
        ("US$5", 5),
        ("5 €", 5),
        ("$5$", 5),
        ("1e3", 1000),
        ("2.5E-1", Fraction(1, 4)),
        ("7/2", Fraction(7, 2)),
        (r"\frac{7}{2}", Fraction(7, 2)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        ("5 cm", 5),
        ("5cm²", 5),
        ("5 m^2", 5),
        (r"5\text{ cm}", 5),
        (r"90^\circ", 90),
        ("90°", 90),
        ("x = -3", -3),
        ("2 + 3 = 5", 5),
        ("It is **5** cats", 5),
        ("three (3) cats", 3),
        ("twenty-one", 21),
        ("minus five", -5),
        ("3 million", 3_000_000),
        ("3万", 30_000),
        ("٤٢", 42),
        ("４２", 42),
        ("\u200f42\u200e", 42),
        ("共3只", 3),
        ("三", 3),
        ("十二只", 12),
        ("二十一", 21),
        ("图中一共有三只猫。", 3),
    ],
)
def test_numbers_are_read(text: str, number: Fraction | int) -> None:
    assert stated_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "none",
            "NaN",
            "inf",
            "cats",
            "A4",
            "v2",
            "x2",
            "3:15",
            "1,2345",
            "1.234.567",
            "3/4/2020",
            "5/0",
            "1e9999",
        ),
        *("3 or 4", "3, 4", "3-4", "3–4", "2 to 3", "3 cats and 4 dogs", "three or four", "3/4 or 4/5", "5 minus 3"),
        *("not 3", "it isn't 3", "at least 3", "more than 3", "up to 3", "不是3", "三四只", "3 ± 1"),
        *("5!", "5^2", "10**3", r"5\pi", "5π", r"3\frac{1}{2}", "3½", "½", "5²", "Ⅻ", "①", "5k", "5e1234", "{5}", "5+"),
        *("two dozen", "5 and a half", "half of 5", "三百三只", "三只半"),
        *("1" * 1001, "9" * 999 + "/0"),
    ],
)
def test_hedges_several_numbers_and_expressions_state_none(text: str) -> None:
    assert stated_number(text) is None


def test_percent_is_a_fraction_or_the_same_number_as_asked() -> None:
    assert stated_number("5%") == stated_number("5 percent") == stated_number(r"5\%") == Fraction(1, 20)
    assert stated_number("5%", percent="ignore") == stated_number("5", percent="ignore") == 5


def test_decimal_commas() -> None:
    assert stated_number("1.234,5", decimal_mark=",") == Fraction(2469, 2)
    assert stated_number("1,5", decimal_mark=",") == Fraction(3, 2)
    assert stated_number("1,5") is None


@given(st.fractions(max_denominator=10**6))
def test_any_fraction_is_read_back(number: Fraction) -> None:
    assert stated_number(str(number)) == number


@given(st.integers(-(10**30), 10**30), st.sampled_from([",", " ", "_", "'", "\u2009"]))
def test_grouped_thousands_are_read_back(number: int, mark: str) -> None:
    assert stated_number(f"{number:,}".replace(",", mark)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_is_a_reference_that_earns_its_own_reward(number: float) -> None:
    reward, reference = NumberReward(), {"answer": number}
    assert reward(Completion(text=reward.perfect_answer(reference)), reference).value == 1.0


hostile = st.text(alphabet="0123456789.,'/-+eE%$€ \\{}()=^!½²٣三十百or\u200f\ud800", max_size=60) | st.text(max_size=60)


@given(hostile)
def test_reading_numbers_never_raises(text: str) -> None:
    for decimal_mark in (".", ","):
        number = stated_number(text, decimal_mark=decimal_mark)
        assert number is None or isinstance(number, Fraction)


@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from([" or ", ", ", " and ", "-", "/", ": ", "\n"]))
def test_two_numbers_never_pass_for_either(first: int, second: int, between: str) -> None:
    stated = stated_number(f"{first}{between}{second}")
    if between == "/":
        assert stated == (Fraction(first, second) if second else None)
    else:
        assert first == second or stated not in (first, second)


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        (42, "The answer is 42.", 1),
        (42, "The answer is 41.\nNo: the answer is 42.", 1),
        (42, "<think>41</think>42", 1),
        (42, "<think>42", 0),
        (42, "42 appears in\nprose without a mark", 0),
        (42, "<answer>42 or 43</answer>", 0),
        (42, r"\boxed{42} \boxed{43}", 0),
        (42, "", 0),
        ("1,000", "1000", 1),
        ("10%", "0.1", 1),
        ("10%", "10", 0),
        (0.3, "0.3", 1),
        (0.1, "1/10", 1),
        (3, "3.0000001", 0),
    ],
)
def test_number(answer: object, text: str, value: int) -> None:
    assert NumberReward()(Completion(text=text), {"answer": answer}).value == value


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({"absolute_tolerance": 0.3}, "10.3", 1),
        ({"absolute_tolerance": 0.3}, "9.7", 1),
        ({"absolute_tolerance": 0.3}, "10.300001", 0),
        ({"relative_tolerance": 0.05}, "10.5", 1),
        ({"relative_tolerance": 0.05}, "9.4999", 0),
        ({"relative_tolerance": 0.05, "absolute_tolerance": 1.0}, "11", 1),
        ({"percent": "ignore"}, "10%", 1),
        ({"decimal_mark": ","}, "10,0", 1),
    ],
)
def test_tolerances_are_exact(options: dict, text: str, value: int) -> None:
    assert NumberReward(**options)(Completion(text=text), {"answer": 10}).value == value


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="relative_tolerance"):
        NumberReward(relative_tolerance=tolerance)


@pytest.mark.parametrize("answer", [None, "", "three or four", float("nan"), True, [], "1" * 2000])
def test_references_that_state_no_number_are_errors_of_the_data(answer: object) -> None:
    for reward in (NumberReward(), CountReward()):
        with pytest.raises(BadReferenceError):
            reward.perfect_answer({"answer": answer})


@pytest.mark.parametrize(
    ("text", "exact", "partial"),
    [
        ("4", 1, 1),
        ("4.0", 1, 1),
        ("There are four cups.", 1, 1),
        ("四个", 1, 1),
        ("3", 0, 0.75),
        ("five", 0, 0.75),
        ("8", 0, 0),
        ("100", 0, 0),
        ("0", 0, 0),
        ("none", 0, 0),
        ("3.9", 0, 0),
        ("-4", 0, 0),
        ("4 or 5", 0, 0),
        ("<answer>3</answer> <answer>4</answer>", 1, 1),
    ],
)
def test_count(text: str, exact: float, partial: float) -> None:
    completion, reference = Completion(text=text), {"answer": "4"}
    assert CountReward()(completion, reference).value == exact
    assert CountReward(partial=True)(completion, reference).value == partial


def test_nothing_there_is_a_count() -> None:
    for text in ("0", "zero", "none", "None.", "没有"):
        assert CountReward(partial=True)(Completion(text=text), {"answer": 0}).value == 1.0
    assert CountReward(partial=True)(Completion(text="1"), {"answer": 0}).value == 0.0


@pytest.mark.parametrize("answer", [-1, 2.5, "1/2"])
def test_counts_are_whole_and_not_below_zero(answer: object) -> None:
    with pytest.raises(BadReferenceError, match="whole number"):
        CountReward()(Completion(text="1"), {"answer": answer})
