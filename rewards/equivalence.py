"""Are two mathematical answers equal? math-verify's verdict. This module runs inside a worker process alone.

math-verify's own time limits are switched off: they raise SIGALRM, which works on the main thread alone and cannot stop
a computation inside C. The worker's wall-clock deadline takes their place.
"""

import logging
from typing import Any, Literal

from math_verify import LatexExtractionConfig, parse, verify

from .math_answers import is_inequality

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
    if _equal(wanted, got):
        return "equal"
    # math-verify takes an interval for an inequality's solution, but no inequality for an interval
    turned = is_inequality(given) and not is_inequality(gold) and _equal(got, wanted)
    return "equal" if turned else "different"


def _equal(gold: list[Any], given: list[Any]) -> bool:
    return verify(gold, given, timeout_seconds=None, raise_on_error=True)


def _expressions(answer: str) -> list[Any]:
    # outside a box (or dollars) a bare x^2+1 parses to nothing; inside one, one answer cannot merge with another
    return parse(
        rf"\boxed{{{answer}}}",
        extraction_config=_BOXED_ONLY,
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  documented, though annotated as int
    )


compare("x+1", "1+x")  # the first parse builds grammars for a second, which no answer's deadline should pay
