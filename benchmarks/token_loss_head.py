"""The language-model head: log-probabilities, entropies, loss and gradients, against the tiles of TRL.

Both sides get the same hidden states, weight and targets, and return the mean negative log-likelihood with
entropies, as an RL step wants them. float32.
"""

from dataclasses import dataclass

import torch
from _harness import arguments, finish, interleave, peak_mib, settle, show
from posttrain.model.head import token_loss_head
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

TRL_TILE = 32768
"""Vocabulary entries in one of TRL's tiles: what its trainers use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    vocabulary: int
    hidden: int
    tokens: int
    counted: bool = True
    """False for sizes that are shown beside the figures."""


SIZES = (
    Head(vocabulary=32_768, hidden=256, tokens=1024),
    Head(vocabulary=151_936, hidden=256, tokens=1024),
    Head(vocabulary=151_936, hidden=1024, tokens=512, counted=False),
)
QUICK = (Head(vocabulary=32_768, hidden=256, tokens=512), Head(vocabulary=151_936, hidden=256, tokens=512))


def main() -> None:
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    settle(options)
    cells = [measure(head, options.repeats) for head in (QUICK if options.quick else SIZES)]
    columns = (
        "V",
        "H",
        "tokens",
        "TRL s, median (min)",
        "ours s",
        "time",
        "(cpu)",
        "TRL MiB",
        "ours MiB",
        "memory",
        "gradient error",
    )
    keys = ("trl_s", "ours_s", "time_ratio", "cpu_time_ratio", "trl_mib", "ours_mib", "memory_ratio", "gradient_error")
    rows = [(c["vocabulary"], c["hidden"], c["tokens"], *(c[key] for key in keys)) for c in cells]
    show("head: forward and backward", columns, rows)
    counted = [cell for cell in cells if cell["counted"]]
    figures: dict[str, object] = {
        key: round(min(float(str(cell[key])) for cell in counted), 2) for key in ("time_ratio", "memory_ratio")
    }
    for cell in counted:
        figures[f"time_ratio_{cell['vocabulary']}"] = cell["time_ratio"]
        figures[f"memory_ratio_{cell['vocabulary']}"] = cell["memory_ratio"]
    figures["worst_gradient_error"] = max(float(str(cell["gradient_error"])) for cell in cells)
    finish("token_loss_head", figures, cells, quick=options.quick)


def measure(head: Head, repeats: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    weight = (0.04 * torch.randn(head.vocabulary, head.hidden, generator=generator)).requires_grad_()
    hidden = torch.randn(head.tokens, head.hidden, generator=generator).requires_grad_()
    targets = torch.randint(0, head.vocabulary, (head.tokens,), generator=generator)

    def ours() -> Tensor:
        output = token_loss_head(hidden, weight, targets, lambda logprobs, span: -logprobs / head.tokens)
        output.loss.backward()
        return output.entropies_T

    def trl() -> Tensor:
        outputs = ("log_probs", "entropy")
        logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, TRL_TILE, None, 1.0, outputs
        )  # pyright: ignore[reportGeneralTypeIssues]
        (-logprobs.sum() / head.tokens).backward()
        return entropies.detach()

    def forget() -> None:
        hidden.grad = weight.grad = None

    found = {}
    for name, side in (("ours", ours), ("trl", trl)):
        forget()
        entropies = side()
        assert hidden.grad is not None and weight.grad is not None
        found[name] = (entropies, hidden.grad, weight.grad)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found["ours"], found["trl"], strict=True))
    found.clear()
    sides = {"trl": trl, "ours": ours}
    times = interleave(sides, repeats, before=lambda name: forget())
    memory = {}
    for name, side in sides.items():
        forget()
        memory[name] = peak_mib(side)
    return {
        "vocabulary": head.vocabulary,
        "hidden": head.hidden,
        "tokens": head.tokens,
        "counted": head.counted,
        "trl_s": str(times["trl"]),
        "ours_s": str(times["ours"]),
        "time_ratio": round(times["trl"].median_s / times["ours"].median_s, 2),
        "time_ratio_of_minima": round(times["trl"].min_s / times["ours"].min_s, 2),
        "cpu_time_ratio": round(times["trl"].cpu_s / times["ours"].cpu_s, 2),
        "trl_mib": round(memory["trl"]),
        "ours_mib": round(memory["ours"]),
        "memory_ratio": round(memory["trl"] / memory["ours"], 2),
        "gradient_error": error,
    }


if __name__ == "__main__":
    main()
