r"""Which option an answer names: `(B)`, `B. Rome`, `I choose B`, `Rome`, `答案是Ｂ`; none where it names several."""

import re
import unicodedata
from collections.abc import Mapping

_LETTER_FOLLOWS = r"(?=[(\[【]?[A-Za-z](?![A-Za-z]))"
_INTRODUCTION = re.compile(
    r"(?:(?:(?:it is |it's |so |therefore,? )?(?:(?:the|my) )?(?:(?:correct|right|best|final) )?"
    r"(?:option|choice|answer)(?: is)?:?\s+"
    r"|(?:(?:so|therefore),? )?(?:it is|it's|i(?:'d| would| will| must)? (?:choose|pick|select|go with))"
    r"(?: the)?(?: (?:option|choice|answer))?:?\s+"
    r"|(?:综上|綜上|因此|所以)?[,，]?(?:本题|本題|此题|此題|这题|這題)?[我故]?(?:应该?|應該?)?"
    r"【?(?:答案|(?:正确|正確)?(?:选项|選項)|选择?|選擇?)】?[是为為选選:]*\s*))" + _LETTER_FOLLOWS,
    re.IGNORECASE,
)
_CONFIRMATION = re.compile(
    r"(?<=[A-Za-z).]) is (?:the )?(?:correct|right|best|answer)(?: (?:answer|option|choice|one))?$"
    r"|(?<=[A-Za-z)\]】])(?:选项|選項)?(?:是?(?:正确|正確|对|對)的?)?$"
)
_REASON = re.compile(
    r"(?<=[A-Za-z)\]】])(?:(?:\s*,\s*|\s+)(?:because|since)\b|\s*,?\s*(?:因为|因為|由于|由於))(?P<said>.*)", re.DOTALL
)
_CHOICE = re.compile(r"[(\[【]?([A-Za-z])(?:[)\]】.:、\n]+|$)\s*(.*)", re.DOTALL)
_CONTRADICTION = re.compile(
    r"(?:is|was)(?:n't| not| wrong| incorrect| false)\b|not (?:correct|right)\b|(?:or|and|[,/&])?\s*\(?[a-z][).:]*$"
    r"|是(?:错|錯|不(?:对|對|正确|正確))|不(?:对|對|正确|正確)$|不是(?:正确|正確)?(?:答案|选项|選項)"
)
_ANOTHER_CHOICE = re.compile(r"(?:^|[\s,;/&(])(?:[B-HJ-Z](?=$|[\s,;/&).:])|[AI](?=$|[,;/&).:]|\s*$))")
_LONE_LETTER = re.compile(r"(?<![A-Za-z])(?:[B-HJ-Z]|[AI](?![ a-z']))(?![A-Za-z])")
_REMARK = re.compile(r"[A-Z]\S*(?:\s+\S+){2,}")
_TAKEN_BACK = re.compile(
    r"\b(?:no|not|wait|actually|rather|instead|wrong|incorrect|false|sorry|or|unless|maybe|perhaps)\b|n['’]t\b",
    re.IGNORECASE,
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\(?:[ ,;:!]|q?quad\b)|~")


def chosen_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer names; None where it names none, several, or contradicts itself.

    options: letter -> text, in the form of `plain_choice`; may be empty.
    """
    plain = _LATEX_SPACE.sub(" ", _TEXT_COMMAND.sub(r"\1", answer))
    plain = unicodedata.normalize("NFKC", plain).strip().strip("*$").strip()
    spoken = {plain_choice(plain)}
    plain = _CONFIRMATION.sub("", _INTRODUCTION.sub("", plain, count=1).rstrip(".!。"))
    spoken.add(plain_choice(plain))
    reason = _REASON.search(plain)
    if reason is not None and not _LONE_LETTER.search(reason["said"]):
        plain = plain[: reason.start()]
        spoken.add(plain_choice(plain))
    by_text = [letter for letter, text in options.items() if text in spoken]
    match = _CHOICE.fullmatch(plain)
    if match is None or (options and match[1].upper() not in options):
        return by_text[0] if len(by_text) == 1 else None
    letter, said = match[1].upper(), match[2].strip().rstrip(".")
    if not said:
        return letter
    if not options:
        return None if _ANOTHER_CHOICE.search(said) or _CONTRADICTION.match(said) else letter
    if plain_choice(said) == options[letter]:
        return letter
    if by_text:
        return by_text[0] if len(by_text) == 1 else None  # "C. elegans" may be the text of B
    return letter if _is_remark(said, letter, options) else None


def plain_choice(text: str) -> str:
    """A choice's text as it is compared: NFKC, case-folded, whitespace squeezed, no full stop at its end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".")


def _is_remark(said: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows "B." is a sentence that speaks of no other option and takes nothing back."""
    if _REMARK.match(said) is None or _ANOTHER_CHOICE.search(said) or _TAKEN_BACK.search(said):
        return False
    plain = plain_choice(said)
    others = (text for other, text in options.items() if other != letter and text)
    return not any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", plain) for text in others)
