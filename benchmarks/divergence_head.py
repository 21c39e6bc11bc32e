"""Distillation's head: divergences over the whole vocabulary, loss and gradients, against the tiles of TRL.

Both sides get the same hidden states of a student and of a wider teacher, with their heads, and return the mean
divergence and the student's entropies. TRL's function gets the trained tokens alone, as its trainer compacts them on
CUDA. float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from _harness import arguments, finish, interleave, peak_mib, settle, show
from posttrain.algorithms import divergence
from posttrain.model import DenseReference, Matching, token_loss_head
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

KINDS = {"kl": 1.0, "jsd": 0.5}
"""Name of a ratio -> beta. Reverse KL is TRL's default; forward KL takes either side the same time."""
EXACT_TOKENS = 192
"""Tokens of the comparison with float64, which takes minutes for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    kind: str
    vocabulary: int
    tokens: int
    student_hidden: int = 256
    teacher_hidden: int = 384


SIZES = tuple(Head(kind=kind, vocabulary=v, tokens=1024) for kind in KINDS for v in (32_768, 151_936))
QUICK = tuple(Head(kind=kind, vocabulary=v, tokens=512) for kind in KINDS for v in (32_768, 151_936))


class Found(NamedTuple):
    """What one side returns."""

    divergences: Tensor
    entropies: Tensor
    hidden_grad: Tensor
    weight_grad: Tensor


def main() -> None:
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    settle(options)
    cells = [measure(head, options.repeats) for head in (QUICK if options.quick else SIZES)]
    columns = (
        "divergence",
        "V",
        "tokens",
        "TRL s, median (min)",
        "ours s",
        "time",
        "(cpu)",
        "TRL MiB",
        "ours MiB",
        "memory",
        "error to TRL",
        "to float64",
    )
    keys = ("trl_s", "ours_s", "time_ratio", "cpu_time_ratio", "trl_mib", "ours_mib", "memory_ratio")
    errors = ("error_to_trl", "error_to_float64")
    rows = [(c["kind"], c["vocabulary"], c["tokens"], *(c[key] for key in (*keys, *errors))) for c in cells]
    show("divergence head: forward and backward", columns, rows)
    figures: dict[str, object] = {
        f"time_ratio_{kind}": min(float(str(c["time_ratio"])) for c in cells if c["kind"] == kind) for kind in KINDS
    }
    figures["memory_ratio"] = min(float(str(cell["memory_ratio"])) for cell in cells)
    figures["worst_error"] = max(float(str(cell[key])) for cell in cells for key in errors)
    for cell in cells:
        figures[f"time_ratio_{cell['kind']}_{cell['vocabulary']}"] = cell["time_ratio"]
        figures[f"memory_ratio_{cell['kind']}_{cell['vocabulary']}"] = cell["memory_ratio"]
    finish("divergence_head", figures, cells, quick=options.quick)


def measure(head: Head, repeats: int) -> dict[str, object]:
    beta = KINDS[head.kind]
    generator = torch.Generator().manual_seed(0)
    weight = (0.04 * torch.randn(head.vocabulary, head.student_hidden, generator=generator)).requires_grad_()
    hidden = torch.randn(head.tokens, head.student_hidden, generator=generator).requires_grad_()
    teacher_weight = 0.04 * torch.randn(head.vocabulary, head.teacher_hidden, generator=generator)
    teacher_hidden = torch.randn(head.tokens, head.teacher_hidden, generator=generator)
    targets = torch.randint(0, head.vocabulary, (head.tokens,), generator=generator)

    def ours(n: int = head.tokens) -> tuple[Tensor, Tensor]:
        matching = Matching(
            divergence=divergence(beta),
            reference=DenseReference(hidden_TH=teacher_hidden[:n], weight_VH=teacher_weight),
            weights_T=torch.full((n,), 1 / n),
        )
        output = token_loss_head(hidden[:n], weight, targets[:n], lambda x, span: 0 * x, matching=matching)
        output.loss.backward()
        assert output.divergences_T is not None
        return output.divergences_T, output.entropies_T

    def trl(n: int = head.tokens) -> tuple[Tensor, Tensor]:
        divergences, entropies = ChunkedDivergenceFunction.apply(
            hidden[:n], weight, None, teacher_hidden[:n], teacher_weight, None, beta
        )  # pyright: ignore[reportGeneralTypeIssues]
        (divergences.sum() / n).backward()
        return divergences.detach(), entropies.detach()

    def forget() -> None:
        hidden.grad = weight.grad = None

    def found(side: Callable[[int], tuple[Tensor, Tensor]], n: int) -> Found:
        forget()
        values = side(n)
        assert hidden.grad is not None and weight.grad is not None
        return Found(*values, hidden.grad[:n], weight.grad)

    error_to_trl = worst_error(found(ours, head.tokens), found(trl, head.tokens))
    few = min(EXACT_TOKENS, head.tokens)
    exact = float64(hidden.detach()[:few], weight.detach(), teacher_hidden[:few], teacher_weight, beta)
    error_to_float64 = worst_error(found(ours, few), exact)
    del exact
    sides = {"trl": trl, "ours": ours}
    times = interleave(sides, repeats, before=lambda name: forget())
    memory = {}
    for name, side in sides.items():
        forget()
        memory[name] = peak_mib(side)
    return {
        "kind": head.kind,
        "beta": beta,
        "vocabulary": head.vocabulary,
        "tokens": head.tokens,
        "student_hidden": head.student_hidden,
        "teacher_hidden": head.teacher_hidden,
        "trl_s": str(times["trl"]),
        "ours_s": str(times["ours"]),
        "time_ratio": round(times["trl"].median_s / times["ours"].median_s, 2),
        "time_ratio_of_minima": round(times["trl"].min_s / times["ours"].min_s, 2),
        "cpu_time_ratio": round(times["trl"].cpu_s / times["ours"].cpu_s, 2),
        "trl_mib": round(memory["trl"]),
        "ours_mib": round(memory["ours"]),
        "memory_ratio": round(memory["trl"] / memory["ours"], 2),
        "error_to_trl": error_to_trl,
        "error_to_float64": error_to_float64,
    }


def worst_error(found: Found, reference: Found) -> float:
    """Largest difference of any value or gradient, relative to the largest of its kind."""
    pairs = zip(found, reference, strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs)


def float64(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, beta: float) -> Found:
    """The same in double precision, by autograd through whole distributions of 64 tokens at a time."""
    leaf, teacher = weight.double().requires_grad_(), teacher_weight.double()
    parts = []
    for piece, teacher_piece in zip(hidden.split(64), teacher_hidden.split(64), strict=True):
        piece = piece.double().requires_grad_()
        s = (piece @ leaf.t()).log_softmax(-1)
        t = (teacher_piece.double() @ teacher.t()).log_softmax(-1)
        if beta == 1:
            divergences = (s.exp() * (s - t)).sum(-1)
        else:
            m = torch.logaddexp(t + math.log(beta), s + math.log(1 - beta))
            divergences = (beta * t.exp() * (t - m) + (1 - beta) * s.exp() * (s - m)).sum(-1)
        (divergences.sum() / len(hidden)).backward()
        assert piece.grad is not None
        parts.append((divergences.detach(), -(s.exp() * s).sum(-1).detach(), piece.grad))
    assert leaf.grad is not None
    divergences, entropies, hidden_grad = (torch.cat(column) for column in zip(*parts, strict=True))
    return Found(divergences, entropies, hidden_grad, leaf.grad)


if __name__ == "__main__":
    main()
