"""Wrong answers made from right ones: `posttrain check` proves that they do not earn full marks."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from .batching import one_line
from .extraction import last_boxed, last_tagged
from .score import BadReferenceError, Completion, OffersWrongAnswers, Reward

_NUMBER = re.compile(r"\d+")
_BOX = re.compile(r"\[\s*(-?\d+(?:\.\d+)?)" + r"\s*,\s*(-?\d+(?:\.\d+)?)" * 3 + r"\s*\]")
_LETTER = re.compile(r"[A-Y]")
_WORDS = re.compile(r"[^\d\\{}\[\]<>()$^_=]+")

NONSENSE = "<answer>qzxwv</answer>"
"""An answer to nothing."""


def corrupted(perfect: str) -> Iterator[tuple[str, str]]:
    """(what was done to it, wrong answer) of a right answer as its reward writes it.

    Only changes that make the answer wrong for every verifier, whatever its tolerance: all numbers get more digits, a
    single option letter becomes the next, boxes move by their own size, a word of plain text has two letters swapped.
    """
    content = _content(perfect)
    if "```" in perfect and "```json" not in perfect:  # a program with other numbers, or names, may still be right
        yield "nonsense", NONSENSE
        return
    if _BOX.search(perfect):
        yield "its boxes moved", _BOX.sub(_moved, perfect)
        return
    if _LETTER.fullmatch(content):
        yield "the next option", perfect.replace(content, chr(ord(content) + 1))
    elif _NUMBER.search(content):
        place = count()
        # not the same for all: 3/3 is 37/37, and 17/4 is within a tolerance of 177/43
        changed = _NUMBER.sub(lambda match: match[0] + ("739", "1")[next(place) % 2], content)
        yield "more digits in its numbers", perfect.replace(content, changed)
    elif _WORDS.fullmatch(content) and (swapped := _letters_swapped(content)):
        yield "two letters swapped", perfect.replace(content, swapped)
    yield "nonsense", NONSENSE


def reference_problem(reward: Reward, full_score: float, reference: Mapping[str, Any]) -> str | None:
    """What is wrong with a reference, in a sentence; None where its own perfect answer earns its full score."""
    try:
        perfect = reward.perfect_answer(reference)
        if perfect is None:
            return None
        score = reward(Completion(text=perfect), reference)
    except BadReferenceError as error:
        return str(error)
    except Exception as error:  # a reward of the user's own: `check` names every row and goes on
        return f"it raises {one_line(error)}"
    if score.value is not None and math.isclose(score.value, full_score, abs_tol=1e-9):
        return None
    earned = f"unscored ({score.reason})" if score.value is None else f"{score.value:g}"
    return f"its own perfect answer {perfect!r:.80} earns {earned}, not {full_score:g}"


def too_generous(
    reward: Reward, full_score: float, reference: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """A sentence for each wrong answer that earns full marks; empty where the reference determines no answer.

    Wrong answers are those that the reward offers, or where it offers none, `corrupted` ones and the right ones of
    other rows. An answer that the reference names is not wrong, nor is one of another row whose reference takes this
    row's in turn.
    """
    if full_score <= 0 or reference_problem(reward, full_score, reference) is not None:
        return []  # a penalty, or a row that has been named already
    perfect = reward.perfect_answer(reference)
    if perfect is None:
        return []
    if isinstance(reward, OffersWrongAnswers):
        wrong = [("the reward itself says so", text) for text in reward.wrong_answers(reference)]
    else:
        foreign = _foreign(reward, full_score, perfect, others)
        wrong = [*corrupted(perfect), *(("right in another row", text) for text in foreign)]
    accepted = {_plain(perfect), *(_plain(text) for text in _texts(reference))}
    return [
        f"the wrong answer {text!r:.80} ({how}) earns full marks; right is {perfect!r:.80}"
        for how, text in wrong
        if _plain(text) not in accepted and _earns_full(reward, full_score, text, reference)
    ]


def _foreign(reward: Reward, full_score: float, perfect: str, others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for other in others:
        if reference_problem(reward, full_score, other) is None and not _earns_full(reward, full_score, perfect, other):
            text = reward.perfect_answer(other)
            if text is not None:
                yield text


def _earns_full(reward: Reward, full_score: float, text: str, reference: Mapping[str, Any]) -> bool:
    score = reward(Completion(text=text), reference)
    return score.value is not None and score.value >= full_score - 1e-9


def _content(perfect: str) -> str:
    tagged = last_tagged(perfect)
    inner = perfect if tagged is None else tagged
    boxed = last_boxed(inner)
    return (inner if boxed is None else boxed).strip()


def _plain(text: str) -> str:
    return " ".join(_content(text).casefold().split())


def _texts(value: Any) -> Iterator[str]:
    """Every text and number of a reference, however nested."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str | int | float):
        yield str(value)


def _moved(match: re.Match[str]) -> str:
    """The box beside itself where 0-1000 has room, else its upper left hundredth: its IoU with itself is below 0.05."""
    x1, y1, x2, y2 = map(float, match.groups())
    width, height = x2 - x1, y2 - y1
    if x2 + width <= 1000:
        box = (x2, y1, x2 + width, y2)
    elif x1 >= width:
        box = (x1 - width, y1, x1, y2)
    else:
        box = (x1, y1, x1 + width / 10, y1 + height / 10)
    return json.dumps([round(side, 2) for side in box])


def _letters_swapped(content: str) -> str | None:
    """Two different letters side by side in the longest word change places; None where no word has four letters."""
    longest = max(re.findall(r"[^\W\d_]+", content), key=len, default="")
    if len(longest) < 4:
        return None
    for place in range(1, len(longest) - 1):
        first, second = longest[place], longest[place + 1]
        if first.casefold() != second.casefold():
            return content.replace(longest, longest[:place] + second + first + longest[place + 2 :], 1)
    return None
