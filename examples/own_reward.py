"""A reward of your own with options, parts and a check of the references: what a recipe or a trainer can name.

    python examples/own_reward.py         # a second; a reward needs no model and no torch

In a recipe: `rewards: {count: {rewards: [{name: "own_reward:Closeness", options: {tolerance: 3}}]}}`, run with
`PYTHONPATH=examples posttrain run mine.yaml`. In Python: `SAPOTrainer(reward_funcs=Closeness(tolerance=3), ...)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.rewards import BadReferenceError, Completion, Score, extract_answer, make_table, register


@register("closeness")
@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """1 for the right number, falling to 0 at `tolerance` off. The reference holds the number in `answer`."""

    tolerance: float = 5.0
    """Distance from which an answer is worth nothing."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        right = self._right(reference)
        answer = extract_answer(completion.text)  # of <answer>, \boxed{}, "answer is ...", or one short line
        try:
            given = float(answer or "")
        except ValueError:
            return Score(value=0.0, reason=f"{answer!r} is not a number")  # the policy's fault: 0, not unscored
        distance = abs(given - right)
        return Score(value=max(0.0, 1 - distance / self.tolerance), parts={"exact": float(distance == 0)})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """What earns full marks: `posttrain check` writes it for every row and scores it."""
        return f"<answer>{self._right(reference):g}</answer>"

    def _right(self, reference: Mapping[str, Any]) -> float:
        try:
            return float(reference["answer"])
        except (KeyError, TypeError, ValueError):
            raise BadReferenceError(f"wanted a number in 'answer', got {dict(reference)}") from None


def main() -> None:
    # How a task is scored: closeness counts 0.9, the layout 0.1, and exact_match is only logged.
    table = make_table(
        {
            "count": [
                {"name": "closeness", "tolerance": 4, "weight": 0.9},
                {"name": "format", "pattern": "boxed", "weight": 0.1},
                {"name": "exact_match", "weight": 0},
            ]
        }
    )
    for text in (r"There are \boxed{3}.", "2", "<answer>9</answer>", "I cannot tell."):
        score = table.score("count", Completion(text=text), {"answer": "3"})
        parts = ", ".join(f"{name} {value:g}" for name, value in score.parts.items())
        print(f"{text!r:24} earns {score.value:.3f}  ({parts}){'  ' + score.reason if score.reason else ''}")

    for reference in ({"answer": "3"}, {"answer": "three"}):
        print(f"{reference} is {table.check('count', reference) or 'a good reference'}")


if __name__ == "__main__":
    main()
