"""Numbers as answers write them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards.exact_numbers import exact_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("-7", -7),
        ("+.5", Fraction(1, 2)),
        ("2.50", Fraction(5, 2)),
        ("1e3", 1000),
        ("3/4", Fraction(3, 4)),
        ("- 3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac1 2", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        (r"-1 \frac12", Fraction(-3, 2)),
        (r"1.2\times10^{5}", 120_000),
        (r"-1.2 \cdot 10^5", -120_000),
        ("10^{-3}", Fraction(1, 1000)),
        ("-10^3", -1000),
        (r"\frac{1}{0}", None),
        ("1/0", None),
        ("11/2", Fraction(11, 2)),
        (r"\frac123", None),
        (r"\frac{x}{2}", None),
        ("1.2.3", None),
        ("1,2", None),
        ("10^{9999}", None),
        ("1e9999", None),
        ("9" * 5000, None),
        ("x", None),
        ("", None),
        (".", None),
    ],
)
def test_a_number_is_read_exactly(text: str, number: Fraction | None) -> None:
    assert exact_number(text) == number


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.33", False),
        ("1000000", "1000001", False),
        ("0.0000001", "0", False),
        ("0.0000001", "0.0000002", False),
        ("0.00000010", "0.0000001", True),
        ("0", "-0", True),
        ("10%", "0.1", True),
        ("10%", "10", True),
        ("10", r"10\%", True),
        ("10%", "10 percent", True),
        ("10%", r"10\text{ percent}", True),
        ("10%", "0.1%", False),
        ("0.1", "10", False),
        ("10", "0.1", False),
        ("75%", "3/4", True),
        ("x", "1", None),
        ("%", "1", None),
    ],
)
def test_numbers_are_compared_to_six_decimals(first: str, second: str, same: bool | None) -> None:
    assert same_number(first, second) is same
    assert same_number(second, first) is same


@given(st.fractions(max_denominator=1000))
def test_every_way_of_writing_a_fraction_is_the_same_number(number: Fraction) -> None:
    top, bottom = number.numerator, number.denominator
    sign = "-" if top < 0 else ""
    for text in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}"):
        assert exact_number(text) == number
    assert same_number(f"{top}/{bottom}", f"{top + 1}/{bottom}") is False


@given(st.text(alphabet=r"0123456789.+-/\fracdt{}^e%times10 cdot", max_size=30), st.text(max_size=10))
def test_reading_never_raises(first: str, second: str) -> None:
    assert same_number(first, second) in (True, False, None)
    assert same_number(first, first) in (True, None)
