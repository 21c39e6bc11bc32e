"""Rows of a data set of answers: conversations as our own `messages` layout reads them back, and their images."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from posttrain.answers.disk import write_whole
from posttrain.errors import DataError
from posttrain.records import Example, Message, Trajectory
from posttrain.rewards import Score
from posttrain.teachers.answer import Answer

IMAGES = "images"
_OURS = ("task", "messages", "image", "images", "video", "videos", "system", "made_by")
_TEMPLATE = "chat_template_kwargs"
"""The column in which TRL's data sets, too, say what a row's chat template is to be given."""


def as_asked(example: Example, thinking: bool | None) -> Example:
    """The example without the answer that it ends with, and without a wish to think that `thinking` overrules."""
    messages = example.messages
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(f"{example.id}: has no turn of a user to answer")
    reference = {key: value for key, value in example.reference.items() if key != "made_by"}
    if thinking is not None and reference.get(_TEMPLATE):
        reference[_TEMPLATE] = {k: v for k, v in reference[_TEMPLATE].items() if k != "enable_thinking"}
    return replace(example, messages=messages, reference=reference)


def check_writable(asked: Example) -> None:
    """Raises DataError, naming the row and the field, for what a row of JSON cannot say; before a teacher is asked."""
    for key, value in asked.reference.items():
        if key in _OURS:
            raise DataError(f"{asked.id}: its reference field '{key}' would be read as a part of the row; rename it")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{asked.id}: its reference field '{key}' cannot be written as JSON ({error}); convert or drop it"
            ) from None


def row_of(
    asked: Example,
    answer: Answer,
    score: Score | None,
    *,
    thinking: bool | None,
    images: list[str],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """The row, its image paths relative to the data set's folder; `made_by` gains the prompt's id and the reward.

    It says how the teacher was told to think, because a student must learn each answer behind the same prompt.
    """
    episode = answer.episode
    said = {"messages": [*map(_plain, asked.messages), {"role": "assistant", "content": answer.text}]}
    if episode is not None:
        said = {"messages": conversation(asked, episode), **({"tools": list(episode.tools)} if episode.tools else {})}
    told = {**(asked.reference.get(_TEMPLATE) or {}), "enable_thinking": thinking}
    return {
        "id": asked.id,
        "task": asked.task,
        **({"images": images} if images else {}),
        **asked.reference,
        **said,
        **({_TEMPLATE: told} if thinking is not None else {}),
        "made_by": {
            **made_by,
            "prompt": asked.id,
            "reward": score.value if score else None,
            "parts": dict(score.parts) if score else {},
        },
    }


def conversation(asked: Example, episode: Trajectory) -> list[dict[str, Any]]:
    """The turns of an episode. One in which a tool call failed has the weight 0, whatever became of its other calls: it
    shows how an error is read and mended, and is not itself learnt."""
    messages = [_plain(message) for message in episode.opening or asked.messages]
    for turn in episode.turns:
        has_failed = any(call.error for call in turn.calls)
        messages.append({"role": "assistant", "content": turn.text, **({"weight": 0} if has_failed else {})})
        messages += [_plain(message) for message in turn.observation]
    return messages


def shown_images(asked: Example, answer: Answer) -> list[Image.Image]:
    """All images of the conversation in the order of their parts; those of an episode as its policy saw them."""
    episode = answer.episode
    if episode is None:
        return list(asked.images)
    opening = episode.opening_images if episode.opening else asked.images
    return [*opening, *(image for turn in episode.turns for image in turn.images)]


def _plain(message: Message) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": content if isinstance(content, str) else [dict(part) for part in content]}


def store_image(folder: Path, image: Image.Image) -> str:
    """Writes the image as it is, once; its path in the folder, whose name is a hash of the pixels."""
    pixels = image.convert("RGB")
    digest = hashlib.sha256(f"{pixels.width}x{pixels.height}:".encode() + pixels.tobytes()).hexdigest()[:24]
    name = f"{IMAGES}/{digest}.png"
    path = folder / name
    if not path.exists():
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG")
        write_whole(path, [buffer.getvalue()])
    return name
