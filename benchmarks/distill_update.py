"""A whole on-policy distillation update with image prompts, forward and backward, against TRL's DistillationTrainer.

Student and teacher are scored on the same given completions; sampling is no part of it. Two cases: distinct prompts
with one completion each, which is what TRL's trainer samples, and one prompt with eight completions. TRL runs as it
does on CUDA, scoring trained tokens alone ("compact"), and as it does on a CPU ("plain"). float32.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from _problem import SIZE, TEACHER, Draw, join, load_subject
from _trl import distillation_loss, distillation_trainer, grpo_inputs, row_compaction
from posttrain.algorithms import Reduction, denominator_of, divergence, token_weights
from posttrain.model import Budget, DenseReference, Matching, PackedPolicy, TokenSequence, pack
from torch import Tensor

WHOLE = Budget(tokens=1 << 40)
GROUP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    case: str
    """distinct: eight prompts of 184-461 tokens with one or two images; group: one of 256 tokens, eight times."""
    beta: float
    vocabulary: int
    completion: int

    def __str__(self) -> str:
        return f"{self.case} beta {self.beta:g} V {self.vocabulary}"


DISTINCT = Cell(case="distinct", beta=1.0, vocabulary=8192, completion=180)
GROUPED = Cell(case="group", beta=1.0, vocabulary=8192, completion=64)
GRID = (
    DISTINCT,
    replace(DISTINCT, beta=0.5),
    replace(DISTINCT, vocabulary=32_768),
    GROUPED,
    replace(GROUPED, beta=0.5),
    replace(GROUPED, vocabulary=32_768),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    times: dict[str, Timing]
    mib: dict[str, float]
    loss_error: float
    error: GradientError

    def ratio(self, peer: str) -> float:
        return self.times[peer].median_s / self.times["ours"].median_s


class Bench:
    """Student and teacher twice, with equal weights: neither side's changes to its models serve the other."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        sizes = replace(SIZE, vocab=vocabulary), replace(TEACHER, vocab=vocabulary)
        names = folder / f"student{vocabulary}", folder / f"teacher{vocabulary}"
        peer, peer_teacher = (load_subject(n, s, seed=i) for i, (n, s) in enumerate(zip(names, sizes, strict=True)))
        ours, our_teacher = (load_subject(n, s, seed=i) for i, (n, s) in enumerate(zip(names, sizes, strict=True)))
        for subject in (peer_teacher, our_teacher):
            subject.model.requires_grad_(False).eval()
        self.facts = ours.facts
        self.folder = folder
        self.peer = peer
        self.peer_teacher = peer_teacher.model
        self.student = PackedPolicy(ours.model, ours.facts)
        self.teacher = PackedPolicy(our_teacher.model, our_teacher.facts)

    def measure(self, cell: Cell, repeats: int) -> Measured:
        sequences = self.draw(cell)
        inputs = grpo_inputs(sequences, self.facts)
        trainer = distillation_trainer(
            self.peer.model, self.peer_teacher, self.peer.processor, self.folder, batch=GROUP, beta=cell.beta
        )

        def theirs(compact: bool) -> float:
            with row_compaction(compact):
                loss = distillation_loss(trainer, inputs)
                loss.backward()
            return float(loss.detach())

        sides: dict[str, Callable[[], float]] = {
            "plain": lambda: theirs(False),
            "compact": lambda: theirs(True),
            "ours": lambda: self.ours(sequences, cell.beta),
        }
        models: dict[str, Any] = {"plain": self.peer.model, "compact": self.peer.model, "ours": self.student.base_model}
        losses, gradients = {}, {}
        for name, side in sides.items():
            self.forget(models[name])  # of the cell before
            losses[name] = side()
            gradients[name] = gradients_of(models[name])
        error = gradient_error(gradients["ours"], gradients["compact"])
        gradients.clear()
        times = interleave(sides, repeats, before=lambda name: self.forget(models[name]))
        mib = {}
        for name, side in sides.items():
            self.forget(models[name])
            mib[name] = peak_mib(side)
        return Measured(
            times=times,
            mib=mib,
            loss_error=abs(losses["ours"] - losses["compact"]) / abs(losses["compact"]),
            error=error,
        )

    def forget(self, model: Any) -> None:
        """No gradient and no kept image feature outlives a repeat: the frozen teacher would not look again."""
        model.zero_grad(set_to_none=True)
        self.teacher.features.clear()

    def draw(self, cell: Cell) -> list[TokenSequence]:
        draw = Draw(self.facts, seed=7)
        sequences = []
        prompts = [self._prompt(draw, cell.case) for _ in range(GROUP if cell.case == "distinct" else 1)]
        for place in range(GROUP):
            prompt, images = prompts[place % len(prompts)]
            length = draw.length(cell.completion, 0.5, cell.completion / 4, 2.5 * cell.completion)
            sequences.append(join(prompt, draw.text(length), images, shared=True))
        return sequences

    def _prompt(self, draw: Draw, case: str) -> tuple[Any, list[Any]]:
        if case == "group":
            images = [draw.image(28, 28)]
            return draw.prompt(256 - images[0].num_tokens(self.facts.merge_size) - 2, images), images
        grids = [
            (2 * draw.random.randint(8, 20), 2 * draw.random.randint(8, 20))
            for _ in range(draw.random.choice([1, 1, 2]))
        ]
        images = [draw.image(height, width) for height, width in grids]
        return draw.prompt(draw.random.randint(20, 160), images), images

    def ours(self, sequences: Sequence[TokenSequence], beta: float) -> float:
        (row,) = pack(sequences, self.facts, WHOLE)
        denominator = denominator_of(row.lengths_S, Reduction.TOKEN_MEAN)
        weights_T = token_weights(row.lengths_S, row.sequence_index_T, Reduction.TOKEN_MEAN, denominator=denominator)
        with torch.no_grad():
            hidden_TH = self.teacher.hidden_states(row)
        head: Any = self.teacher.base_model.get_output_embeddings()
        matching = Matching(
            divergence=divergence(beta),
            reference=DenseReference(hidden_TH=hidden_TH, weight_VH=head.weight),
            weights_T=weights_T,
        )

        def no_loss(logprobs_T: Tensor, span: slice) -> Tensor:
            return logprobs_T * 0

        loss = self.student(row, no_loss, matching=matching).loss
        loss.backward()
        return float(loss.detach())


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--headline", action="store_true", help="only the two cells that the figures are made of")
    options = parser.parse_args()
    settle(options)
    grid = (DISTINCT, GROUPED) if options.quick or options.headline else GRID
    cells: dict[Cell, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in dict.fromkeys(cell.vocabulary for cell in grid):
            bench = Bench(Path(folder), vocabulary)
            for cell in grid:
                if cell.vocabulary == vocabulary:
                    cells[cell] = bench.measure(cell, options.repeats)
                    print(f"{cell}: {cells[cell].ratio('compact'):.2f} x", flush=True)
    columns = ("case", "plain s", "compact s", "ours s", "plain/ours", "compact/ours", "MiB plain", "compact", "ours")
    rows = [
        (
            cell,
            *(str(m.times[name]) for name in ("plain", "compact", "ours")),
            m.ratio("plain"),
            m.ratio("compact"),
            *(round(m.mib[name]) for name in ("plain", "compact", "ours")),
            m.mib["compact"] / m.mib["ours"],
            f"{m.loss_error:.0e}",
            f"{m.error.worst:.0e}",
        )
        for cell, m in cells.items()
    ]
    title = "on-policy distillation update, forward and backward; seconds are median (min)"
    show(title, (*columns, "memory", "loss error", "gradient"), rows)
    figures = {
        "time_ratio_distinct": round(cells[DISTINCT].ratio("compact"), 2),
        "time_ratio_group": round(cells[GROUPED].ratio("compact"), 2),
        "memory_ratio_distinct": round(cells[DISTINCT].mib["compact"] / cells[DISTINCT].mib["ours"], 2),
        "memory_ratio_group": round(cells[GROUPED].mib["compact"] / cells[GROUPED].mib["ours"], 2),
        "time_ratio_distinct_plain": round(cells[DISTINCT].ratio("plain"), 2),
        "time_ratio_group_plain": round(cells[GROUPED].ratio("plain"), 2),
        "worst_gradient_error": max(m.error.worst for m in cells.values()),
    }
    kept = [{**asdict(cell), **asdict(m)} for cell, m in cells.items()]
    finish("distill_update", figures, kept, quick=options.quick)


if __name__ == "__main__":
    main()
