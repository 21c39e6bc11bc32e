"""Are two mathematical answers equal? math-verify's verdict. This module runs inside a worker process alone.

math-verify's own time limits are switched off: they raise SIGALRM, which works on the main thread alone and cannot stop
a computation inside C. The worker's wall-clock deadline takes their place.
"""

import logging
from math import isfinite
from typing import Any, Literal

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Symbol

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limits are off

_BOXED_ONLY = [LatexExtractionConfig(boxed_match_priority=0)]


def is_readable(answer: str) -> bool:
    """Whether math-verify makes an expression of the answer."""
    return bool(_expressions(answer))


def compare(gold: str, given: str) -> Literal["equal", "different", "unreadable gold"]:
    """The verdict on two canonical answers. The order of the arguments matters to math-verify: gold first."""
    wanted = _expressions(gold)
    if not wanted:
        return "unreadable gold"
    got = _expressions(given)
    if "=" in given and _contradicts_itself(given):
        return "different"
    if "%" not in gold + given and _surely_different(wanted, got):
        return "different"
    # an inequality may stand for its interval, as an interval always may for an inequality
    equal = verify(wanted, got, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return "equal" if equal else "different"


def _surely_different(wanted: list[Any], got: list[Any]) -> bool:
    """Whether two expressions have different values at a point, which is quick to see and needs no simplification.

    Positive numbers stand for the variables: identities of roots and logarithms hold there. A difference that
    math-verify's rounding might forgive says nothing, nor does a value that is not finite and real.
    """
    if not (wanted and got and isinstance(wanted[0], Expr) and isinstance(got[0], Expr)):
        return False
    if isinstance(wanted[0], Symbol) or isinstance(got[0], Symbol):
        return False  # a word, which math-verify compares with a product of letters
    names = sorted({str(symbol) for value in (wanted[0], got[0]) for symbol in value.free_symbols})
    point = {name: 0.7 + 0.37 * place for place, name in enumerate(names)}
    first, second = (_value(expression, point) for expression in (wanted[0], got[0]))
    if first is None or second is None:
        return False
    return abs(first - second) > 1e-4 * (1 + abs(first) + abs(second))


def _contradicts_itself(answer: str) -> bool:
    """Whether one side of `15 = 12` is another number than the last one, by more than they are rounded."""
    sides = answer.split("=")
    if any(mark in answer for mark in "<>,") or not all(map(str.strip, sides)):
        return False
    found = [_expressions(side) for side in sides]
    values = [_value(side[0], {}) if side and isinstance(side[0], Expr) else None for side in found]
    last = values[-1]
    if last is None:
        return False
    return any(value is not None and abs(value - last) > 0.01 * max(abs(value), abs(last)) for value in values)


def _value(expression: Expr, point: dict[str, float]) -> float | None:
    try:
        value = expression.evalf(15, subs={symbol: point[str(symbol)] for symbol in expression.free_symbols})
        number = float(value)
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, KeyError):
        return None  # complex, symbolic, or a kind that has no value
    return number if isfinite(number) else None


def _expressions(answer: str) -> list[Any]:
    # outside a box (or dollars) a bare x^2+1 parses to nothing; inside one, one answer cannot merge with another
    return parse(
        rf"\boxed{{{answer}}}",
        extraction_config=_BOXED_ONLY,
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  documented, though annotated as int
    )


_TYPICAL = (
    ("x+1", "1+x"),
    (r"\frac{2\sqrt{3}}{5}", r"2\sqrt{3}/5"),
    ("x^2+3x+2", "(x+1)(x+2)"),
    ("[1,2)", r"1 \le x < 2"),
    (r"\{1,2,x\}", "1,2,x"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2"),
    (r"\ln 4", r"2\ln 2"),
    (r"\begin{pmatrix}1&2\\3&x\end{pmatrix}", r"\begin{pmatrix}1&2\\3&x\end{pmatrix}"),
)
for _gold, _given in _TYPICAL:  # the parser learns as it reads: no answer's deadline should pay, nor a new child's
    compare(_gold, _given)
