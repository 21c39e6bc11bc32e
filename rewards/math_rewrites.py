r"""Notation that math-verify cannot read, rewritten: `0.\overline{3}`, `3 \pm \sqrt 5`, `x<1 \text{ or } x>2`."""

import re

from .math_shapes import parts, shape

_REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,20})\s*\}|(\d))(?!\d)")
_DECORATION = re.compile(r"\\(?:underline|displaystyle|textstyle|bm|boldsymbol)(?![A-Za-z])\s*")
_NUMBER_IN_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|rm)\s*\{\s*([+-]?[\d.,/]+)\s*\}")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MINUS_PLUS = re.compile(r"\\mp(?![A-Za-z])")
_OR = re.compile(r"\s*(?:\\(?:text|textrm|mathrm|mbox)\s*\{\s*or\s*\}|\bor\b|\\lor\b|\\vee\b|或)\s*(?:\\quad)?\s*")
_RELATION = re.compile(r"(<=|>=|<|>|≤|≥|\\leq?slant(?![A-Za-z])|\\geq?slant(?![A-Za-z])|\\[lg](?:eq?|t)(?![A-Za-z]))")
_ONE_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu)")


def undecorated(answer: str) -> str:
    r"""The answer without `\underline` and the like, repeating decimals as fractions, no braces around it all."""
    answer = _NUMBER_IN_TEXT.sub(r"\1", _DECORATION.sub("", answer)).strip()
    while answer.startswith("{") and _closes_last(answer):
        answer = answer[1:-1].strip()
    return _REPEATING.sub(_as_fraction, answer)


def spread(answer: str) -> str:
    r"""Both values of an answer with one `\pm`, as a list: `2 \pm 1` becomes `2+1,2-1`. Others as they are."""
    if len(_PLUS_MINUS.findall(answer)) != 1:
        return answer
    if shape(answer) == "set" or answer.startswith(r"\{"):
        inner = answer.removeprefix(r"\{").removesuffix(r"\}")
        return rf"\{{{_both(inner)}\}}"
    if shape(answer) == "list":
        return ",".join(map(spread, parts(answer)))
    return _both(answer)


def as_union(answer: str) -> str | None:
    r"""`x<1 \text{ or } 2 \le x` as `(-\infty,1)\cup[2,\infty)`; None for what is no choice of inequalities."""
    choices = _OR.split(answer)
    if len(choices) < 2:
        return None
    found = [_interval(choice.strip().strip(",;").strip()) for choice in choices]
    names = {name for name, _ in filter(None, found)}
    if None in found or len(names) != 1:
        return None
    return r"\cup".join(interval for _, interval in filter(None, found))


def _both(answer: str) -> str:
    upper = _MINUS_PLUS.sub(r"-", _PLUS_MINUS.sub("+", answer))
    lower = _MINUS_PLUS.sub(r"+", _PLUS_MINUS.sub("-", answer))
    return f"{upper.strip().removeprefix('+')},{lower.strip()}"


def _interval(inequality: str) -> tuple[str, str] | None:
    """The variable and the interval of `x<2`, `2>x` or `1<x<2`."""
    sides = [side.strip() for side in _RELATION.split(inequality)]
    relations = [_plain_relation(sign) for sign in sides[1::2]]
    values = sides[0::2]
    if not all(values) or len(values) not in (2, 3):
        return None
    if len(values) == 3:
        if not _ONE_VARIABLE.fullmatch(values[1]) or relations[0][0] != relations[1][0]:
            return None
        low, high = (0, 2) if relations[0][0] == "<" else (2, 0)
        first, last = (relations[0], relations[1]) if low == 0 else (relations[1], relations[0])
        opening, closing = ("[" if "=" in first else "("), ("]" if "=" in last else ")")
        return values[1], f"{opening}{values[low]},{values[high]}{closing}"
    relation = relations[0]
    if _ONE_VARIABLE.fullmatch(values[0]):
        name, bound, is_below = values[0], values[1], relation[0] == "<"
    elif _ONE_VARIABLE.fullmatch(values[1]):
        name, bound, is_below = values[1], values[0], relation[0] == ">"
    else:
        return None
    if is_below:
        return name, rf"(-\infty,{bound}{']' if '=' in relation else ')'}"
    return name, rf"{'[' if '=' in relation else '('}{bound},\infty)"


def _plain_relation(sign: str) -> str:
    direction = "<" if sign[0] in "<≤" or sign.startswith(r"\l") else ">"
    return direction if sign in ("<", ">", r"\lt", r"\gt") else direction + "="


def _as_fraction(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    below = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{above}}}{{{below}}}"


def _closes_last(answer: str) -> bool:
    """Whether the brace that opens the answer is closed by its last character."""
    depth = 0
    for position, character in enumerate(answer):
        if character in "{}" and answer[position - 1 : position] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position == len(answer) - 1
    return False
