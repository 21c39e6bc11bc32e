"""RL with SAPO and a reward that is a plain function: it mends what supervised training on bad labels left wrong.

    python examples/sapo_custom_reward.py             # half a minute on one CPU core, no download
    python examples/sapo_custom_reward.py --steps 3   # a few seconds, to see that it runs

Of the labels of the warm start 45 % are wrong, so that it has a ceiling. The reward compares with the true colour, and
SAPO goes past that ceiling. The model is a tiny random Qwen3-VL built on the spot.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from posttrain.model.families import Family
from posttrain.model.tiny import build_tiny

from posttrain import SAPOConfig, SAPOTrainer, SFTConfig, SFTTrainer

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40)}
TINY: Mapping[str, Any] = {"dtype": "float32"}


def rows(num_rows: int, *, seed: int, wrong: float = 0.0) -> list[dict[str, Any]]:
    """Rows in memory. `colour` is the truth; the assistant's turn, which SFT learns, is wrong with that chance."""
    draw = random.Random(seed)
    made = []
    for _ in range(num_rows):
        colour = draw.choice(list(COLOURS))
        picture = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(picture)
        x, y = draw.randrange(33), draw.randrange(33)
        draw.choice((pen.ellipse, pen.rectangle))((x, y, x + 30, y + 30), fill=COLOURS[colour])
        said = draw.choice([c for c in COLOURS if c != colour]) if draw.random() < wrong else colour
        made.append(
            {
                "messages": [
                    {"role": "user", "content": "<image>Which colour is the shape?"},
                    {"role": "assistant", "content": said},
                ],
                "images": [picture],
                "colour": colour,
            }
        )
    return made


def names_the_colour(completions: Sequence[Any], colour: Sequence[str], **_: Any) -> list[float]:
    """1 for the right colour and nothing else. As TRL's reward functions: lists in, one number for each completion out.

    Every column of the rows that is no part of the conversation arrives here under its name; None means "no verdict".
    """
    return [float(turns[0]["content"] == right) for turns, right in zip(completions, colour, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="of SAPO; the warm start takes as many")
    parser.add_argument("--output", type=Path, help="folder to write to; a temporary one unless told")
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="posttrain-sapo-"))
    torch.set_num_threads(1)  # tiny models only

    warm = SFTTrainer(
        model=build_tiny(Family.QWEN3_VL, folder / "tiny"),
        train_dataset=rows(512, seed=0, wrong=0.45),
        args=SFTConfig(
            output_dir=str(folder / "warm-start"),
            steps=options.steps,
            batch_size=8,
            learning_rate=5e-3,
            optimizer="muon",
        ),
        model_section=TINY,
    ).train()

    result = SAPOTrainer(
        model=warm.model_dir,
        reward_funcs=names_the_colour,
        train_dataset=rows(512, seed=1),  # the final assistant turn is left out of the prompt
        args=SAPOConfig(
            output_dir=str(folder / "sapo"),
            steps=options.steps,
            batch_size=8,  # prompts a step
            group_size=8,  # answers to each
            mini_batches=2,  # optimiser steps on each batch of rollouts: the second is off-policy, and the gate acts
            max_new_tokens=8,
            learning_rate=5e-4,
            importance_cap=None,  # the engine is the trained model itself: its log-probabilities are the trainer's
        ),
        model_section=TINY,
    ).train()

    metrics = [json.loads(line) for line in (folder / "sapo/stages/sapo/metrics.jsonl").open(encoding="utf-8")]
    print(f"mean reward {metrics[0]['reward']:.2f} -> {metrics[-1]['reward']:.2f} in {result.steps} steps")
    print(f"model   {result.model_dir}\nreport  {result.report}")


if __name__ == "__main__":
    main()
