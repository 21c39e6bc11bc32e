"""The answer in the line that announces it: `Answer: 4`, `the answer is 4`, `#### 4`, or a heading above it.

Everything here takes time linear in the text.
"""

import re

_ANSWER_LINE = (
    r"\banswer\b[*_]{0,3}(?:\s+(?:to|for|of)\s+(?:the|this|that|your|our)\s+\w{1,20})?\s*+"
    r"(?:(?:is|(?:would|will|must|should)\s+be)\b"
    r"(?:,?\s+(?:therefore|thus|hence|then|simply|just|exactly)\b,?)?\s*+[:：]?|[:：=])"
)
_CHINESE_LINE = (
    r"(?:答案|(?:正确|正確)的?(?:选项|選項))[*_]{0,3}\s*(?:应该?|應該?)?(?:(?:选择?|選擇?|是|为|為)\s*[:：]?|[:：=])"
    r"|(?:故|因此|所以|综上|綜上)[,，]?\s*(?:应该?|應該?|本题|本題)?(?:选择?|選擇?)[:：]?"
)
_HEADING = (
    r"^[ \t]*+#{0,6}[ \t]*+[*_]{0,3}(?:the[ \t]+)?(?:(?:final[ \t]+)?answer|(?:最终|最終|最后|最後)?答案)"
    r"[ \t]*+[:：]?[ \t]*+[*_]{0,3}[:：]?[ \t]*+$"
)
_MARK = re.compile(f"{_HEADING}|#{{4,}}|{_ANSWER_LINE}|{_CHINESE_LINE}", re.IGNORECASE | re.MULTILINE)
_WISH = re.compile(
    r"\b(?:hope|check|verify|confirm)\s+(?:that\s+)?(?:the|this|my|our)\s+(?:final\s+)?\Z", re.IGNORECASE
)
"""What stands before an "answer is" that announces nothing: I hope the answer is correct."""
_WISH_CHARS = 60

_EMPHASIS = re.compile(r"(?<![\w)\]}*])(\*\*|__)(?=[^\s*_])([^*\n]*[^\s*])\1(?!\*)")
_CLOSING_MARK = re.compile(r"[*_]{1,3}(?=\s)")
_REASON = re.compile(
    r"[.!。]\s+(?=(?:This (?:is|means|comes|follows|gives|makes|equals|can be seen)|That is|That's|Because|Since)\b)"
    r"|,\s++(?=(?:because|since|as|which|so)\b)|(?<!\s)\s++(?=because\b)"
)
_GOOD_WISH = re.compile(
    r"[.!。]\s+(?:I )?hope (?:that )?(?:it|this|that|the|my|you|everything)\b[^.!。\n]*[.!。]*\s*\Z", re.I
)
_DOUBT = re.compile(
    r"n't\b|n’t\b|\?|\b(?:or|but|not?|maybe|perhaps|possibly|probably|might|may|could|either|neither|however|though"
    r"|although|actually|wait|wrong|incorrect|unless|also|another|alternatively|except|instead|rather|correction"
    r"|corrected|mistake|sorry|else|answers?)\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\W*[A-Za-z]\W*")
_LONE_LETTER = re.compile(r"(?<![A-Za-z])[B-HJ-Z](?![A-Za-z])")
_DISPLAYS = ((r"\[", r"\]"), ("$$", "$$"))


def announced_answer(text: str) -> str | None:
    """What the last mark announces, without emphasis, a final full stop and a reason or wish behind it; None for none.

    A mark is `####`, "answer is" or "Answer:"; a line that says no more than "Final Answer" marks the next one.
    """
    mark = None
    for match in _MARK.finditer(text):
        if not _WISH.search(text[max(match.start() - _WISH_CHARS, 0) : match.start()]):
            mark = match
    if mark is None:
        return None
    said = text[mark.end() :].strip()
    for opening, closing in _DISPLAYS:
        if said.startswith(opening) and closing in said[len(opening) :]:
            return said[len(opening) :].partition(closing)[0].strip()
    line = without_emphasis(_CLOSING_MARK.sub("", said.partition("\n")[0], count=1))
    return _bare(_conclusion(line))


def without_emphasis(text: str) -> str:
    """The text without the marks of Markdown's bold type. `2**3` is a power, and stays."""
    return _EMPHASIS.sub(r"\2", text)


def _conclusion(line: str) -> str:
    """The line up to the reason or good wish that follows the answer; all of it where that takes something back."""
    wish = _GOOD_WISH.search(line)
    if wish is not None:
        line = line[: wish.start()]
    reason = _REASON.search(line)
    if reason is None:
        return line
    answer, why = line[: reason.start()], line[reason.end() :]
    if _DOUBT.search(why) or (_LETTER.fullmatch(answer) and _LONE_LETTER.search(why)):
        return line  # "B, because C is right too" chooses nothing
    return answer


def _bare(answer: str) -> str:
    before = None
    while before != answer:
        before = answer
        answer = answer.strip(" *_").removesuffix(".").removesuffix("。")
    return answer
