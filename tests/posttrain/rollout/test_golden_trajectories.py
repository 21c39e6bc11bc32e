"""Whole episodes with the zoom tool against transformers' own processor and model: tokens, masks, pixels, positions."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from posttrain.model import Budget, Family, TokenSequence, pack
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from posttrain.data import Renderer, open_image
from posttrain.environments import make_environment_factory
from posttrain.records import Example, Status, Trajectory
from posttrain.rollout.engine import Sampling
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rolling_batch import TaskEnvironment

from .episodes import ScriptedStreams

QUESTION = "What does the smallest sign say?"
LEFT, MIDDLE, LOW = [125, 250, 625, 750], [250, 250, 750, 500], [500, 500, 1000, 1000]
NO_SUCH_IMAGE = "Tool Execution Error: img_idx is 9, but must be from 0 to 3"


def zoom(box: Sequence[int], img_idx: int) -> str:
    arguments = {"label": "the sign", "bbox_2d": box, "img_idx": img_idx}
    return f"<tool_call>\n{json.dumps({'name': 'image_zoom_in_tool', 'arguments': arguments})}\n</tool_call>"


SAID = {
    0: ["It says 7."],
    1: [f"I look closer.\n{zoom(LEFT, 0)}", "It says 7."],
    3: [zoom(LEFT, 0), f"Closer still.\n{zoom(MIDDLE, 1)}", f"{zoom(LOW, 0)}\n{zoom(LOW, 9)}", "It says\n7."],
}
"""Tool turns -> what the policy says; the third looks at two images, one of which is not there."""


class Read(NamedTuple):
    """A conversation as transformers reads it."""

    token_ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    pixels: torch.Tensor


@pytest.fixture(scope="module")
def tiny(load_tiny: Callable[[Family], Any]) -> Any:
    return load_tiny(Family.QWEN3_VL)


def drawn() -> Image.Image:
    y, x = np.mgrid[0:480, 0:640]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) // 8 % 256], axis=-1).astype(np.uint8))


def played(tiny: Any, image: Image.Image, num_tool_turns: int) -> Trajectory:
    factory = make_environment_factory({"name": "tools", "tools": ["image_zoom_in_tool"]})
    rollouts = Rollouts(
        engine=ScriptedStreams(tiny.processor.tokenizer, {QUESTION: SAID[num_tool_turns]}),
        renderer=Renderer(tiny.processor, tiny.facts, max_length=1 << 16),
        decode=lambda ids: tiny.processor.tokenizer.decode(list(ids), skip_special_tokens=False),
        environments={"look": TaskEnvironment(make=factory)},
    )
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    row = Example(id="row:1", task="look", messages=(asked,), images=(image,))
    ((trajectory,),) = rollouts.roll([row], group_size=1, sampling=Sampling(max_new_tokens=256)).groups
    rollouts.close()
    return trajectory


def conversation(image: Image.Image, num_tool_turns: int) -> list[dict[str, Any]]:
    """The same episode as messages, with crops cut here."""
    left = cropped(image, LEFT)
    shown = [[left], [cropped(left, MIDDLE)], [cropped(image, LOW), NO_SUCH_IMAGE], []]
    asked = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    for text, answers in zip(SAID[num_tool_turns], shown if num_tool_turns else [[]], strict=False):
        messages.append({"role": "assistant", "content": text})
        if len(messages) < 2 * (num_tool_turns + 1):
            messages += [{"role": "tool", "content": _content(answer)} for answer in answers]
    return messages


def _content(answer: Image.Image | str) -> Any:
    return answer if isinstance(answer, str) else [{"type": "image", "image": answer}]


def cropped(image: Image.Image, box: Sequence[int]) -> Image.Image:
    x1, y1, x2, y2 = (side / 1000 * size for side, size in zip(box, image.size * 2, strict=True))
    height, width = smart_resize(y2 - y1, x2 - x1, 32, 256 * 32 * 32, 12_845_056)  # type: ignore[arg-type]
    crop = image.crop((round(x1), round(y1), round(x2), round(y2)))
    return crop.resize((width, height), Image.Resampling.BICUBIC)


def read(tiny: Any, messages: list[dict[str, Any]], tools: Any) -> Read:
    """By the processor's `apply_chat_template` and the model's `get_rope_index`; the mask from the turns' marks."""
    made = tiny.processor.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=False
    )
    ids_1T = made["input_ids"]
    text = tiny.processor.tokenizer.decode(ids_1T[0].tolist(), skip_special_tokens=False)
    assert text.endswith("<|im_end|>\n")
    ids_1T = ids_1T[:, : -len(tiny.processor.tokenizer.encode("\n"))]
    positions, _ = tiny.model.model.get_rope_index(
        ids_1T,
        mm_token_type_ids=(ids_1T == tiny.facts.image_token_id).int(),
        image_grid_thw=made["image_grid_thw"],
        attention_mask=torch.ones_like(ids_1T),
    )
    ids = ids_1T[0].tolist()
    start = tiny.processor.tokenizer.encode("<|im_start|>assistant\n")
    end = tiny.processor.tokenizer.encode("<|im_end|>")[0]
    mask, says = np.zeros(len(ids), dtype=bool), False
    for k, token in enumerate(ids):
        mask[k] = says
        says = (says and token != end) or ids[k + 1 - len(start) : k + 1] == start
    return Read(np.array(ids), mask, positions[:, 0].numpy(), made["pixel_values"])


def trained(tiny: Any, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, mask and positions as the trainer packs them."""
    sequence = TokenSequence(
        token_ids=trajectory.token_ids,
        mask=trajectory.mask,
        images=trajectory.images,
        prefix_length=trajectory.prompt_length,
    )
    (row,) = pack([sequence], tiny.facts, Budget(tokens=1 << 20))
    mask = np.zeros(len(row.token_ids_L), dtype=bool)
    mask[row.predictor_T.numpy() + 1] = True
    assert np.array_equal(row.token_ids_L.numpy()[mask], row.targets_T.numpy())
    return row.token_ids_L.numpy(), mask, row.position_ids_RL.numpy()


def check_episode(tiny: Any, image: Image.Image, num_tool_turns: int) -> None:
    trajectory = played(tiny, image, num_tool_turns)
    assert trajectory.status is Status.FINISHED and len(trajectory.turns) == num_tool_turns + 1
    theirs = read(tiny, conversation(image, num_tool_turns), [dict(tool) for tool in trajectory.tools])
    token_ids, mask, positions = trained(tiny, trajectory)
    assert token_ids.tolist() == theirs.token_ids.tolist()
    assert mask.tolist() == theirs.mask.tolist() == trajectory.mask.tolist()
    assert np.array_equal(positions, theirs.positions)
    assert len(trajectory.images) == num_tool_turns + 1
    assert torch.equal(torch.cat([shown.pixel_values_PD for shown in trajectory.images]), theirs.pixels)


@pytest.mark.parametrize("num_tool_turns", [0, 1, 3])
def test_an_episode_with_a_drawn_image_is_what_transformers_reads(num_tool_turns: int, tiny: Any) -> None:
    check_episode(tiny, drawn(), num_tool_turns)


@pytest.mark.parametrize("num_tool_turns", [0, 1, 3])
def test_an_episode_with_a_photograph_is_what_transformers_reads(
    num_tool_turns: int, tiny: Any, shared_data: Path
) -> None:
    photos = sorted((shared_data / "photos").iterdir())
    assert len(photos) >= 3
    for photo in photos:
        check_episode(tiny, open_image(photo.name, root=photo.parent, row=photo.name), num_tool_turns)


def checksum(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<i8").tobytes()).hexdigest()[:16]


GOLDEN: dict[int, dict[str, Any]] = {
    0: {
        "tokens": 979,
        "trained": 10,
        "grids": [(1, 26, 36)],
        "turns": [(969, 979)],
        "last_position": 762,
        "token_ids": "2d2c1ec27073f0c4",
        "mask": "82fcbc08c1227bfe",
        "positions": "7a524de9b42c2863",
    },
    1: {
        "tokens": 1275,
        "trained": 57,
        "grids": [(1, 26, 36), (1, 26, 36)],
        "turns": [(969, 1016), (1265, 1275)],
        "last_position": 842,
        "token_ids": "acf09f0efaea093d",
        "mask": "fb1139c3e1112956",
        "positions": "6bae3f01235c9654",
    },
    3: {
        "tokens": 1926,
        "trained": 160,
        "grids": [(1, 26, 36), (1, 26, 36), (1, 18, 52), (1, 26, 36)],
        "turns": [(969, 1004), (1253, 1298), (1547, 1617), (1916, 1926)],
        "last_position": 1069,
        "token_ids": "a16197e135b3b6be",
        "mask": "f8e6d3868d6a37ae",
        "positions": "5072f2b6ec4c0334",
    },
}
"""Tool turns -> an episode's numbers; checksums are of 64-bit integers."""


@pytest.mark.parametrize("num_tool_turns", [0, 1, 3])
def test_the_episodes_with_the_drawn_image_have_these_numbers(num_tool_turns: int, tiny: Any) -> None:
    trajectory = played(tiny, drawn(), num_tool_turns)
    token_ids, mask, positions = trained(tiny, trajectory)
    found = {
        "tokens": len(token_ids),
        "trained": int(mask.sum()),
        "grids": [image.grid_thw for image in trajectory.images],
        "turns": [(turn.start, turn.end) for turn in trajectory.turns],
        "last_position": int(positions.max()),
        "token_ids": checksum(token_ids),
        "mask": checksum(mask),
        "positions": checksum(positions),
    }
    assert found == GOLDEN[num_tool_turns]
    assert token_ids[:3].tolist() == [436, 272, 198], "<|im_start|>, system, a line break"
    assert token_ids[-3:].tolist() == [22, 13, 437], "7, a full stop, <|im_end|>"
