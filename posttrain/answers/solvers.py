"""Scripted solvers: programs that know the reference and play an episode as it should be played, to be imitated."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from posttrain.environments.options import checked_options, imported
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example, Turn
from posttrain.rewards.registry import nearest

Solver = Callable[[Example, Sequence[Turn], random.Random], str]
"""(example, turns so far with what was observed, a generator of the episode's own) -> the next turn's text."""


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
    """Share of episodes that first name an image which is not there, read the error, and mend the call."""
    thought: str = ""
    """Said in <think> tags before each call; nothing is thought where it is empty."""
    answer: str = "{answer}"
    """The last turn, such as `<answer>{answer}</answer>`."""

    def __call__(self, example: Example, turns: Sequence[Turn], draw: random.Random) -> str:
        reference = example.reference
        if not _is_box(reference.get("bbox_2d")) or "answer" not in reference:
            raise DataError(f"{example.id}: the zoom solver needs 'bbox_2d' (four numbers) and 'answer' in its row")
        if turns and not any(call.error for call in turns[-1].calls):
            return self.answer.replace("{answer}", str(reference["answer"]))
        fails = not turns and draw.random() < self.fail_frac
        outward = (-self.loose_by, -self.loose_by, self.loose_by, self.loose_by)
        box = [
            min(1000, max(0, side + (by if draw.random() < self.loose else 0)))
            for side, by in zip(reference["bbox_2d"], outward, strict=True)
        ]
        label = str(reference.get("label") or "")
        arguments = {"bbox_2d": box, "label": label, "img_idx": len(example.images) if fails else 0}
        call = json.dumps({"name": "image_zoom_in_tool", "arguments": arguments})
        thought = f"<think>\n{self.thought}\n</think>\n\n" if self.thought else ""
        return f"{thought}<tool_call>\n{call}\n</tool_call>"


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


__all__ = ["SOLVERS", "Solver", "ZoomSolver", "make_solver"]
