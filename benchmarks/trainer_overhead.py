"""The whole trainer against a bare loop of forward, backward and optimiser step on the same packed rows.

The trainer also renders (templates, tokenizer, images cut into patches), packs, clips, measures and writes metrics.
`efficiency` is the bare loop's time over the trainer's: the share of its time in which the trainer trains.
"""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _harness import arguments, finish, interleave, settle, show
from _problem import load_subject
from accelerate import Accelerator
from PIL import Image
from posttrain.model import Budget, PackedPolicy, PackedRow, pack
from torch import Tensor

from posttrain.batches import SupervisedBatches
from posttrain.data import Mixture, Renderer, from_rows
from posttrain.objectives import Supervised
from posttrain.optimizers import make_optimizers
from posttrain.runs import StageFolder
from posttrain.trainer import Trainer, TrainingSettings

WORDS = ("red", "blue", "circle", "square", "left", "right", "above", "below", "two", "plate", "digit", "where", "is")
BATCH_SIZE = 8
BUDGET = Budget(tokens=2048)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    settle(options)
    repeats = options.repeats if options.quick else max(options.repeats, 8)
    with TemporaryDirectory() as scratch:
        times, tokens = measure(Path(scratch), repeats)
    bare, whole = times["bare loop"], times["trainer"]
    rows = [[name, f"{t.median_s:.3f}", f"{t.min_s:.3f}", f"{tokens / t.median_s:,.0f}"] for name, t in times.items()]
    show("one step of supervised fine-tuning", ["", "median s", "min s", "tokens/s"], rows)
    figures = {
        "efficiency": round(bare.median_s / whole.median_s, 3),
        "efficiency_of_minima": round(bare.min_s / whole.min_s, 3),
        "tokens_per_s": round(tokens / whole.median_s),
    }
    finish(
        "trainer_overhead",
        figures,
        [dict(zip(("side", "median_s", "min_s", "tokens_per_s"), r, strict=True)) for r in rows],
        quick=options.quick,
    )


def measure(scratch: Path, repeats: int) -> tuple[dict, float]:
    """Timings of both sides, and the mean number of packed tokens of a step."""
    subject = load_subject(scratch / "model")
    renderer = Renderer(subject.processor, subject.facts, max_length=4096)
    mixture = Mixture({"rows": from_rows(examples(256))}, seed=0)
    policy = PackedPolicy(subject.model, subject.facts)
    trainer = Trainer(
        policy=policy,
        processor=subject.processor,
        objective=Supervised(),
        batches=SupervisedBatches(mixture, renderer, batch_size=BATCH_SIZE),
        settings=settings(repeats),
        folder=StageFolder(scratch / "stage"),
        accelerator=Accelerator(cpu=True),
    )
    source = SupervisedBatches(mixture, renderer, batch_size=BATCH_SIZE)
    steps = [pack(source.batch(step).mini_batches[0], subject.facts, BUDGET) for step in range(repeats + 1)]
    packed = [sum(row.num_tokens for row in rows) for rows in steps]
    (optimizer,) = make_optimizers(
        policy.model,
        subject.facts,
        kind="adamw",
        learning_rate=1e-5,
        learning_rates={},
        weight_decay=0.0,
        betas=(0.9, 0.95),
    )
    turn = {"bare loop": 0}

    def bare() -> None:
        bare_step(policy, steps[turn["bare loop"]], optimizer)
        turn["bare loop"] += 1

    def whole() -> None:
        trainer.train_step()
        trainer.step += 1

    bare()
    whole()
    times = interleave({"bare loop": bare, "trainer": whole}, repeats, before=lambda name: None)
    return times, float(np.mean(packed[1:]))


def bare_step(policy: PackedPolicy, rows: list[PackedRow], optimizer: torch.optim.Optimizer) -> None:
    total = sum(len(row.targets_T) for row in rows)

    def loss(logprobs_T: Tensor, span: slice) -> Tensor:
        return -logprobs_T / total

    for row in rows:
        policy(row, loss).loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def examples(count: int) -> list[dict]:
    """Conversations with one image of 256-448 pixels a side, and answers of 40-300 words."""
    draw, pixels = random.Random(0), np.random.default_rng(0)
    rows = []
    for _ in range(count):
        height, width = (32 * draw.randint(8, 14) for _ in range(2))
        image = Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
        question = " ".join(draw.choices(WORDS, k=draw.randint(10, 60)))
        answer = " ".join(draw.choices(WORDS, k=draw.randint(40, 300)))
        messages = [{"role": "user", "content": f"<image>{question}?"}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "images": [image]})
    return rows


def settings(steps: int) -> TrainingSettings:
    return TrainingSettings(
        steps=steps + 1,
        learning_rate=1e-5,
        learning_rates={},
        optimizer="adamw",
        weight_decay=0.0,
        betas=(0.9, 0.95),
        schedule="constant",
        warmup_frac=0.0,
        final_frac=1.0,
        max_grad_norm=1.0,
        budget=BUDGET,
        checkpoint_every=0,
        keep_checkpoints=1,
        seed=0,
        fingerprint="",
    )


if __name__ == "__main__":
    main()
