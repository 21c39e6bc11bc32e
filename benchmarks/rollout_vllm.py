"""vLLM in this process: our samples a second against a bare `LLM.generate`, weight updates, and log-probabilities.

The same vLLM answers the same prompts, each with an image, several times: bare, with no more asked of it than the
log-probability of each sampled token; by `VllmEngine.generate`, which bans vision tokens, seeds every sample and makes
records; and by a stream that is polled fifty times a second. Caches are emptied before each. float32.
The gap is the largest difference to the trainer's log-probabilities, after an update, of samples of single prompts and
of an episode of three turns with an image each.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _harness import arguments, finish, interleave, settle, show
from _problem import SIZE, Draw, load_subject
from PIL import Image
from posttrain.model import Budget, PackedPolicy, TokenSequence
from vllm import SamplingParams

from posttrain.data.images import to_patches
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.rollout.vllm_prompts import one_token_an_image

TEXT = 60
SIDE = 128
"""Pixels; 16 tokens."""
POLL_S = 0.02
"""How long a stream samples before its owner looks after others, as rollouts with tools do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    prompts: int
    samples: int
    new_tokens: int

    def __str__(self) -> str:
        return f"{self.prompts} prompts x {self.samples} samples x {self.new_tokens} tokens"


LOADS = (
    Load(prompts=8, samples=4, new_tokens=128),
    Load(prompts=8, samples=8, new_tokens=64),
    Load(prompts=2, samples=8, new_tokens=128),
)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    settle(options)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "model")
        try:
            cells = [bench.measure(load, options.repeats) for load in (LOADS[1:2] if options.quick else LOADS)]
            update = interleave({"update": bench.update}, options.repeats + 1, before=lambda name: None)["update"]
            gap = max(bench.gap_of_prompts(), bench.gap_of_episode())
        finally:
            bench.engine.close()
    show(
        "vLLM in process, tokens/s (medians; ratios to the bare LLM.generate of the same round)",
        ["load", "bare", "generate", "stream", "generate / bare", "stream / bare"],
        [[c["load"], c["bare"], c["generate"], c["stream"], c["generate_ratio"], c["stream_ratio"]] for c in cells],
    )
    figures = {
        "update_s": round(update.median_s, 3),
        "throughput_ratio_bare": min(min(float(c["generate_ratio"]), float(c["stream_ratio"])) for c in cells),  # pyright: ignore
        "logprob_gap_fp32": gap,
    }
    finish("rollout_vllm", figures, cells, quick=options.quick)


class Bench:
    """One engine, on weights that were streamed into it."""

    def __init__(self, folder: Path) -> None:
        subject = load_subject(folder, SIZE)
        self.processor, self.facts = subject.processor, subject.facts
        self.policy = PackedPolicy(subject.model, subject.facts)
        self.policy.eval()
        self.engine = VllmEngine(folder, self.facts, self.processor, dtype="float32", max_model_len=1024, max_images=4)
        self.draw = Draw(self.facts, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in subject.model.parameters():
                parameter += 0.005 * torch.randn(parameter.shape, generator=generator)
        self.version = 0
        self.update()

    def update(self) -> None:
        self.version += 1
        self.engine.update_weights(self.policy, self.version)

    def request(self, n: int) -> Request:
        pixels = self.draw.arrays.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        image = to_patches(picture, self.processor.image_processor)  # pyright: ignore
        return Request(token_ids=self.draw.prompt(TEXT, [image]), images=(image,), pictures=(picture,), n=n)

    def measure(self, load: Load, repeats: int) -> dict[str, object]:
        requests = [self.request(load.samples) for _ in range(load.prompts)]
        tokens: dict[str, list[int]] = {"bare": [], "generate": [], "stream": []}

        def bare() -> None:
            settings = SamplingParams(
                n=load.samples,
                temperature=1.0,
                max_tokens=load.new_tokens,
                stop_token_ids=list(self.facts.eos_token_ids),
                logprobs=0,
                detokenize=False,
            )
            prompts = [
                {
                    "prompt_token_ids": one_token_an_image(request.token_ids, self.facts.image_token_id),
                    "multi_modal_data": {"image": list(request.pictures)},
                }
                for request in requests
            ]
            outputs = self.engine.llm.generate(prompts, settings, use_tqdm=False)
            tokens["bare"].append(sum(len(said.token_ids) for output in outputs for said in output.outputs))

        def generate() -> None:
            groups = self.engine.generate(requests, Sampling(max_new_tokens=load.new_tokens))
            tokens["generate"].append(sum(len(sample.token_ids) for group in groups for sample in group))

        def stream() -> None:
            running, said = self.engine.stream(Sampling(max_new_tokens=load.new_tokens)), 0
            for key, request in enumerate(requests):
                running.add(key, request, max_new_tokens=load.new_tokens, seed=key)
            while running.num_running:
                said += sum(len(answer.sample.token_ids) for answer in running.poll(POLL_S))
            tokens["stream"].append(said)

        sides: dict[str, Callable[[], None]] = {"bare": bare, "generate": generate, "stream": stream}
        for side in sides.values():
            self.forget()
            side()
        times = interleave(sides, repeats, before=lambda name: self.forget())
        speeds = {
            name: [said / seconds for said, seconds in zip(tokens[name][1:], times[name].rounds_s, strict=True)]
            for name in sides
        }

        def of_the_same_round(name: str) -> list[float]:
            return [ours / bare for ours, bare in zip(speeds[name], speeds["bare"], strict=True)]

        return {
            "load": str(load),
            **{name: round(statistics.median(speed)) for name, speed in speeds.items()},
            **{
                f"{name}_ratio": round(statistics.median(of_the_same_round(name)), 3) for name in ("generate", "stream")
            },
            **{
                f"{name}_ratios": [round(r, 3) for r in sorted(of_the_same_round(name))]
                for name in ("generate", "stream")
            },
        }

    def forget(self) -> None:
        """Empties vLLM's caches, as new weights do: else the second to be asked would have the first one's prompts."""
        llm = self.engine.llm
        llm.llm_engine.reset_encoder_cache()
        llm.reset_mm_cache()
        llm.reset_prefix_cache()

    def gap_of_prompts(self) -> float:
        requests = [self.request(4) for _ in range(6)]
        groups = self.engine.generate(requests, Sampling(max_new_tokens=64))
        return max(
            self.gap(request, sample.token_ids, sample.logprobs)
            for request, group in zip(requests, groups, strict=True)
            for sample in group
        )

    def gap_of_episode(self) -> float:
        """Three turns, each with an image of its own; what the turns before have computed is used again."""
        worst, before = 0.0, self.request(1)
        for turn in range(3):
            running = self.engine.stream(Sampling(max_new_tokens=32))
            running.add(0, before, max_new_tokens=32, seed=turn)
            answers = []
            while running.num_running:
                answers += running.poll(0.2)
            said = answers[0].sample
            worst = max(worst, self.gap(before, said.token_ids, said.logprobs))
            shown = self.request(1)
            before = Request(
                token_ids=np.concatenate([before.token_ids, said.token_ids, shown.token_ids]),
                images=before.images + shown.images,
                pictures=before.pictures + shown.pictures,
            )
        return worst

    def gap(self, request: Request, said: np.ndarray, logprobs: np.ndarray) -> float:
        token_ids = np.concatenate([request.token_ids, said])
        mask = np.arange(len(token_ids)) >= len(request.token_ids)
        sequence = TokenSequence(token_ids=token_ids, mask=mask, images=request.images)
        (ours,) = self.policy.logprobs([sequence], Budget(tokens=1 << 40))
        return float(np.abs(ours.numpy() - logprobs).max())


if __name__ == "__main__":
    main()
