"""An environment of your own in thirty lines, and a tool that is a plain function; a script plays the policy.

    python examples/environment.py          # seconds; needs no model
    python examples/environment.py MODEL    # trains a Qwen-VL checkpoint in it: `train` below

`Treasure` shows a map after every guess. A policy that looks at it needs few guesses; the scripted one does look. In a
recipe, with this folder on the import path (`PYTHONPATH=examples posttrain run mine.yaml`), it is

    environments:
      treasure: {name: "environment:Treasure", options: {side: 8}, max_turns: 10, max_images: 10}
    rewards:
      treasure: {rewards: [{name: "environment:few_guesses"}]}
"""

import sys
from typing import Any

import numpy as np
from PIL import Image

from posttrain.environments import (
    Done,
    Observation,
    Opening,
    Reply,
    ToolContext,
    ToolEnvironment,
    parse_reply,
    register_environment,
)
from posttrain.errors import DataError
from posttrain.records import Example

CELL = 32
"""Pixels."""


@register_environment("treasure")
class Treasure:
    """Each wrong guess colours its cell on the map, the brighter the nearer; the reference holds the right `cell`."""

    def __init__(self, *, side: int = 8) -> None:
        self.side = side  # options are what __init__ takes by name, checked against its annotations

    def validate(self, example: Example) -> None:
        if example.reference.get("cell") not in range(self.side**2):
            raise DataError(f"{example.id}: 'cell' must be a whole number from 0 to {self.side**2 - 1}")

    def start(self, example: Example) -> Opening:
        self.map = Image.new("RGB", (CELL * self.side, CELL * self.side))
        self.treasure = divmod(example.reference["cell"], self.side)
        return Opening(
            messages=(self.turn("In which cell is it? Cells are counted row by row."),), images=(self.map.copy(),)
        )

    def step(self, reply: Reply) -> Observation | Done:
        said = reply.text.split()[-1] if reply.text.split() else ""
        if not said.isdecimal() or int(said) >= self.side**2:  # the policy's fault: it is told, and goes on
            return Observation(messages=({"role": "user", "content": "End with the number of a cell."},))
        row, column = divmod(int(said), self.side)
        if (row, column) == self.treasure:
            return Done()  # the reply was the answer: rewards judge it
        distance = abs(row - self.treasure[0]) + abs(column - self.treasure[1])
        self.map.paste((255 - 10 * distance, 0, 0), (CELL * column, CELL * row, CELL * (column + 1), CELL * (row + 1)))
        return Observation(messages=(self.turn("It is not there."),), images=(self.map.copy(),))

    def turn(self, text: str) -> dict[str, object]:
        return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}

    def close(self) -> None:
        self.map.close()  # what `start` made; here a simulator's process would end


def few_guesses(completions: list[list[dict[str, str]]], cell: list[int], **columns: Any) -> list[float]:
    """A reward in TRL's style: the turns of each episode in, with a column; out 1 / guesses where the last is right."""
    said = [[turn["content"].split() for turn in turns if turn["role"] == "assistant"] for turns in completions]
    return [(guesses[-1][-1:] == [str(right)]) / len(guesses) for guesses, right in zip(said, cell, strict=True)]


def train(model: str) -> None:
    from posttrain import SAPOConfig, SAPOTrainer  # takes seconds, which the script below need not wait for

    SAPOTrainer(
        model=model,
        reward_funcs=few_guesses,
        train_dataset=[{"prompt": "Find the treasure.", "task": "treasure", "cell": cell} for cell in range(64)],
        environments={"treasure": {"name": "treasure", "options": {"side": 8}, "max_turns": 10, "max_images": 10}},
        args=SAPOConfig(output_dir="runs/treasure", steps=50, batch_size=8, group_size=8, max_new_tokens=64),
    ).train()


def brightest(img_idx: int, context: ToolContext) -> str:
    """Find the brightest value of an image.

    Args:
        img_idx: The index of the image (starting from 0)
    """
    return str(np.asarray(context.image(img_idx)).max())


def play_treasure(cell: int) -> None:
    environment = Treasure(side=8)
    example = Example(id="treasure:0", task="treasure", messages=(), reference={"cell": cell})
    environment.validate(example)
    environment.start(example)
    candidates = list(range(64))
    for turn in range(1, 65):
        guess = candidates[0]
        seen = environment.step(parse_reply(f"I think it is in cell {guess}"))
        if isinstance(seen, Done):
            print(f"treasure: found in cell {guess} in turn {turn}")
            break
        x, y = guess % 8, guess // 8
        red = np.asarray(seen.images[0])[CELL * y, CELL * x, 0]  # looks at the map
        distance = (255 - int(red)) // 10
        candidates = [c for c in candidates if abs(c % 8 - x) + abs(c // 8 - y) == distance]
    environment.close()


def play_tools(image: Image.Image) -> None:
    environment = ToolEnvironment(tools=["image_zoom_in_tool", brightest])
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How bright is the corner?"}]}
    opening = environment.start(Example(id="tools:0", task="tools", messages=(question,), images=(image,)))
    print("tools:", ", ".join(tool["function"]["name"] for tool in opening.tools))
    for said in (
        '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 250, 250], "label": "corner", "img_idx": 0}}',
        '{"name": "brightest", "arguments": {"image": 1}}',  # a mistake: the policy reads what is wrong
        '{"name": "brightest", "arguments": {"img_idx": 1}}',  # images of tools are counted on
    ):
        seen = environment.step(parse_reply(f"<tool_call>\n{said}\n</tool_call>"))
        assert isinstance(seen, Observation)
        for call in seen.calls:
            print(f"  {call.name} -> {call.text or [image.size for image in seen.images]}")
    assert isinstance(environment.step(parse_reply("Its brightest value is 90.")), Done)
    environment.close()


def main() -> None:
    play_treasure(cell=42)
    image = Image.new("RGB", (256, 256), "white")
    image.paste((90, 0, 0), (0, 0, 128, 128))
    play_tools(image)


if __name__ == "__main__":
    train(sys.argv[1]) if sys.argv[1:] else main()
