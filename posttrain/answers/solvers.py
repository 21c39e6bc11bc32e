"""Scripted solvers: programs that know the reference and play an episode as it should be played, to be imitated."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

from posttrain.environments import ToolError
from posttrain.environments.options import checked_options, imported
from posttrain.environments.zoom import pixel_box
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example, Turn
from posttrain.rewards.registry import nearest

Solver = Callable[[Example, Sequence[Turn], random.Random], str]
"""(example, turns so far with what was observed, a generator of the episode's own) -> the next turn's text."""

Mistake = Literal["image", "argument", "box", "tool", "json"]
"""What is wrong with a call: it names an image that is not there, lacks its box, gives the corners of the box in the
wrong order, names a tool that is not there, or is cut off within its JSON."""


@runtime_checkable
class ValidatingSolver(Protocol):
    """A solver that can say beforehand which rows it cannot play."""

    def validate(self, example: Example) -> None:
        """Raises DataError for such a row; `posttrain check` asks. Other solvers are asked for their first turn."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoomSolver:
    """Zooms into the row's box with `image_zoom_in_tool`, then gives its answer.

    The row's reference needs `bbox_2d` (four numbers, 0-1000) and `answer`; `label` is what the call names.
    """

    loose: float = 0.0
    """Chance that a side of the box lies further out, so that a policy has something left to learn."""
    loose_by: int = 125
    """How far, in thousandths of the image."""
    fail_frac: float = 0.0
    """Share of episodes that begin with a failing call, read its error, and mend it."""
    fail_kinds: tuple[Mistake, ...] = ("image",)
    """What may be wrong with that call: one of image, argument, box, tool and json, drawn for each."""
    thought: str = ""
    """Said in <think> tags before each call; nothing is thought where it is empty."""
    answer: str = "{answer}"
    """The last turn, such as `<answer>{answer}</answer>`."""

    def __post_init__(self) -> None:
        known = get_args(Mistake)
        if not self.fail_kinds or any(kind not in known for kind in self.fail_kinds):
            raise ConfigError(f"solver 'zoom': fail_kinds must name some of {', '.join(known)}, got {self.fail_kinds}")

    def validate(self, example: Example) -> None:
        reference = example.reference
        if not _is_box(reference.get("bbox_2d")) or "answer" not in reference:
            raise DataError(f"{example.id}: the zoom solver needs 'bbox_2d' (four numbers) and 'answer' in its row")
        try:
            pixel_box(reference["bbox_2d"], (1000, 1000))
        except ToolError as error:
            raise DataError(f"{example.id}: the zoom solver cannot look into its row's box: {error}") from error

    def __call__(self, example: Example, turns: Sequence[Turn], draw: random.Random) -> str:
        """Raises DataError for a row that it cannot play."""
        self.validate(example)
        reference = example.reference
        if turns and not any(call.error for call in turns[-1].calls):
            return self.answer.replace("{answer}", str(reference["answer"]))
        fails = not turns and draw.random() < self.fail_frac
        outward = (-self.loose_by, -self.loose_by, self.loose_by, self.loose_by)
        box = [
            min(1000, max(0, side + (by if draw.random() < self.loose else 0)))
            for side, by in zip(reference["bbox_2d"], outward, strict=True)
        ]
        arguments = {"bbox_2d": box, "label": str(reference.get("label") or ""), "img_idx": 0}
        call = json.dumps({"name": _TOOL, "arguments": arguments})
        if fails:
            kinds = self.fail_kinds
            call = _mistaken(kinds[0] if len(kinds) == 1 else draw.choice(kinds), arguments, len(example.images))
        thought = f"<think>\n{self.thought}\n</think>\n\n" if self.thought else ""
        return f"{thought}<tool_call>\n{call}\n</tool_call>"


_TOOL = "image_zoom_in_tool"


def _mistaken(kind: Mistake, arguments: dict[str, Any], num_images: int) -> str:
    """The call with one mistake, which fails whatever the row shows."""
    name = _TOOL
    match kind:
        case "image":
            arguments = {**arguments, "img_idx": num_images}
        case "argument":
            arguments = {key: value for key, value in arguments.items() if key != "bbox_2d"}
        case "box":
            x1, y1, x2, y2 = arguments["bbox_2d"]
            arguments = {**arguments, "bbox_2d": [x2, y2, x1, y1]}
        case "tool":
            name = "image_zoom"
        case "json":
            return json.dumps({"name": name, "arguments": arguments})[:-1]
    return json.dumps({"name": name, "arguments": arguments})


SOLVERS: Mapping[str, Callable[..., Solver]] = {"zoom": ZoomSolver}


def make_solver(name: str, options: Mapping[str, Any]) -> Solver:
    """A built-in solver with options, or `module:function` of your own (a class or a factory where options are given).

    Raises ConfigError naming the nearest valid name or option.
    """
    if name in SOLVERS:
        return SOLVERS[name](**checked_options(SOLVERS[name], options, f"solver '{name}'"))
    if ":" not in name:
        raise ConfigError(f"there is no solver '{name}'{nearest(name, SOLVERS)}; your own is named module:function")
    made = imported(name, "solver")
    if options or isinstance(made, type):
        made = made(**checked_options(made, options, f"solver '{name}'"))
    if not callable(made):
        raise ConfigError(
            f"solver '{name}' is {type(made).__name__}; wanted a function (example, turns, random) -> text"
        )
    return cast(Solver, made)


def _is_box(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 4 and all(isinstance(side, int | float) for side in value)


__all__ = ["SOLVERS", "Mistake", "Solver", "ValidatingSolver", "ZoomSolver", "make_solver"]
