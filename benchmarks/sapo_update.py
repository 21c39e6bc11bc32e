"""One SAPO update, forward and backward, of a group under a prompt with images, against TRL's GRPOTrainer.

TRL runs `GRPOTrainer._compute_loss` (loss_type sapo) on inputs that are padded and collated beforehand; ours runs from
token sequences, packing included. "plain" is TRL on a CPU, which scores every position; "compact" is TRL with the row
compaction that its CUDA users get: ratios carry over to a GPU from "compact" alone. float32, no optimiser.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import (
    GradientError,
    Timing,
    arguments,
    finish,
    gradient_error,
    gradients_of,
    interleave,
    peak_mib,
    settle,
    show,
)
from _problem import Draw, join, load_subject
from _trl import grpo_inputs, grpo_loss, grpo_trainer, row_compaction
from posttrain.algorithms import Reduction, denominator_of, sapo_token_losses, token_weights
from posttrain.model import Budget, ModelFacts, PackedPolicy, TokenSequence, pack
from torch import Tensor
from transformers import PreTrainedModel

GRIDS = {256: ((28, 28),), 1024: ((42, 42), (42, 42))}
"""Patches of the images of a prompt, by the prompt's length: 196 and 882 of its tokens are the images'."""
WHOLE = Budget(tokens=1 << 40)
"""A group is one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    prompt: int
    completion: int
    """About the median; lengths are log-normal."""
    group: int

    def __str__(self) -> str:
        return f"{self.prompt} / {self.completion} / {self.group}"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        prompt, completion, group = (int(number) for number in text.split("/"))
        return cls(prompt=prompt, completion=completion, group=group)

    @property
    def plain_too(self) -> bool:
        """TRL without compaction is left out where it alone would take minutes."""
        return self.group * (self.prompt + 2 * self.completion) <= 12_500


HEADLINE = Cell(prompt=1024, completion=64, group=8)
GRID = tuple(Cell(prompt=p, completion=c, group=g) for p in (256, 1024) for c in (64, 256) for g in (4, 8, 16))
QUICK = (Cell(prompt=256, completion=64, group=8), HEADLINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One cell: variants are plain, compact (TRL's) and ours."""

    times: dict[str, Timing]
    mib: dict[str, float]
    loss_error: float
    """Relative to TRL's."""
    error: GradientError
    """Of our gradients against TRL's, both float32."""
    token_ratio: float
    """Padded tokens over packed ones."""

    def time_ratio(self, variant: str, of: str = "median_s") -> float:
        return getattr(self.times[variant], of) / getattr(self.times["ours"], of)

    def memory_ratio(self, variant: str) -> float:
        return self.mib[variant] / self.mib["ours"]


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument(
        "--cells", type=Cell.parse, nargs="+", help="these cells alone, as P/C/G; written where 1024/64/8 is among them"
    )
    options = parser.parse_args()
    settle(options)
    grid, headline = (QUICK if options.quick else GRID), HEADLINE
    if options.cells:
        grid, headline = tuple(options.cells), HEADLINE if HEADLINE in options.cells else options.cells[0]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        cells = {}
        for cell in grid:
            cells[cell] = bench.measure(cell, options.repeats)
            print(f"{cell}: {cells[cell].time_ratio('compact'):.2f} x", flush=True)
        worst = max(cells, key=lambda cell: cells[cell].error.worst)
        references = {} if options.quick else bench.against_float64(worst)
    show_cells(cells)
    print(f"The worst gradient is that of {cells[worst].error.parameter} at {worst}.")
    for side, error in references.items():
        print(f"There, against a float64 reference: {side} is off by {error.worst:.1e} in {error.parameter}.")
    chosen = cells[headline]
    figures: dict[str, object] = {
        "time_ratio_compact": round(chosen.time_ratio("compact"), 2),
        "time_ratio_plain": round(chosen.time_ratio("plain"), 2) if "plain" in chosen.times else None,
        "cpu_time_ratio_compact": round(chosen.time_ratio("compact", "cpu_s"), 2),
        "memory_ratio_compact": round(chosen.memory_ratio("compact"), 2),
        "worst_gradient_error": cells[worst].error.worst,
        "worst_gradient_error_l2": max(m.error.l2 for m in cells.values()),
    }
    figures |= {f"worst_cell_{side}_error_to_float64": error.worst for side, error in references.items()}
    finish(
        "sapo_update",
        figures,
        [record(cell, m) for cell, m in cells.items()],
        quick=options.quick or HEADLINE not in grid,
    )


class Bench:
    """Two models of the same weights, so that neither side's changes to its model serve the other."""

    def __init__(self, folder: Path) -> None:
        peer, subject = load_subject(folder), load_subject(folder)
        self.facts = subject.facts
        self.trainer = grpo_trainer(peer.model, peer.processor, folder, batch=HEADLINE.group)
        self.policy = PackedPolicy(subject.model, subject.facts)
        self.models = {"plain": peer.model, "compact": peer.model, "ours": subject.model}

    def measure(self, cell: Cell, repeats: int) -> Measured:
        sequences = self.draw(cell)
        inputs = grpo_inputs(sequences, self.facts)
        sides: dict[str, Callable[[], float]] = {
            "compact": lambda: self.theirs(inputs, compact=True),
            "ours": lambda: self.ours(sequences),
        }
        if cell.plain_too:
            sides = {"plain": lambda: self.theirs(inputs, compact=False), **sides}
        losses, gradients = {}, {}
        for name, side in sides.items():
            losses[name] = side()
            gradients[name] = gradients_of(self.models[name])
        error = gradient_error(gradients["ours"], gradients["compact"])
        gradients.clear()
        times = interleave(sides, repeats, before=lambda name: self.models[name].zero_grad())
        mib = {}
        for name, side in sides.items():
            mib[name] = peak_mib(side)
            self.models[name].zero_grad()
        padded = inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
        return Measured(
            times=times,
            mib=mib,
            loss_error=abs(losses["ours"] - losses["compact"]) / abs(losses["compact"]),
            error=error,
            token_ratio=padded / sum(row.num_tokens for row in pack(sequences, self.facts, WHOLE)),
        )

    def draw(self, cell: Cell) -> list[TokenSequence]:
        """A group with random advantages, whose behaviour log-probs are the policy's with noise: the gate acts."""
        draw = Draw(self.facts, seed=0)
        images = [draw.image(height, width) for height, width in GRIDS[cell.prompt]]
        marks = sum(image.num_tokens(self.facts.merge_size) + 2 for image in images)
        prompt = draw.prompt(cell.prompt - marks, images)
        sequences = []
        for _ in range(cell.group):
            length = draw.length(cell.completion, 0.5, cell.completion / 4, 2.5 * cell.completion)
            advantage = draw.random.gauss(0, 1)
            sequences.append(join(prompt, draw.text(length), images, shared=True, advantage=advantage))
        for place, logprobs_T in enumerate(self.policy.logprobs(sequences, WHOLE)):
            sequence = sequences[place]
            stale = np.zeros(sequence.num_tokens, dtype=np.float32)
            stale[sequence.mask] = logprobs_T.numpy() + draw.arrays.normal(0, 0.2, len(logprobs_T))
            sequences[place] = replace(sequence, streams={**sequence.streams, "behaviour_logprobs": stale})
        return sequences

    def theirs(self, inputs: dict[str, Any], *, compact: bool) -> float:
        with row_compaction(compact):
            loss = grpo_loss(self.trainer, inputs)
            loss.backward()
        return float(loss.detach())

    def ours(self, sequences: Sequence[TokenSequence]) -> float:
        (row,) = pack(sequences, self.facts, WHOLE)
        denominator = denominator_of(row.lengths_S, Reduction.SEQUENCE_MEAN)
        weights_T = token_weights(row.lengths_S, row.sequence_index_T, Reduction.SEQUENCE_MEAN, denominator=denominator)

        def token_loss(logprobs_T: Tensor, span: slice) -> Tensor:
            return weights_T[span] * sapo_token_losses(
                logprobs_T=logprobs_T,
                old_logprobs_T=row.streams["behaviour_logprobs"][span],
                advantages_T=row.streams["advantages"][span],
            )

        loss = self.policy(row, token_loss).loss
        loss.backward()
        return float(loss.detach())

    def against_float64(self, cell: Cell) -> dict[str, GradientError]:
        """Both sides' errors against transformers in float64, one sequence at a time, and SAPO by its formula."""
        sequences = self.draw(cell)
        inputs = grpo_inputs(sequences, self.facts)
        self.theirs(inputs, compact=True)
        self.ours(sequences)
        gradients = {name: gradients_of(self.models[name]) for name in ("compact", "ours")}
        model = self.models["compact"].double()
        for sequence in sequences:
            _float64_loss(model, self.facts, sequence, len(sequences)).backward()
        reference = gradients_of(model)
        model.float()
        return {name: gradient_error(found, reference) for name, found in gradients.items()}


def _float64_loss(model: PreTrainedModel, facts: ModelFacts, sequence: TokenSequence, num_sequences: int) -> Tensor:
    ids = torch.from_numpy(sequence.token_ids)[None]
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == facts.image_token_id).int(),
        pixel_values=torch.cat([image.pixel_values_PD for image in sequence.images]).double(),
        image_grid_thw=torch.tensor([image.grid_thw for image in sequence.images]),
    ).logits[0, :-1]
    trained = torch.from_numpy(sequence.mask[1:])
    logprobs_T = logits[trained].log_softmax(-1).gather(1, ids[0, 1:, None][trained])[:, 0]
    old = torch.from_numpy(sequence.streams["behaviour_logprobs"][sequence.mask]).double()
    advantage = float(sequence.streams["advantages"][-1])
    tau = 1.0 if advantage > 0 else 1.05
    gated = 4 / tau * torch.sigmoid(tau * ((logprobs_T - old).exp() - 1))
    return -advantage * gated.mean() / num_sequences


def show_cells(cells: dict[Cell, Measured]) -> None:
    columns = (
        "P / C / G",
        "plain s",
        "compact s",
        "ours s",
        "plain/ours",
        "compact/ours",
        "(minima)",
        "(cpu)",
        "tokens",
    )
    columns += ("MiB plain", "compact", "ours", "ratio", "loss error", "gradient", "L2")
    rows = []
    for cell, m in cells.items():
        plain = "plain" in m.times
        rows.append(
            (
                cell,
                m.times["plain"] if plain else "-",
                m.times["compact"],
                m.times["ours"],
                m.time_ratio("plain") if plain else "-",
                m.time_ratio("compact"),
                m.time_ratio("compact", "min_s"),
                m.time_ratio("compact", "cpu_s"),
                m.token_ratio,
                round(m.mib["plain"]) if plain else "-",
                round(m.mib["compact"]),
                round(m.mib["ours"]),
                m.memory_ratio("compact"),
                f"{m.loss_error:.0e}",
                f"{m.error.worst:.0e}",
                f"{m.error.l2:.0e}",
            )
        )
    show("SAPO update, forward and backward; seconds are median (min)", columns, rows)


def record(cell: Cell, m: Measured) -> dict[str, object]:
    """What the results file keeps of a cell."""
    return {**asdict(cell), **asdict(m)}


if __name__ == "__main__":
    main()
