"""Reads a JSONL file of completions, to be scored: what was said, and the reference fields beside it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.rewards import Completion, ConversationTurn, ToolCall

TEXT_KEYS = ("completion", "text", "response")
"""Columns that may hold what the policy said, in the order they are looked for."""
_OTHER_KEYS = (
    "prompt",
    "task",
    "truncated",
    "token_ids",
    "num_tool_calls",
    "tool_calls",
    "num_turns",
    "images",
    "reference",
)

CompletionRow = tuple[str, Completion, Mapping[str, Any]]
"""(task, completion, reference)."""


def read_completions(path: Path, *, task: str = "default") -> list[CompletionRow]:
    """The rows of a JSONL file. Raises DataError naming the line.

    A row holds a `completion` (or `text`, or `response`): a text, or turns as TRL writes them, with what the
    environment answered between them. It may hold `prompt`,
    `task`, `truncated`, `token_ids`, `tool_calls` (each with `name`, and maybe `arguments`, `text` and `error`),
    `num_tool_calls` (those without an error), `num_turns` and `images` (paths, from the file's folder). Every other
    column is a field of the reference, as are the fields of `reference`.
    task: of rows that name none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    rows = [_row(line, f"{path.name}:{number}", path.parent, task) for number, line in _numbered(lines)]
    if not rows:
        raise DataError(f"{path} holds no completion; write one JSON object a line")
    return rows


def _numbered(lines: list[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _row(line: str, where: str, folder: Path, task: str) -> CompletionRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}; write one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object, got {line:.60}")
    key = next((key for key in TEXT_KEYS if row.get(key) is not None), None)
    if key is None and (empty := next((key for key in TEXT_KEYS if key in row), None)):
        raise DataError(f"the '{empty}' of {where} is null; write what was said, \"\" where nothing was")
    if key is None:
        raise DataError(f"{where} has no {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}; it holds: {', '.join(row)}")
    nested = row.get("reference")
    reference = {k: v for k, v in row.items() if k != key and k not in _OTHER_KEYS}
    if isinstance(nested, Mapping):
        reference |= nested
    elif nested is not None:
        reference["reference"] = nested
    try:
        calls = tuple(_call(call) for call in row.get("tool_calls") or ())
        turns = _turns(row[key])
        completion = Completion(
            text=_text(row[key], "assistant"),
            prompt=_text(row.get("prompt") or "", "user"),
            truncated=bool(row.get("truncated", False)),
            token_ids=tuple(int(token) for token in row.get("token_ids") or ()),
            num_tool_calls=int(row.get("num_tool_calls") or sum(not call.error for call in calls)),
            tool_calls=calls,
            num_turns=int(row.get("num_turns") or sum(turn.role == "assistant" for turn in turns) or 1),
            images=tuple(str(folder / image) for image in row.get("images") or ()),
            turns=turns,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    return str(row.get("task") or task), completion, reference


def _text(said: Any, role: str) -> str:
    """A text as it is; of turns, all that the assistant said, or the last that the user did. Raises ValueError."""
    if isinstance(said, str):
        return said
    if not isinstance(said, list) or not all(isinstance(turn, Mapping) for turn in said):
        raise ValueError(f"wanted a text or a list of turns, got {said!r:.60}")
    texts = [_content(turn.get("content")) for turn in said if turn.get("role") == role]
    if not texts:
        raise ValueError(f"no turn has the role '{role}'")
    return "".join(texts) if role == "assistant" else texts[-1]


def _turns(said: Any) -> tuple[ConversationTurn, ...]:
    """The turns of an episode; none of a single answer, which was no episode."""
    if not isinstance(said, list) or len(said) < 2:
        return ()
    return tuple(
        ConversationTurn(
            role=turn["role"] if turn.get("role") in ("assistant", "tool") else "user",
            text=_content(turn.get("content")),
            num_images=_num_images(turn.get("content")),
        )
        for turn in said
        if isinstance(turn, Mapping)
    )


def _call(call: Any) -> ToolCall:
    """Raises ValueError for what is no call."""
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise ValueError(f"each of tool_calls must be an object with a name, got {call!r:.60}")
    arguments = call.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of a tool call must be an object, got {arguments!r:.60}")
    return ToolCall(
        name=call["name"],
        arguments=arguments,
        text=str(call.get("text") or ""),
        error=str(call.get("error") or ""),
    )


def _num_images(content: Any) -> int:
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def _content(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))
