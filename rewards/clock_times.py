"""Times of day as people write and say them: `3:15:20 pm`, `15h15`, `quarter past three`, `三点一刻`."""

import re
import unicodedata
from collections.abc import Callable

from .number_words import HAN_DIGITS, NUMBER_WORDS, TENS_WORDS

MAX_CHARS = 1000
"""A longer text states no time."""
DAY_S = 24 * 60 * 60
_HOUR_S = 60 * 60

_WORDS = {**NUMBER_WORDS, **TENS_WORDS, "noon": 12, "midnight": 0}
_ENGLISH = rf"(?:(?:{'|'.join(TENS_WORDS)})(?:[- ](?:{'|'.join(list(NUMBER_WORDS)[1:10])}))?|{'|'.join(NUMBER_WORDS)})"
_HOUR = rf"(?:\d{{1,2}}|{_ENGLISH})"
_HALF_DAY = r"(?:\s*(?P<half>[ap])\.?\s?m\b\.?)"
_DIGIT = "".join(HAN_DIGITS)
_HAN = rf"(?:\d{{1,2}}|[{_DIGIT}]?十[{_DIGIT}]?|[{_DIGIT}])"

# patterns stay text: `re` compiles each when it is first used, and not when rewards are imported
_DIGITAL = (
    r"(?<![\d:.])(?P<h>\d{1,2})\s?(?:[:h]|(?<=\d)\.(?=\d\d(?::\d\d)?\s*[ap]\.?m))\s?(?P<m>\d{2})"
    rf"(?:\s?[:m]\s?(?P<s>\d{{2}}))?(?![\d:]|\.\d){_HALF_DAY}?"
)
_RELATIVE = (
    rf"(?<![\d.:])\b(?P<m>quarter|half|\d{{1,2}}|{_ENGLISH})(?:\s+minutes?)?\s+(?P<way>past|after|to|before|till)"
    rf"\s+(?P<h>noon|midnight|{_HOUR}\b)(?:\s+o\W?clock)?{_HALF_DAY}?"
)
_SPOKEN = rf"\b(?P<h>{_ENGLISH})\s+(?:oh?\s+)?(?P<m>{_ENGLISH})\b{_HALF_DAY}?"
_WHOLE = rf"(?<![\d.:])\b(?P<h>{_HOUR})(?=\s+o\W?clock\b|\s*[ap]\.?\s?m\b)(?:\s+o\W?clock\b)?{_HALF_DAY}?"
_NAMED = r"\b(?P<h>noon|midday|midnight)\b"
_CHINESE = (
    rf"(?<![\d{_DIGIT}十.:])(?:差(?P<less>{_HAN}|一刻)(?:分钟?)?)?(?P<h>{_HAN})[点點时時][钟鐘整过過]?"
    rf"(?:(?P<part>半|一刻|三刻)|零?(?P<m>{_HAN})(?![\d{_DIGIT}十秒])分?钟?)?(?:零?(?P<s>{_HAN})秒)?"
    rf"(?:[缺差](?P<minus>{_HAN}|一刻)分?)?"
)
_AFTERNOON = r"\bin the (?:afternoon|evening)\b|下午|傍晚|晚上"
_UNCLEAR = r"n't\b|\b(?:not|never|neither|nor|or|between|before|after|until)\b|不是|或|之[前后後]"


def stated_time(answer: str) -> int | None:
    """Seconds since midnight of the one time that the answer states, in [0, 86400).

    None where it states none, several, an impossible one (`25:70`), or hedges (`not 3:15`, `3:15 or 3:20`). The same
    time said twice is one.
    """
    if len(answer) > MAX_CHARS:
        return None
    text = _plain(answer)
    times: set[int | None] = set()

    def take(read: Callable[[re.Match[str]], int | None]) -> Callable[[re.Match[str]], str]:
        def taken(match: re.Match[str]) -> str:
            times.add(read(match))
            return " ; "

        return taken

    for pattern, read in _READERS:
        text = re.sub(pattern, take(read), text)
    if len(times) != 1 or re.search(_UNCLEAR, text):
        return None
    time = times.pop()
    if time is not None and time < DAY_S // 2 and re.search(_AFTERNOON, text):
        return time + DAY_S // 2
    return time


def circular_distance(first: int, second: int, period_s: int) -> int:
    """Seconds between two times on a dial that starts again after `period_s`, the shorter way round."""
    apart = abs(first - second) % period_s
    return min(apart, period_s - apart)


def write_time(seconds: int) -> str:
    """`h:mm`, with `:ss` where there are any."""
    hours, rest = divmod(seconds, _HOUR_S)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}" + (f":{rest:02}" if rest else "")


def _clock(match: re.Match[str]) -> int | None:
    groups = match.groupdict()
    return _seconds(_number(groups["h"]), _number(groups.get("m")), _number(groups.get("s")), groups.get("half"))


def _relative(match: re.Match[str]) -> int | None:
    minutes = {"quarter": 15, "half": 30}.get(match["m"]) or _number(match["m"])
    start = _seconds(_number(match["h"]), 0, 0, match["half"])
    if start is None or minutes > 59:
        return None
    away = minutes * 60
    return (start + (away if match["way"] in ("past", "after") else -away)) % DAY_S


def _chinese(match: re.Match[str]) -> int | None:
    minutes = {"半": 30, "一刻": 15, "三刻": 45}.get(match["part"] or "")
    time = _seconds(_number(match["h"]), _number(match["m"]) if minutes is None else minutes, _number(match["s"]), None)
    less = match["less"] or match["minus"]
    if time is None or less is None:
        return time
    return (time - 60 * (15 if less == "一刻" else _number(less))) % DAY_S


def _seconds(hour: int, minute: int, second: int, half_day: str | None) -> int | None:
    """Seconds since midnight; None for a time that no clock shows."""
    if minute > 59 or second > 59 or hour > 24 or (hour == 24 and minute + second) or (half_day and hour > 12):
        return None
    if half_day:
        hour = hour % 12 + (12 if half_day == "p" else 0)
    return (hour * _HOUR_S + minute * 60 + second) % DAY_S


def _number(text: str | None) -> int:
    """A number below 100 in digits, English words or Chinese numerals; 0 for what was not said."""
    if text is None:
        return 0
    if text.isdecimal():
        return int(text)
    if text[0] in HAN_DIGITS or text[0] == "十":
        tens, ten, ones = text.rpartition("十")
        return (HAN_DIGITS.get(tens, 1) * 10 if ten else 0) + HAN_DIGITS.get(ones, 0)
    if text == "midday":
        return 12
    return sum(_WORDS[word] for word in re.split("[- ]", text))


def _plain(text: str) -> str:
    """Lower case in NFKC, with the digits of every script as 0-9 and invisible format characters left out."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("*", "")
    return "".join(
        str(unicodedata.decimal(character)) if character.isdecimal() else character
        for character in text
        if unicodedata.category(character) != "Cf"
    )


_READERS: tuple[tuple[str, Callable[[re.Match[str]], int | None]], ...] = (
    (_DIGITAL, _clock),
    (_RELATIVE, _relative),
    (_WHOLE, _clock),
    (_SPOKEN, _clock),
    (_NAMED, _clock),
    (_CHINESE, _chinese),
)
"""Longer readings first; what one has read, the next does not see."""
