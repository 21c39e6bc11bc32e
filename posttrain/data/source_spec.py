"""What a data set is and how its rows are read: the fields a recipe or a Python caller gives."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Literal

from posttrain.errors import DataError

RowFormat = Literal["auto", "messages", "sharegpt", "qwen", "prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """Where rows come from, and how one row becomes an example.

    A row is read as the first of these that it has (or as `format` says):
    `messages` a conversation of role/content turns; `conversations` one of from/value turns (ShareGPT, Qwen);
    `prompt`, a text or turns, with an optional `completion`. `image` or `images` belong to any of them. Every other
    column becomes a reference field, which rewards can read.
    """

    path: str
    """A JSONL, JSON or Parquet file, a folder saved by `datasets.save_to_disk`, or a name on the hub."""
    split: str | None = None
    """Of a saved folder with several, or of a hub data set (there `train` unless told)."""
    subset: str | None = None
    """Configuration of a hub data set, such as `main`."""
    image_root: str | None = None
    """Image paths are relative to this folder and may not leave it; the file's own folder unless told."""
    image_strip: str = ""
    """Leading part of the image paths to drop: `demo/` where rows say `demo/images/1.png`, which lies in `images/`."""
    allow_urls: bool = False
    """True fetches http(s) images; refused otherwise."""
    task: str = "default"
    """Task of rows that have no `task` column."""
    format: RowFormat = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our field -> their column: {"prompt": "question", "completion": "answer"}."""
    prompt_template: str | None = None
    """Writes the prompt from columns: "<image>{question} Answer with one letter." Doubled braces are literal."""
    answer_regex: str | None = None
    """Its first group is cut out of the `answer` field: `#### (.+)$`."""
    limit: int | None = None
    """Reads the first rows only."""
    system: str | None = None
    """System prompt of conversations that have none."""
    thinking: bool | None = None
    """True: every final answer must hold <think>...</think>. False: none may. None: not checked."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DataError(f"data set {self.path}: limit must be at least 1, got {self.limit}")
        if self.answer_regex is not None:
            _check_regex(self.answer_regex)
        if self.prompt_template is not None:
            template_fields(self.prompt_template)


def template_fields(template: str) -> tuple[str, ...]:
    """The columns that a prompt template reads.

    Only plain names are allowed: `{question.__class__}` or `{question[0]}` would let a recipe walk through objects.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(
            f"prompt_template {template!r} cannot be read ({error}); write literal braces doubled"
        ) from None
    names = []
    for _, name, form, conversion in pieces:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise DataError(f"prompt_template may hold plain column names such as {{question}}, got {{{name}}}")
        names.append(name)
    return tuple(dict.fromkeys(names))


def _check_regex(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise DataError(f"answer_regex {pattern!r} is not a regular expression: {error}") from None
    if groups < 1:
        raise DataError(
            f"answer_regex {pattern!r} has no group; put the part to keep in parentheses, as in '#### (.+)$'"
        )
