"""An epoch of off-policy distillation on kept teacher scores, against one that asks the teacher again.

Live: the teacher forwards every row, the whole vocabulary is compared. Kept: its 64 likeliest tokens and their tail
come from disk, in half precision. Both epochs pack, read or ask, and run the student forward and backward. What top-k
and tail lose is measured between the teacher and a noisy copy of it, as a student is that has learned most of it; the
random heads are scaled until the teacher's entropy is about that of a language model on its own text.
"""

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from _harness import arguments, finish, interleave, settle, show
from _problem import SIZE, TEACHER, Draw, join, load_subject
from posttrain.algorithms import Reduction, denominator_of, divergence, token_weights
from posttrain.model import Budget, Matching, PackedPolicy, TokenSequence, pack
from torch import Tensor

from posttrain.teachers.cache import CachedTeacher
from posttrain.teachers.local import LocalTeacher
from posttrain.teachers.table import TeacherTable

TOP_K = 64
SHOWN_K = (8, 16, 64, 256)
BUDGET = Budget(tokens=4096)
SHARP = 8.0
"""Factor on the random heads: at 1 their distributions are nearly uniform, and no top k would hold anything."""
NOISE = 0.05
"""Of the copy's weights, as a share of their spread."""


def main() -> None:
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    settle(options)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), num_sequences=8 if options.quick else 32)
        figures, rows = bench.run(options.repeats)
    show(
        "what k tokens and a tail lose of the forward KL over 8,192 tokens",
        ("k", "divergence", "loss against the whole", "bytes a token"),
        rows,
    )
    finish(
        "teacher_cache",
        figures,
        [dict(zip(("k", "kl", "gap", "bytes"), row, strict=True)) for row in rows],
        quick=options.quick,
    )


class Bench:
    def __init__(self, folder: Path, num_sequences: int) -> None:
        student, teacher = load_subject(folder / "student", SIZE), load_subject(folder / "teacher", TEACHER, seed=1)
        teacher.model.requires_grad_(False).eval()
        self.folder, self.facts = folder, student.facts
        with torch.no_grad():
            for subject in (student, teacher):
                head: Any = subject.model.get_output_embeddings()
                head.weight.mul_(SHARP)
        self.student = PackedPolicy(student.model, student.facts)
        self.teacher = LocalTeacher(
            "teacher", PackedPolicy(teacher.model, teacher.facts), identity="random", budget=BUDGET
        )
        draw = Draw(self.facts, seed=3)
        self.sequences: list[TokenSequence] = []
        for _ in range(num_sequences):
            images = [draw.image(2 * draw.random.randint(6, 14), 2 * draw.random.randint(6, 14))]
            prompt = draw.prompt(draw.random.randint(40, 120), images)
            self.sequences.append(join(prompt, draw.text(draw.length(180, 0.5, 40, 500)), images, shared=False))
        self.tokens = sum(s.num_trained for s in self.sequences)

    def run(self, repeats: int) -> tuple[dict[str, object], list[tuple[object, ...]]]:
        live = TeacherTable({"teacher": self.teacher}, {}, top_k=None)
        cache = CachedTeacher(self.teacher, self.folder / "scores", top_k=TOP_K, settings={})
        kept = TeacherTable({"teacher": cache}, {}, top_k=TOP_K)
        self.epoch(kept)  # fills the folder
        kept.flush()
        sides: dict[str, Callable[[], object]] = {"live": lambda: self.epoch(live), "kept": lambda: self.epoch(kept)}
        times = interleave(sides, repeats, before=lambda name: self.forget())
        rows: list[tuple[object, ...]] = []
        self.student = self.noisy_copy()
        whole = self.epoch(live)
        for k in SHOWN_K:
            found = self.epoch(TeacherTable({"teacher": self.teacher}, {}, top_k=k, use_scores=True))
            rows.append((k, round(found, 4), round((whole - found) / whole, 5), 6 * k + 2))
        rows.append(("all", round(whole, 4), 0.0, "-"))
        from_disk = self.epoch(kept)
        figures: dict[str, object] = {
            "time_ratio": round(times["live"].median_s / times["kept"].median_s, 2),
            "cpu_time_ratio": round(times["live"].cpu_s / times["kept"].cpu_s, 2),
            "bytes_per_token": round(cache.bytes_per_token, 1),
            "divergence_gap": round((whole - from_disk) / whole, 5),
            "teacher_entropy": round(self.entropy(), 2),
            "divergence": round(whole, 3),
            "tokens": self.tokens,
            "live_s": str(times["live"]),
            "kept_s": str(times["kept"]),
        }
        return figures, rows

    def noisy_copy(self) -> PackedPolicy:
        copy = deepcopy(self.teacher._loaded().model)
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in copy.parameters():
                spread = parameter.std() if parameter.numel() > 1 else 0.0
                parameter.add_(torch.randn(parameter.shape, generator=noise) * NOISE * spread)
        return PackedPolicy(copy.requires_grad_(), self.facts)

    def forget(self) -> None:
        self.student.zero_grad(set_to_none=True)
        self.teacher._loaded().features.clear()  # the next epoch of a real data set shows other images in between

    def epoch(self, table: TeacherTable) -> float:
        """Forward and backward over all sequences; the mean forward KL in nats."""
        annotated, _ = table.annotate(["default"] * len(self.sequences), self.sequences)
        rows = pack([s for s in annotated if s is not None], self.facts, BUDGET)
        total = 0.0
        for row in rows:
            denominator = denominator_of(row.lengths_S, Reduction.TOKEN_MEAN)
            weights_T = token_weights(
                row.lengths_S, row.sequence_index_T, Reduction.TOKEN_MEAN, denominator=denominator
            )
            matching = Matching(divergence=divergence(0.0), reference=table.reference(row), weights_T=weights_T)
            output = self.student(row, _no_loss, matching=matching)
            output.loss.backward()
            assert output.divergences_T is not None
            total += float(output.divergences_T.sum())
        return total / self.tokens

    @torch.no_grad()
    def entropy(self) -> float:
        entropies: Sequence[Tensor] = [
            self.teacher._loaded()(row, _no_loss).entropies_T for row in pack(self.sequences, self.facts, BUDGET)
        ]
        return float(torch.cat(list(entropies)).mean())


def _no_loss(logprobs_T: Tensor, span: slice) -> Tensor:
    return logprobs_T * 0


if __name__ == "__main__":
    main()
