r"""The prose of a text: what its writer says in a language of their own choosing.

Left out are code, maths, tool calls, tags, addresses, quotations and remarks in brackets: their language is that of
what they quote. Every pattern stops at the next opening of its kind, so that time is linear in the text.
"""

import re

MAX_CHARS = 100_000
"""Only so much of a text is looked at."""

# a pattern stays text: `re` compiles it when it is first used, and not when rewards are imported
_NOT_PROSE = "(?s)" + "|".join(
    (
        r"```.*?(?:```|\Z)",
        r"<tool_call>.*?(?:</tool_call>|\Z)",
        r"`[^`\n]*`",
        r"\$\$[^$]*\$\$",
        r"\$[^$\n]+\$",
        r"\\\((?:[^\\]|\\[^()])*+\\\)",
        r"\\\[(?:[^\\]|\\[^\[\]])*+\\\]",
        r"\\[A-Za-z]+",
        r"\bhttps?://\S+",
        r"<[^<>\n]{1,100}>",
        r'"[^"\n]{1,400}"',
        r"(?<!\w)'[^'\n]{1,200}'(?!\w)",
        "“[^“”]{1,400}”",
        "(?<!\\w)‘[^‘’\n]{1,200}’(?!\\w)",
        "«[^«»]{1,400}»",
        "„[^„“”]{1,400}[“”]",
        "「[^「」]{1,400}」",
        "『[^『』]{1,400}』",
        "《[^《》]{1,400}》",
        r"\([^()\n]{1,80}\)",
        r"（[^（）\n]{1,80}）",
    )
)
_LATER_CAPITALISED = re.compile(r"(?<=[\w,;:] )[A-ZÀ-ÖØ-Þ][\w’'-]*")
_SENTENCE_END = re.compile(r"[.!?;:。！？；：]+(?=\s|[^\x00-\x7f]|\Z)|\n+")


def prose_of(text: str) -> str:
    """The text with a blank for whatever is not prose."""
    return re.sub(_NOT_PROSE, " ", text[:MAX_CHARS])


def without_names(prose: str) -> str:
    """Prose without the capitalised words inside its sentences: names, which keep their spelling in every language."""
    return _LATER_CAPITALISED.sub("", prose)


def sentences(prose: str) -> list[str]:
    """The sentences of prose, lines being sentences too."""
    return [sentence for part in _SENTENCE_END.split(prose) if (sentence := part.strip())]
