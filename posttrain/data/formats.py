"""Rows of the usual layouts (messages, ShareGPT, Qwen's fine-tuning format, prompt) -> one conversation."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.marks import IMAGE_MARK, Part, check_text, split_marks
from posttrain.data.source_spec import RowFormat, SourceSpec, template_fields
from posttrain.errors import DataError
from posttrain.records import Message

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
_LAYOUTS: Mapping[RowFormat, tuple[str, ...]] = {
    "auto": ("messages", "conversations", "prompt"),
    "messages": ("messages", "prompt"),
    "sharegpt": ("conversations", "messages"),
    "qwen": ("conversations",),
    "prompt": ("prompt",),
}
"""Columns that can hold the conversation; the first that a row has is read."""
_CONSUMED = {"image", "images", "video", "videos", "task", "system"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow:
    """A row before its images are opened."""

    task: str
    messages: tuple[Message, ...]
    image_refs: tuple[Any, ...]
    """Paths, data URIs, {"bytes", "path"} or PIL images, in the order of the image parts."""
    reference: Mapping[str, Any]


def parse_row(row: Mapping[str, Any], spec: SourceSpec, name: str) -> ParsedRow:
    """One row as a conversation.

    `name` stands in every error. Raises DataError where the row has no layout that we know, where the number of image
    marks is not the number of images, for videos, and for special tokens in text.
    """
    fields = _map_columns(row, spec, name)
    if fields.get("video") or fields.get("videos"):
        raise DataError(f"{name}: has videos, which are not supported yet; remove the row or its videos")
    column = _conversation_column(fields, spec, name)
    turns = _as_turns(fields[column], "user", column, name)
    consumed = _CONSUMED | {column}
    if column == "prompt" and fields.get("completion") is not None:
        turns += _as_turns(fields["completion"], "assistant", "completion", name)
        consumed |= {"completion"}
    images = _as_list(fields.get("images")) + _as_list(fields.get("image"))
    reader = _MessageReader(name, images)
    messages = [reader.read(turn) for turn in turns]
    reader.check_all_used()
    system = spec.system if fields.get("system") is None else fields["system"]
    if system and messages[0]["role"] != "system":
        _check_is_text(system, "the system prompt", name)
        messages.insert(0, {"role": "system", "content": system})
    _check_order(messages, name)
    _check_thinking(messages, spec.thinking, name)
    reference = {key: value for key, value in fields.items() if key not in consumed}
    if spec.answer_regex is not None:
        reference["answer"] = _extract(spec.answer_regex, reference.get("answer"), name)
    if isinstance(reference.get("tools"), str):
        reference["tools"] = _json(reference["tools"], "tools", name)
    return ParsedRow(
        task=str(fields.get("task") or spec.task),
        messages=tuple(messages),
        image_refs=tuple(reader.refs),
        reference=reference,
    )


def _map_columns(row: Mapping[str, Any], spec: SourceSpec, name: str) -> dict[str, Any]:
    if missing := [column for column in spec.columns.values() if column not in row]:
        raise DataError(f"{name}: has no column '{missing[0]}'; its columns are: {', '.join(map(str, row)) or 'none'}")
    fields = {key: value for key, value in row.items() if key not in spec.columns.values()}
    fields |= {ours: row[theirs] for ours, theirs in spec.columns.items()}
    if spec.prompt_template is not None:
        values = {**row, **fields}
        if missing := [column for column in template_fields(spec.prompt_template) if column not in values]:
            raise DataError(f"{name}: has no column '{missing[0]}', which prompt_template asks for")
        fields["prompt"] = spec.prompt_template.format_map(values)
    return fields


def _conversation_column(fields: Mapping[str, Any], spec: SourceSpec, name: str) -> str:
    layout = ("prompt",) if spec.prompt_template is not None else _LAYOUTS[spec.format]
    for column in layout:
        if fields.get(column) is not None:
            return column
    raise DataError(
        f"{name}: has no {' or '.join(map(repr, layout))} column (it has: {', '.join(map(str, fields)) or 'none'}); "
        "name one by `columns`, or write the prompt by `prompt_template`"
    )


def _as_turns(value: Any, role: str, column: str, name: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(f"{name}: '{column}' must be a text or a list of turns, got {_brief(value)}")
    return list(value)


class _MessageReader:
    """Normalises turns, and deals the row's images to the marks in the order of reading."""

    def __init__(self, name: str, images: list[Any]) -> None:
        self.name = name
        self.images = images
        self.refs: list[Any] = []
        self.num_marks = 0

    def read(self, turn: Mapping[str, Any]) -> Message:
        said_role = turn.get("role") or turn.get("from")
        role = _ROLES.get(str(said_role))
        if role is None:
            raise DataError(f"{self.name}: a turn has the role {said_role!r}; roles are: {', '.join(_ROLES)}")
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        message: dict[str, Any] = {"role": role}
        if said_role == "function_call":
            check_text(str(content), self.name)
            message["tool_calls"] = [{"type": "function", "function": _json(content, "function_call", self.name)}]
            content = ""
        elif turn.get("tool_calls"):
            check_text(json.dumps(turn["tool_calls"]), self.name)
            message["tool_calls"] = turn["tool_calls"]
        if turn.get("weight") is not None:
            if role != "assistant" or turn["weight"] not in (0, 1):
                raise DataError(
                    f"{self.name}: 'weight' is 0 or 1 and of assistant turns, got {turn['weight']!r} ({role})"
                )
            message["weight"] = int(turn["weight"])
        parts = self._parts(content)
        if role in ("system", "assistant") and any(part["type"] == "image" for part in parts):
            raise DataError(
                f"{self.name}: a turn of the {role} holds an image, but only user and tool turns can show one"
            )
        if thought := turn.get("reasoning_content"):
            _check_is_text(thought, "reasoning_content", self.name)
            parts = [{"type": "text", "text": f"<think>\n{thought}\n</think>\n\n"}, *parts]
        if all(part["type"] == "text" for part in parts):
            message["content"] = "".join(part["text"] for part in parts)  # some templates show text only as a string
        else:
            message["content"] = parts
        if not message["content"] and "tool_calls" not in message and role != "tool":
            raise DataError(f"{self.name}: a turn of the {role} is empty; remove it or the row")
        return message

    def check_all_used(self) -> None:
        if self.num_marks != len(self.images):
            raise DataError(
                f"{self.name}: number of {IMAGE_MARK} marks is {self.num_marks} but number of images is "
                f"{len(self.images)}; write one mark where each image belongs"
            )

    def _parts(self, content: Any) -> list[Part]:
        pieces = [content] if isinstance(content, str | Mapping) else content
        if pieces is None:
            return []
        if not isinstance(pieces, Iterable):
            raise DataError(
                f"{self.name}: the content of a turn must be a text or a list of parts, got {_brief(content)}"
            )
        return [part for piece in pieces for part in self._read_piece(piece)]

    def _read_piece(self, piece: Any) -> Sequence[Part]:
        if isinstance(piece, str):
            return self._deal(split_marks(piece, self.name))
        kind = piece.get("type") if isinstance(piece, Mapping) else None
        if kind == "text" and isinstance(piece.get("text"), str):
            return self._deal(split_marks(piece["text"], self.name))
        if kind in ("image", "image_url"):
            inline = piece.get("image") if piece.get("image") is not None else piece.get("image_url")
            inline = inline.get("url", inline) if isinstance(inline, Mapping) else inline
            if inline is None:
                return self._deal([{"type": "image"}])
            self.refs.append(inline)
            return [{"type": "image"}]
        if kind in ("video", "video_url"):
            raise DataError(f"{self.name}: has a video, which is not supported yet; remove the row")
        raise DataError(f"{self.name}: a part of a turn must be a text or an image with its type, got {_brief(piece)}")

    def _deal(self, parts: Sequence[Part]) -> Sequence[Part]:
        for part in parts:
            if part["type"] == "image":
                self.refs += self.images[self.num_marks : self.num_marks + 1]
                self.num_marks += 1
        return parts


def _check_order(messages: Sequence[Message], name: str) -> None:
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise DataError(f"{name}: a system turn stands after the first turn; move it to the beginning")
    if "user" not in roles:
        raise DataError(f"{name}: the conversation has no user turn")
    if roles[-1] == "system" or roles.index("user") > (roles[0] == "system"):
        raise DataError(f"{name}: a conversation must begin with a user turn (after the system turn), got {roles}")


def _check_thinking(messages: Sequence[Message], thinking: bool | None, name: str) -> None:
    final = messages[-1]
    if thinking is None or final["role"] != "assistant":
        return
    thinks = "<think>" in final["content"] and "</think>" in final["content"]
    if thinking and not thinks:
        raise DataError(f"{name}: the answer has no <think>...</think>, but the data set is declared as thinking")
    if not thinking and "<think>" in final["content"]:
        raise DataError(f"{name}: the answer holds <think>, but the data set is declared as not thinking")


def _extract(pattern: str, answer: Any, name: str) -> str:
    if not isinstance(answer, str):
        raise DataError(
            f"{name}: answer_regex needs an `answer` text, got {_brief(answer)}; name its column by `columns`"
        )
    found = re.search(pattern, answer)
    if found is None or found[1] is None:
        raise DataError(f"{name}: the answer {_brief(answer[-60:])} does not match answer_regex {pattern!r}")
    return found[1].strip()


def _check_is_text(value: Any, what: str, name: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name}: {what} must be a text, got {_brief(value)}")
    check_text(value, name)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _json(text: Any, what: str, name: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: {what} is not valid JSON ({error})") from None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
