r"""Mathematical answers as text: made canonical, and judged without a computer algebra system where that is enough.

Most answers in RL are plain numbers. Deciding those here takes microseconds; the rest goes to a worker process.
"""

import re

from .answer_lines import without_emphasis
from .exact_numbers import same_number, ungrouped
from .extraction import extract_answer, last_boxed
from .math_notation import same_notation
from .math_rewrites import undecorated
from .unit_words import is_word

_WRAPPERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|operatorname)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_PROSE = re.compile(r"(?<![\w\\{])(?:[A-Za-z]{3,}|so|is|of|it)(?![\w}])")
_NO_PROSE = frozenset({"and", "infinity", "alpha", "beta", "gamma", "theta", "lambda"})
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "max", "min", "gcd", "lcm", "mod"}
)
_INLINE = re.compile(r"(?<!\\)\\[()]")
_STARS = re.compile(r"^\*+|\*+$")
_SIZING = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_AS_LATEX = str.maketrans(
    {
        "−": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "±": r"\pm ",
        "∪": r"\cup ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "，": ",",
        "（": "(",
        "）": ")",
        "：": ":",
        "％": "%",
        "＝": "=",
    }
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
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
    r"""The answer without maths delimiters, emphasis, thousands separators, `\left`/`\right`, a final full stop.

    Thousands separators go only where the whole answer is one such number: in `(1,234)` the comma may separate.
    A dollar sign that delimits nothing is a currency, and becomes `\$`.
    """
    answer = _SUPERSCRIPT.sub(lambda digits: f"^{{{digits[0].translate(_UNRAISED)}}}", answer.translate(_AS_LATEX))
    answer = _stopped(answer)
    answer = _STARS.sub("", without_emphasis(answer)).strip()
    for opening, closing in _WRAPPERS:
        if len(answer) >= len(opening) + len(closing) and answer.startswith(opening) and answer.endswith(closing):
            if opening == "$" and answer.endswith(r"\$"):
                continue
            answer = answer[len(opening) : -len(closing)].strip()
    answer = _SIZING.sub("", _INLINE.sub("", _dollars(answer)).replace("**", "^"))
    answer = answer.replace(r"\varnothing", r"\emptyset").replace("∅", r"\emptyset")
    return ungrouped(undecorated(_stopped(answer)))


def _dollars(answer: str) -> str:
    plain = answer.replace(r"\$", "")
    if "\\$" not in answer and plain.count("$") == 1 and any(map(str.isdigit, plain)):
        return answer.replace("$", r"\$")
    return re.sub(r"(?<!\\)\$", "", answer)


def _stopped(answer: str) -> str:
    return answer.strip().removesuffix(".").removesuffix("。").strip()


def quick_verdict(gold: str, given: str) -> bool | None:
    """True or False where the text alone decides (the same text, two plain numbers, words); None where it does not."""
    if gold == given:
        return True
    same = same_number(gold, given)
    if same is None:
        same = same_notation(gold, given)
    if same is None and is_words(gold):
        return _spoken(gold) == _spoken(given)
    return same


def is_words(gold: str) -> bool:
    """Whether a reference is words ("blue", "no solution"), which algebra would read as a product of letters."""
    if any(character.isdigit() for character in gold) or any(mark in gold for mark in "=<>+^_"):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", _TEXT_COMMAND.sub(r"\1", gold)))
    return any(word.lower() not in _FUNCTIONS for word in words)


def is_prose(gold: str) -> bool:
    """Whether a reference has numbers among bare words ("4 or so"), which algebra reads as a product of letters."""
    return any(character.isdigit() for character in gold) and any(
        len(word) == 2 or (is_word(word) and word.casefold() not in _NO_PROSE)
        for word in _PROSE.findall(_TEXT_COMMAND.sub(" ", gold))
    )


def _spoken(answer: str) -> str:
    return " ".join(_TEXT_COMMAND.sub(r"\1", answer).casefold().split())
