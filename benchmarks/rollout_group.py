"""Groups of eight answers to a prompt with an image, against transformers' `generate` with `num_return_sequences`.

Both sides sample at temperature 1 from the whole vocabulary, from equal weights, and never end early: all answers have
`tokens` tokens. The greedy answers of both are compared first. `generate` bans no tokens while it is timed: its
processor for that costs it time. Quick-start: its tiny Qwen3-VL; small: 6.8 M parameters. float32.
`time_ratio_generate` is the smallest ratio of one prompt whose image is at least 512 pixels a side, as photographs are
(256 tokens), and of sixteen prompts. With one short prompt both sides mostly wait for the same small matrix products.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import arguments, finish, interleave, settle, show
from _problem import SIZE, Draw, load_subject
from posttrain.model import ModelFacts, PackedPolicy
from posttrain.model.tiny import TinySize
from transformers import PreTrainedModel

from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine

GROUP = 8
SIZES = {"quick-start": TinySize(), "small": SIZE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    model: str
    prompts: int
    side: int
    """Patches of a side of the image; a token is four patches."""
    text: int
    """Text tokens of the shortest prompt; the longest of several has half as many again."""
    tokens: int
    """Of each answer."""
    counted: bool = True
    """False for those that are shown beside the figure."""

    def __str__(self) -> str:
        return f"{self.model}, {self.prompts} x {GROUP}, {self.side**2 // 4} + {self.text}"


CELLS = (
    Cell(model="quick-start", prompts=1, side=16, text=26, tokens=24, counted=False),
    Cell(model="quick-start", prompts=16, side=16, text=26, tokens=24),
    Cell(model="small", prompts=1, side=16, text=40, tokens=64, counted=False),
    Cell(model="small", prompts=1, side=32, text=80, tokens=64),
    Cell(model="small", prompts=1, side=64, text=120, tokens=64),
    Cell(model="small", prompts=16, side=16, text=40, tokens=64),
)
QUICK = (CELLS[0], replace(CELLS[1], prompts=4))


def main() -> None:
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    settle(options)
    with tempfile.TemporaryDirectory() as folder:
        cells = [measure(cell, Path(folder), options.repeats) for cell in (QUICK if options.quick else CELLS)]
    columns = (
        "image + text tokens",
        "generate s, median (min)",
        "ours s",
        "time",
        "(minima)",
        "(cpu)",
        "ours tokens/s",
    )
    keys = ("cell", "generate_s", "ours_s", "time_ratio", "time_ratio_of_minima", "cpu_time_ratio", "tokens_per_s")
    show("group generation", columns, [[cell[key] for key in keys] for cell in cells])
    counted = [float(str(cell["time_ratio"])) for cell in cells if cell["counted"]]
    figures: dict[str, object] = {"time_ratio_generate": min(counted)}
    for cell in cells:
        name = f"{cell['model']}_{cell['prompts']}x{GROUP}_{cell['prompt_tokens']}".replace("-", "_")
        figures[f"time_ratio_{name}"] = cell["time_ratio"]
    finish("rollout_group", figures, cells, quick=options.quick)


def measure(cell: Cell, folder: Path, repeats: int) -> dict[str, object]:
    """Two models of the same weights, so that neither side's changes to its model serve the other."""
    peer, subject = (load_subject(folder / cell.model, SIZES[cell.model]) for _ in range(2))
    facts = replace(subject.facts, eos_token_ids=())
    requests = draw_requests(cell, facts)
    inputs = padded(requests, facts)
    engine = TransformersEngine(PackedPolicy(subject.model, facts), facts)
    peer.model.eval()
    check_greedy(peer.model, inputs, engine, [replace(request, n=1) for request in requests], cell.tokens)
    seeds = iter(range(1 << 20))

    def generate() -> None:
        settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        said = _generate(peer.model, inputs, cell.tokens, num_return_sequences=GROUP, **settings)
        assert said.shape == (cell.prompts * GROUP, cell.tokens)

    def ours() -> None:
        groups = engine.generate(requests, Sampling(max_new_tokens=cell.tokens, seed=next(seeds)))
        assert all(len(sample.token_ids) == cell.tokens for group in groups for sample in group)

    sides = {"generate": generate, "ours": ours}
    for side in sides.values():
        side()
    times = interleave(sides, repeats, before=lambda name: None)
    return {
        "cell": str(cell),
        **asdict(cell),
        "prompt_tokens": len(requests[0].token_ids),
        "generate_s": str(times["generate"]),
        "ours_s": str(times["ours"]),
        "time_ratio": round(times["generate"].median_s / times["ours"].median_s, 2),
        "time_ratio_of_minima": round(times["generate"].min_s / times["ours"].min_s, 2),
        "cpu_time_ratio": round(times["generate"].cpu_s / times["ours"].cpu_s, 2),
        "tokens_per_s": round(cell.prompts * GROUP * cell.tokens / times["ours"].median_s),
    }


def check_greedy(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    engine: TransformersEngine,
    requests: Sequence[Request],
    num_tokens: int,
) -> None:
    """Raises AssertionError where the two sides' greedy answers differ."""
    banned = list(engine.facts.banned_token_ids)
    theirs = _generate(model, inputs, num_tokens, do_sample=False, suppress_tokens=banned)
    ours = engine.generate(requests, Sampling(max_new_tokens=num_tokens, temperature=0))
    for row, (sample,) in zip(theirs.numpy(), ours, strict=True):
        assert np.array_equal(row, sample.token_ids), f"greedy answers differ: {row} and {sample.token_ids}"


def _generate(model: PreTrainedModel, inputs: dict[str, Any], num_tokens: int, **settings: Any) -> torch.Tensor:
    """[answers, num_tokens] int64."""
    generate: Any = model.generate
    model.generation_config.eos_token_id = None
    said = generate(**inputs, max_new_tokens=num_tokens, pad_token_id=0, **settings)
    return said[:, inputs["input_ids"].shape[1] :]


def draw_requests(cell: Cell, facts: ModelFacts) -> list[Request]:
    draw = Draw(facts, seed=2)
    requests = []
    for place in range(cell.prompts):
        images = (draw.image(cell.side, cell.side),)
        text = cell.text + cell.text * place // (2 * cell.prompts)
        requests.append(Request(token_ids=draw.prompt(text, images), images=images, n=GROUP))
    return requests


def padded(requests: Sequence[Request], facts: ModelFacts) -> dict[str, Any]:
    """What a processor hands to `generate`: prompts padded on the left."""
    longest = max(len(request.token_ids) for request in requests)
    token_ids = np.full((len(requests), longest), facts.pad_token_id)
    for row, request in enumerate(requests):
        token_ids[row, longest - len(request.token_ids) :] = request.token_ids
    lengths = torch.tensor([len(request.token_ids) for request in requests])
    images = [image for request in requests for image in request.images]
    return {
        "input_ids": torch.from_numpy(token_ids),
        "attention_mask": (torch.arange(longest) >= longest - lengths[:, None]).long(),
        "mm_token_type_ids": torch.from_numpy(token_ids == facts.image_token_id).int(),
        "pixel_values": torch.cat([image.pixel_values_PD for image in images]),
        "image_grid_thw": torch.tensor([image.grid_thw for image in images]),
    }


if __name__ == "__main__":
    main()
