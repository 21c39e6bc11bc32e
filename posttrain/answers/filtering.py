"""Which of the answers to one prompt are kept, and why each of the others is not."""

import hashlib
import math
from collections.abc import Sequence
from enum import StrEnum

from posttrain.data.marks import IMAGE_MARK, RESERVED, VIDEO_MARK
from posttrain.records import Status, Trajectory
from posttrain.rewards import Score
from posttrain.rollout.episode import TOKEN_LIMIT
from posttrain.teachers.answer import Answer

_OPEN, _CLOSE = "<think>", "</think>"
TOLERANCE = 1e-9
"""Weighted sums round: 0.7 + 0.2 + 0.1 is less than 1, and a perfect answer must reach a min_reward of 1."""


class Fate(StrEnum):
    """What became of an answer."""

    KEPT = "kept"
    UNFINISHED = "unfinished"
    """The token limit cut it off."""
    CUT_SHORT = "cut_short"
    """Another limit of its episode cut it short: turns, images, or the length of all that was read and said."""
    BROKEN = "broken"
    """Its environment failed, or the program that played in it."""
    EMPTY = "empty"
    """It says nothing, or nothing after its thoughts."""
    MARKUP = "markup"
    """It holds a special token of the chat template or an image mark: no chat template could render it again."""
    THOUGHTS = "thoughts"
    """It thinks where it was not to, does not where it was to, or its thoughts have no beginning or no end."""
    DUPLICATE = "duplicate"
    """An earlier answer says the same, but for white space around it."""
    UNSCORED = "unscored"
    BELOW = "below_min_reward"
    SURPLUS = "surplus"
    """Good enough, but `keep` others rank before it."""


def filter_answers(
    answers: Sequence[Answer],
    scores: Sequence[Score | None] | None = None,
    *,
    thinking: bool | None = None,
    min_reward: float | None = None,
    keep: int | None = None,
    seed: int = 0,
) -> list[Fate]:
    """The fate of each answer to one prompt, in their order.

    scores: one for each answer, None for one that nobody scored; only sound answers need one (see `faults`).
    thinking: what was asked for; None leaves it to the answer, which must then think wholly or not at all.
    min_reward: keeps answers that earn at least this; an unscored one is never kept then.
    keep: keeps so many, the best first. Among equals the seed and the text decide, so that the order in which the
    answers came changes nothing.
    """
    if scores is None:
        scores = [None] * len(answers)
    if len(scores) != len(answers):
        raise ValueError(f"got {len(scores)} scores for {len(answers)} answers; give one for each, or None")
    values = [None if score is None else score.value for score in scores]
    fates = [fault or Fate.KEPT for fault in faults(answers, thinking=thinking)]
    for place, value in enumerate(values):
        if fates[place] is Fate.KEPT and min_reward is not None:
            if value is None:
                fates[place] = Fate.UNSCORED
            elif value < min_reward - TOLERANCE:
                fates[place] = Fate.BELOW
    if keep is not None:
        left = [place for place, fate in enumerate(fates) if fate is Fate.KEPT]
        left.sort(key=lambda i: (-math.inf if values[i] is None else values[i], _lot(seed, answers[i])), reverse=True)
        for place in left[keep:]:
            fates[place] = Fate.SURPLUS
    return fates


def faults(answers: Sequence[Answer], *, thinking: bool | None = None) -> list[Fate | None]:
    """What is wrong with each answer to one prompt, whatever it would earn; None for a sound one."""
    said: set[str] = set()
    found: list[Fate | None] = []
    for answer in answers:
        fault = _fault(answer, thinking)
        if fault is None:
            text = answer.text.strip()
            fault = Fate.DUPLICATE if text in said else None
            said.add(text)
        found.append(fault)
    return found


def _fault(answer: Answer, thinking: bool | None) -> Fate | None:
    if not answer.finished:
        return _unfinished(answer.episode)
    if answer.episode is None:
        return _text_fault(answer.text, thinking)
    faults = (_text_fault(turn.text, thinking) for turn in answer.episode.turns)
    return next((fault for fault in faults if fault is not None), None)


def _unfinished(episode: Trajectory | None) -> Fate:
    if episode is None or episode.error == TOKEN_LIMIT:
        return Fate.UNFINISHED
    return Fate.BROKEN if episode.status is Status.ERROR else Fate.CUT_SHORT


def _text_fault(text: str, thinking: bool | None) -> Fate | None:
    """What is wrong with one turn."""
    if not text.strip():
        return Fate.EMPTY
    if any(mark in text for mark in (*RESERVED, IMAGE_MARK, VIDEO_MARK)):
        return Fate.MARKUP
    opens, closes = text.count(_OPEN), text.count(_CLOSE)
    thinks = opens == closes == 1 and text.lstrip().startswith(_OPEN) and text.index(_OPEN) < text.index(_CLOSE)
    if not thinks and (opens or closes or thinking):
        return Fate.THOUGHTS
    if thinks and thinking is False:
        return Fate.THOUGHTS
    if thinks and not text.partition(_CLOSE)[2].strip():
        return Fate.EMPTY
    return None


def _lot(seed: int, answer: Answer) -> bytes:
    text = f"{seed}/{answer.text.strip()}".encode("utf-8", "backslashreplace")
    return hashlib.blake2b(text, digest_size=16).digest()
