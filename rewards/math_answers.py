r"""Mathematical answers as text: made canonical, and judged without a computer algebra system where that is enough.

Most answers in RL are plain numbers. Deciding those here takes microseconds; the rest goes to a worker process.
"""

import re

from .exact_numbers import same_number
from .extraction import extract_answer, last_boxed

_GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\}|\\[,!]|\\;)\d{3})+(?:\.\d*)?")
_GROUP_MARK = re.compile(r",|\{,\}|\\[,!;]")
_WRAPPERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|operatorname)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "max", "min", "gcd", "lcm", "mod"}
)
_SIZING = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_AS_LATEX = str.maketrans(
    {
        "−": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ",
    }
)
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_UNRAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def gold_answer(text: str) -> str | None:
    r"""The canonical answer in a reference: after the last `####`, else in the last `\boxed{...}`, else all of it."""
    if "####" in text:
        return canonical(text.rpartition("####")[2])
    if "\\boxed" in text:
        boxed = last_boxed(text)
        return None if boxed is None else canonical(boxed)
    return canonical(text)


def given_answer(text: str) -> str | None:
    """The canonical answer in what a policy said; None without one."""
    answer = extract_answer(text)
    return None if answer is None else canonical(answer)


def canonical(answer: str) -> str:
    r"""The answer without maths delimiters, currency signs, thousands separators, `\left`/`\right`, a final full stop.

    Thousands separators go only where the whole answer is one such number: in `(1,234)` the comma may separate.
    """
    answer = _SUPERSCRIPT.sub(lambda digits: f"^{{{digits[0].translate(_UNRAISED)}}}", answer.translate(_AS_LATEX))
    answer = answer.strip().removesuffix(".").strip()
    for opening, closing in _WRAPPERS:
        if len(answer) >= len(opening) + len(closing) and answer.startswith(opening) and answer.endswith(closing):
            answer = answer[len(opening) : -len(closing)].strip()
    answer = _SIZING.sub("", answer.replace(r"\$", "").replace("$", "").replace("**", "^"))
    answer = answer.replace(r"\varnothing", r"\emptyset").replace("∅", r"\emptyset")
    answer = answer.strip().removesuffix(".").strip()
    if _GROUPED.fullmatch(answer):
        answer = _GROUP_MARK.sub("", answer)
    return answer


def quick_verdict(gold: str, given: str) -> bool | None:
    """True or False where the text alone decides (the same text, two plain numbers, words); None where it does not."""
    if gold == given:
        return True
    same = same_number(gold, given)
    if same is None and is_words(gold):
        return _spoken(gold) == _spoken(given)
    return same


def is_words(gold: str) -> bool:
    """Whether a reference is words ("blue", "no solution"), which algebra would read as a product of letters."""
    if any(character.isdigit() for character in gold) or any(mark in gold for mark in "=<>+^_"):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", _TEXT_COMMAND.sub(r"\1", gold)))
    return any(word.lower() not in _FUNCTIONS for word in words)


def _spoken(answer: str) -> str:
    return " ".join(_TEXT_COMMAND.sub(r"\1", answer).casefold().split())
