"""Units in answers."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards.quantities import quantity, without_units


@pytest.mark.parametrize(
    ("text", "number", "factor", "dimension"),
    [
        ("3 cm", "3", Fraction(1, 100), (("m", 1),)),
        (r"3\text{ cm}", "3", Fraction(1, 100), (("m", 1),)),
        (r"3\,\mathrm{cm}", "3", Fraction(1, 100), (("m", 1),)),
        ("3cm", "3", Fraction(1, 100), (("m", 1),)),
        (r"\frac{3}{4} km", r"\frac{3}{4}", 1000, (("m", 1),)),
        (r"12\text{ m}^2", "12", 1, (("m", 2),)),
        ("12 m^{2}", "12", 1, (("m", 2),)),
        ("12 cm³", "12", Fraction(1, 10**6), (("m", 3),)),
        ("12 square feet", "12", Fraction(3048, 10000) ** 2, (("m", 2),)),
        ("36 km/h", "36", Fraction(1000, 3600), (("m", 1), ("s", -1))),
        ("36 kilometers per hour", "36", Fraction(1000, 3600), (("m", 1), ("s", -1))),
        (r"9.8\text{ m}/\text{s}^2", "9.8", 1, (("m", 1), ("s", -2))),
        ("18 dollars", "18", 1, (("dollar", 1),)),
        ("50 cents", "50", Fraction(1, 100), (("dollar", 1),)),
    ],
)
def test_an_answer_is_taken_apart(text: str, number: str, factor: Fraction, dimension: tuple) -> None:
    found = quantity(text)
    assert found is not None
    assert (found.number, found.factor, found.dimension) == (number, factor, dimension)


@pytest.mark.parametrize("text", ["3", "5m", "x", "3 or so", "2 xyz", "m", "2x", "sin", "", "3 m + 2", "{2 m}", "cm 3"])
def test_what_is_no_number_with_a_known_unit_is_left_alone(text: str) -> None:
    assert quantity(text) is None
    assert without_units(text, text) == (text, text)


@pytest.mark.parametrize(
    ("gold", "given", "compared"),
    [
        ("3 cm", "3", ("3", "3")),
        ("3", "3 cm", ("3", "3")),
        ("3 cm", "3 cm", ("3", "3")),
        ("3 m", "300 cm", ("3", r"(300) \cdot \frac{1}{100}")),
        ("3 cm", "3 s", None),
        ("3 m", "3 m^2", None),
        ("3 dollars", "3 euros", None),
    ],
)
def test_units_are_converted_or_differ(gold: str, given: str, compared: tuple[str, str] | None) -> None:
    assert without_units(gold, given) == compared


@given(st.text(alphabet="0123456789cmkgh/*^{}() ²³persquare\\text", max_size=60))
def test_taking_apart_never_raises(text: str) -> None:
    quantity(text)


@pytest.mark.parametrize("piece", ["a per ", "aper", "cm/", "5 ", "{", "m^", "} a"])
def test_a_hostile_answer_takes_little_time(piece: str) -> None:
    started = time.process_time()
    quantity("5 " + piece * (1000 // len(piece)) + "!")
    quantity("5 " + piece * (1000 // len(piece)))
    assert time.process_time() - started < 1.0
