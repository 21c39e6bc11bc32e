"""Grounding answers with 20 boxes each: read, matched and scored; and how long importing the rewards takes.

The boxes of an answer are those of its reference, moved by up to a fiftieth of the image, some left out and some
twice, in Qwen3-VL's JSON after a thought. No peer: TRL has no reward for boxes.
"""

import random
import statistics
import subprocess
import sys

from _harness import arguments, finish, interleave, settle, show
from posttrain.rewards import Box, Completion, GroundingBoxes, write_boxes

NUM_ANSWERS = 10_000
NUM_BOXES = 20
LABELS = ("person", "car", "traffic light", "dog", "bicycle")
IMPORT = """
import sys, time
start = time.perf_counter()
import posttrain.rewards
seconds = time.perf_counter() - start
heavy = {"torch", "transformers", "numpy", "scipy", "sympy", "pydantic"} & set(sys.modules)
print(seconds, *heavy)
"""


def main() -> None:
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    settle(options)
    answers = make_answers(500 if options.quick else NUM_ANSWERS)
    rewards = {
        "F1 over ten thresholds": GroundingBoxes(),
        "IoU, with penalties": GroundingBoxes(measure="iou", spam_penalty=0.5, duplicate_penalty=0.5),
    }
    means: dict[str, float] = {}

    def score(name: str) -> None:
        values = [rewards[name](completion, reference).value or 0.0 for completion, reference in answers]
        means[name] = statistics.mean(values)

    for name in rewards:
        score(name)
    times = interleave(
        {name: lambda name=name: score(name) for name in rewards}, options.repeats, before=lambda name: None
    )
    imports = [import_seconds() for _ in range(3 if options.quick else 11)][1:]
    cells: list[dict[str, object]] = [
        {
            "reward": name,
            "ms_per_answer": round(times[name].median_s / len(answers) * 1000, 3),
            "ms_per_answer_min": round(times[name].min_s / len(answers) * 1000, 3),
            "mean_reward": round(means[name], 3),
        }
        for name in rewards
    ]
    columns = ("", "ms an answer, median", "(min)", "mean reward")
    show(f"{len(answers)} answers with {NUM_BOXES} boxes", columns, [tuple(cell.values()) for cell in cells])
    figures = {
        "ms_per_answer": max(float(str(cell["ms_per_answer"])) for cell in cells),
        "import_s": round(statistics.median(imports), 3),
        "import_s_min": round(min(imports), 3),
    }
    finish("rewards_grounding", figures, cells, quick=options.quick)


def make_answers(count: int) -> list[tuple[Completion, dict[str, object]]]:
    """Answers with their references; about as many boxes as `NUM_BOXES`."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        gold = [_box(rng) for _ in range(NUM_BOXES)]
        said = [_moved(box, rng) for box in gold if rng.random() > 0.1]
        said += rng.choices(said, k=NUM_BOXES - len(said))
        rng.shuffle(said)
        text = f"<think>There are about {NUM_BOXES} of them [maybe].</think>\nHere they are:\n{write_boxes(said)}"
        boxes = [{"bbox_2d": [box.x1, box.y1, box.x2, box.y2], "label": box.label} for box in gold]
        made.append((Completion(text=text), {"boxes": boxes}))
    return made


def _box(rng: random.Random) -> Box:
    x, y = rng.randrange(900), rng.randrange(900)
    return Box(x, y, x + rng.randint(20, 1000 - x), y + rng.randint(20, 1000 - y), rng.choice(LABELS))


def _moved(box: Box, rng: random.Random) -> Box:
    x1, y1, x2, y2 = (min(max(side + rng.randint(-20, 20), 0), 1000) for side in (box.x1, box.y1, box.x2, box.y2))
    return Box(x1, y1, max(x2, x1 + 1), max(y2, y1 + 1), box.label)


def import_seconds() -> float:
    """Of `import posttrain.rewards` in a new process. Raises RuntimeError where it loads a heavy package."""
    seconds, *heavy = subprocess.check_output([sys.executable, "-c", IMPORT], text=True).split()
    if heavy:
        raise RuntimeError(f"importing the rewards loads {', '.join(heavy)}")
    return float(seconds)


if __name__ == "__main__":
    main()
