"""Supervised fine-tuning on a mixed-length multimodal set, forward and backward, against TRL's SFTTrainer.

TRL pads: it refuses to pack multimodal data. It runs `SFTTrainer.compute_loss` on batches of 8 collated beforehand,
drawn at random ("plain" scores every position, as on a CPU; "compact" the trained ones, as on CUDA), and once more on
batches grouped by length ("grouped", compact too). Ours packs the same samples into rows under a token budget, packing
timed. All take the same samples through one optimiser step and give entropy and accuracy. float32, no optimiser.
The more samples there are to group (`--samples`), the less do grouped batches pad, at the price of less random ones:
1.6 times the real tokens at 16 samples, 1.3 times at 32.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _harness import arguments, finish, gradient_error, gradients_of, interleave, peak_mib, settle, show
from _problem import Draw, join, load_subject
from _trl import row_compaction, sft_inputs, sft_trainer
from posttrain.model import Budget, ModelFacts, PackedPolicy, TokenSequence, pack
from torch import Tensor

BATCH = 8
BUDGET = Budget(tokens=2048)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--samples", type=int, default=16, help="samples in the step (default 16: two batches)")
    options = parser.parse_args()
    settle(options)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), num_samples=options.samples)
        figures, cells = bench.measure(options.repeats)
    finish("sft_packing", figures, cells, quick=options.quick)


class Bench:
    """Two models of the same weights, so that neither side's changes to its model serve the other."""

    def __init__(self, folder: Path, num_samples: int) -> None:
        peer, subject = load_subject(folder), load_subject(folder)
        self.facts = subject.facts
        self.trainer = sft_trainer(peer.model, peer.processor, folder, batch=BATCH)
        self.policy = PackedPolicy(subject.model, subject.facts)
        self.models = {"ours": subject.model} | dict.fromkeys(("plain", "compact", "grouped"), peer.model)
        self.samples = draw_samples(subject.facts, num_samples)
        self.num_trained = sum(sample.num_trained for sample in self.samples)
        by_length = sorted(self.samples, key=lambda sample: sample.num_tokens)
        self.random_batches = [sft_inputs(batch, self.facts) for batch in _batches(self.samples)]
        self.grouped_batches = [sft_inputs(batch, self.facts) for batch in _batches(by_length)]

    def measure(self, repeats: int) -> tuple[dict[str, object], list[dict[str, object]]]:
        sides: dict[str, Callable[[], float]] = {
            "plain": lambda: self.theirs(self.random_batches, compact=False),
            "compact": lambda: self.theirs(self.random_batches, compact=True),
            "grouped": lambda: self.theirs(self.grouped_batches, compact=True),
            "ours": self.ours,
        }
        losses, gradients = {}, {}
        for name, side in sides.items():
            losses[name] = side()
            gradients[name] = gradients_of(self.models[name])
        errors = {name: gradient_error(found, gradients["compact"]) for name, found in gradients.items()}
        gradients.clear()
        times = interleave(sides, repeats, before=lambda name: self.models[name].zero_grad())
        mib = {}
        for name, side in sides.items():
            self.models[name].zero_grad()
            mib[name] = peak_mib(side)
        real = sum(sample.num_tokens for sample in self.samples)
        tokens = dict.fromkeys(("plain", "compact"), _padded(self.random_batches))
        tokens |= {"grouped": _padded(self.grouped_batches), "ours": real}
        rows = [
            (
                name,
                tokens[name],
                times[name],
                times[name].median_s / times["ours"].median_s,
                times[name].min_s / times["ours"].min_s,
                times[name].cpu_s / times["ours"].cpu_s,
                round(mib[name]),
                mib[name] / mib["ours"],
                f"{abs(losses[name] / losses['compact'] - 1):.0e}",
                f"{errors[name].worst:.0e}",
            )
            for name in sides
        ]
        columns = (
            "",
            "tokens",
            "s, median (min)",
            "time / ours",
            "(minima)",
            "(cpu)",
            "MiB",
            "MiB / ours",
            "loss error",
            "gradient",
        )
        show(f"SFT of {len(self.samples)} samples, forward and backward; errors are to compact", columns, rows)
        figures: dict[str, object] = {
            f"time_ratio_{name}": round(times[name].median_s / times["ours"].median_s, 2)
            for name in ("compact", "plain", "grouped")
        }
        figures["memory_ratio_compact"] = round(mib["compact"] / mib["ours"], 2)
        figures["worst_gradient_error"] = errors["ours"].worst
        cells = [
            {
                "side": name,
                "tokens": tokens[name],
                "mib": mib[name],
                **asdict(times[name]),
                "error": asdict(errors[name]),
            }
            for name in sides
        ]
        return figures, cells

    def theirs(self, batches: Sequence[dict[str, Any]], *, compact: bool) -> float:
        total = 0.0
        with row_compaction(compact):
            for batch in batches:
                loss = self.trainer.compute_loss(
                    self.models["compact"], dict(batch), num_items_in_batch=self.num_trained
                )
                loss.backward()
                total += float(loss.detach())
        return total

    def ours(self) -> float:
        def token_loss(logprobs_T: Tensor, span: slice) -> Tensor:
            return -logprobs_T / self.num_trained

        total = 0.0
        for row in pack(self.samples, self.facts, BUDGET):
            loss = self.policy(row, token_loss).loss
            loss.backward()
            total += float(loss.detach())
        return total


def draw_samples(facts: ModelFacts, count: int) -> list[TokenSequence]:
    """70 % with one image, 15 % with two, 15 % text alone; images of 12-44 patches a side, log-normal texts."""
    draw = Draw(facts, seed=1)
    samples = []
    for _ in range(count):
        kind = draw.random.random()
        num_images = 1 if kind < 0.7 else 2 if kind < 0.85 else 0
        images = [draw.image(2 * draw.random.randint(6, 22), 2 * draw.random.randint(6, 22)) for _ in range(num_images)]
        prompt = draw.prompt(draw.length(40, 0.7, 10, 400), images)
        samples.append(join(prompt, draw.text(draw.length(110, 0.9, 4, 1024)), images, shared=False))
    return samples


def _batches(samples: Sequence[TokenSequence]) -> list[Sequence[TokenSequence]]:
    return [samples[BATCH * i : BATCH * (i + 1)] for i in range(math.ceil(len(samples) / BATCH))]


def _padded(batches: Sequence[dict[str, Any]]) -> int:
    return sum(batch["input_ids"].numel() for batch in batches)


if __name__ == "__main__":
    main()
