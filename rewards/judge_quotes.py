"""Showing a judge what a policy said, so that it is read as a text and cannot give orders.

Nothing here tells orders from answers: no list of bad words can. What is judged is stripped of what a chat template or
a terminal would act on, cut to a length, quoted line by line, and put between marks that no policy can foresee.
"""

import re
import unicodedata

_MARKUP_WORDS = (
    "s|bos|eos|pad|unk|mask|think|thinking|answer|tool_call|tool_calls|tool_response|tools|system|user|assistant|"
    "start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|image|img|video|audio|placeholder"
)
_TOKEN = re.compile(
    r"<\s*[|｜]\s*([^<>|｜]{1,64}?)\s*[|｜]\s*>"  # <|im_start|>, and DeepSeek's wide bars
    rf"|<(/?(?:{_MARKUP_WORDS}))\s*/?>"
    r"|<<(/?SYS)>>"
    r"|\[(/?(?:INST|IMG|IMG_BREAK|IMG_END|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT|gMASK|CLS|SEP))\]",
    re.IGNORECASE,
)
_HALF_TOKEN = re.compile(r"<(?=[|｜])|(?<=[|｜])>")
_LINE_ENDS = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n{3,}")


def defused(text: str) -> str:
    """The text without control, format and private characters; `<|im_start|>` and its like become (im_start).

    Letters stay as they are: normalising them would turn x² into x2.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    text = _TOKEN.sub(lambda match: f"({next(group for group in match.groups() if group)})", text)
    return _HALF_TOKEN.sub(lambda match: f"{match[0]} " if match[0] == "<" else f" {match[0]}", text)


def bounded(text: str, max_chars: int) -> str:
    """The text, or its two ends with a note of how much is left out between them."""
    if len(text) <= max_chars:
        return text
    head = (max_chars + 1) // 2
    skipped = len(text) - max_chars
    return f"{text[:head]}\n[... {skipped:,} characters left out ...]\n{text[head + skipped :]}"


def quoted(text: str, max_chars: int) -> str:
    """Defused, bounded, every line behind a bar. Empty where nothing is left."""
    # cut first, so that a megabyte is not searched; what defusing leaves is never longer than twice what it gets
    text = bounded(defused(bounded(text, 4 * max_chars)).strip(), max_chars)
    return "\n".join(f"| {line}" for line in _BLANK_LINES.sub("\n\n", text).split("\n")) if text else ""


def fenced(quote: str, what: str, boundary: str) -> str:
    """A quote between two marks. `boundary` is drawn for each request; a quote that holds it loses it."""
    return f"[begin {what} {boundary}]\n{quote.replace(boundary, '(mark)')}\n[end {what} {boundary}]"


def quoted_turns(turns: list[tuple[str, str]], *, max_turns: int, max_turn_chars: int) -> str:
    """Turns (role, text), each quoted below a line that names it; turns in the middle are left out beyond `max_turns`.

    Only the lines that start without a bar are ours: a turn cannot pretend to be another's.
    """
    lines: list[str] = []
    kept = kept_turns(len(turns), max_turns)
    for number, (role, text) in enumerate(turns):
        if number in kept:
            lines.append(f"Turn {number + 1}, {role}:")
            lines.append(quoted(text, max_turn_chars) or "| (empty)")
        elif number - 1 in kept:
            lines.append(f"({len(turns) - len(kept)} turns left out)")
    return "\n".join(lines)


def kept_turns(num_turns: int, max_turns: int) -> frozenset[int]:
    """Which turns are shown: the first and the last ones, `max_turns` in all."""
    head = (max_turns + 1) // 2
    skipped = range(head, head + max(num_turns - max_turns, 0))
    return frozenset(range(num_turns)) - frozenset(skipped)
