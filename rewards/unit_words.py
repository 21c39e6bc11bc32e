"""What stands behind a number: units with powers and products (`km/h`, `square feet`), or what is counted."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from .units import Unit, han_units, unit_named

_POWERS = {"square": 2, "sq": 2, "平方": 2, "squared": 2, "cubic": 3, "cu": 3, "立方": 3, "cubed": 3}
_RAISED = {digit: power for power, digit in enumerate("¹²³⁴⁵⁶⁷⁸⁹", 1)}
_FILLERS = "the of in each total altogether left remaining more only all unit units"
_CLASSIFIERS = "个個只隻人条條张張把辆輛本名位头頭匹颗顆朵棵座台瓶杯根支枝次种種样架艘双雙对對件份道盒袋箱间間家步倍"
_FUNCTIONS = (
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arg abs log exp sqrt max min gcd lcm mod det dim"
    " deg lim inf sup floor ceil sgn sign ker span rank choose pmod bmod"
)
_HEDGES = (
    "or and not no nor but if when where than least most up maybe perhaps possibly probably approximately roughly about"
    " around almost nearly wrong incorrect never sure guess think unless except instead is are was were be to from base"
    " mod percent percentage infinity undefined plus minus times divided half dozen am pm"
)
_IGNORED, _NO_WORD, _NO_NOUN = (frozenset(words.split()) for words in (_FILLERS, _FUNCTIONS, f"{_FUNCTIONS} {_HEDGES}"))
_CHINESE_HEDGE = re.compile("或|不|左右|以上|以下|至少|最多|大约|约|错|吗|和|与|加|减|多|半|点|%|百分")
_IN_ALL = re.compile(r"\bin (?:total|all)\b")
_VOWEL = re.compile("[aeiouy]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Counted:
    """What a number is a number of."""

    names: frozenset[str]
    """Its words in the singular, a unit under one name only; empty where nothing is said."""
    unit: Unit | None
    """What all of the words measure together; None where a word is no unit."""


@cache
def _token() -> re.Pattern[str]:
    return re.compile(
        r"[ -]*(?:(?P<per>/|per\b|每)|(?P<times>[*·])|(?P<power>(?:square|cubic|sq|cu)(?![A-Za-z])\.?|平方|立方)"
        r"|(?P<raised>⁻?[¹²³⁴⁵⁶⁷⁸⁹]|(?:squared|cubed)(?![A-Za-z]))"
        rf"|(?P<han>{'|'.join(han_units())})|(?P<word>°[CF]?|[€£¥₹₩$¢℃℉]|[A-Za-zµμΩ'’]+\.?)|(?P<chinese>[\u4e00-\u9fff]))"
    )


def counted(tail: str, *, any_word: bool) -> Counted | None:
    """What the text behind a number says is counted or measured; None where it is something else: algebra, a hedge.

    Where not `any_word`, unknown words must look like words: 2 xyz is a product.
    """
    factor, exponents, names = Fraction(1), dict[str, int](), set[str]()
    sign = power = 1
    is_known, chinese, last = True, "", None
    position = 0
    tail = _IN_ALL.sub("", tail).strip()
    while position < len(tail):
        match = _token().match(tail, position)
        if match is None:
            return None
        position = match.end()
        if match["per"] or (names and match["word"] in ("a", "an")):
            sign = -1
        elif match["power"]:
            power = _POWERS[match["power"].removesuffix(".")]
        elif match["raised"] and last is not None:
            extra = _exponent(match["raised"]) - 1  # the unit itself is counted already
            base, base_sign = last
            factor *= base.factor ** (extra * base_sign)
            _add(exponents, base, extra * base_sign)
        elif word := match["han"] or match["word"]:
            if word in _IGNORED and not (word == "in" and not names):  # 5 in are inches, 5 A amperes
                continue
            unit = None if chinese else unit_named(word)
            if unit is None:
                if match["word"] is None:
                    chinese += word
                elif word.casefold().removesuffix(".") in _NO_NOUN or not (any_word or is_word(word)):
                    return None
                else:
                    names.add(_singular(word.casefold().removesuffix(".")))
                is_known, last = False, None
                continue
            names.add(f"{unit.factor} {unit.dimension}")
            factor *= unit.factor ** (power * sign)
            _add(exponents, unit, power * sign)
            last, power = (unit, sign), 1
        elif match["chinese"]:
            chinese += match["chinese"]
    if chinese:
        if _CHINESE_HEDGE.search(chinese):
            return None
        if noun := chinese.lstrip(_CLASSIFIERS):
            names.add(noun)
            is_known = False
    dimension = tuple(sorted((base, exponent) for base, exponent in exponents.items() if exponent))
    return Counted(frozenset(names), Unit(factor, dimension) if is_known else None)


def is_word(text: str) -> bool:
    """Whether letters are a word of English and not a product of variables, such as abc, or the name of a function."""
    text = text.casefold().rstrip(".")
    return len(text) >= 3 and bool(_VOWEL.search(text)) and text not in _LETTERS and text not in _NO_WORD


def _add(exponents: dict[str, int], unit: Unit, times: int) -> None:
    for base, exponent in unit.dimension:
        exponents[base] = exponents.get(base, 0) + exponent * times


def _exponent(raised: str) -> int:
    if raised in _POWERS:
        return _POWERS[raised]
    return -_RAISED[raised[1]] if raised[0] == "⁻" else _RAISED[raised]


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word
