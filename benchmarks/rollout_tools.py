"""Sixteen episodes with slow tools: nobody waits for anybody else's, against TRL's own loop and lock step.

An episode has an image and one to three tool calls of 0 to 0.5 s each. All sides play the same plan on the same engine,
in turns: ours (`Rollouts`); TRL's `GRPOTrainer._generate` with its `_tool_call_loop`, which runs the tools of one
episode after those of another, also where they are coroutines (`--async-tool`); and lock step with gathered tools: all
sample, the tools of that turn run at once, all sample again.

What the policy says is planned (`_planned`), token by token on the same engine. The rest is each
side's own: rendering, parsing, running tools, joining tokens. Of TRL only `_generate_single_turn` is replaced, by the
same engine. Turns differ in length, which `generate` has no setting for: TRL and lock step ask a stream for all answers
of a turn and read it until they are there, as `generate` does. Each run is checked: tokens read and sampled, calls, and
seconds of tools are the plan's. float32; the quick-start's tiny Qwen3-VL.

Tools sleep and sampling does not: on a machine with other work the ratios come out too low. The time of the processor
is among the figures, and the ratios of minima are the better ones then.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _harness import arguments, finish, interleave, settle, show
from _planned import EPISODES, MOST_TOKENS, EndlessFacts, Plan, PlannedEngine
from _problem import Subject, load_subject
from _trl import grpo_trainer, tool_rollouts
from PIL import Image
from posttrain.model import PackedPolicy
from posttrain.model.tiny import TinySize

from posttrain.data import RenderedPrompt, Renderer
from posttrain.environments.environment import Observation, Opening
from posttrain.environments.tool_environment import ToolEnvironment
from posttrain.records import Example, Status
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.environment_turns import shown_answer, shown_opening, stepped
from posttrain.rollout.episode import Episode, Limits
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine

SIDE = 64
"""Pixels of an episode's image; 16 tokens."""
MAX_LENGTH = 2048
PLANS = 3
"""Drawn from the seeds 0, 1 and 2."""
PEERS = ("trl", "lockstep")


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--async-tool", action="store_true", help="TRL's tool is a coroutine function")
    options = parser.parse_args()
    settle(options)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        subject = load_subject(Path(folder), TinySize())
        for name, engine in {"vllm": vllm_engine, "transformers": transformers_engine}.items():
            with engine(Path(folder), subject) as (sampled, forget):
                bench = Bench(Path(folder), subject, sampled, forget, is_async=options.async_tool)
                for seed in range(1 if options.quick else PLANS):
                    cells.append({"engine": name, **bench.measure(seed, options.repeats)})
                bench.rollouts.close()
    keys = ("engine", "plan", "calls", "tokens", "tools_s", "longest_tools_s", "ours", *PEERS)
    ratios = [f"time_ratio_{peer}{which}" for peer in PEERS for which in ("", "_of_minima")]
    show(
        f"{EPISODES} episodes with slow tools, s, median (min); load average {os.getloadavg()[0]:.1f}",
        [*(key.removesuffix("_s") for key in keys), *(name.removeprefix("time_ratio_") for name in ratios)],
        [[cell[key] for key in (*keys, *ratios)] for cell in cells],
    )
    finish("rollout_tools", figures_of(cells, ratios), cells, quick=options.quick)


def figures_of(cells: Sequence[dict[str, Any]], ratios: Sequence[str]) -> dict[str, object]:
    """Medians over the plans: ratios on the engine where they are least, then on each; seconds over all."""
    engines = list(dict.fromkeys(cell["engine"] for cell in cells))

    def median(key: str, engine: str | None = None) -> float:
        return round(statistics.median(c[key] for c in cells if engine in (None, c["engine"])), 2)

    return {
        **{name: min(median(name, engine) for engine in engines) for name in ratios},
        **{f"{name}_{engine}": median(name, engine) for engine in engines for name in ratios},
        **{name: median(name) for name in ("tools_s", "longest_tools_s", "ours_s", *(f"{p}_s" for p in PEERS))},
    }


class Bench:
    """All sides on one engine. forget: empties the engine's caches, or the second side would have the first one's."""

    def __init__(
        self,
        folder: Path,
        subject: Subject,
        sampled: VllmEngine | TransformersEngine,
        forget: Callable[[], object],
        *,
        is_async: bool,
    ) -> None:
        self.subject, self.forget = subject, forget
        self.renderer = Renderer(subject.processor, subject.facts, max_length=MAX_LENGTH)
        self.slept_ms: list[int] = []
        self.is_warm = False
        self.engine = PlannedEngine(sampled)
        self.sampling = Sampling(max_new_tokens=MOST_TOKENS)
        pixels = np.random.default_rng(0).integers(0, 256, (EPISODES, SIDE, SIDE, 3), dtype=np.uint8)
        self.examples = [example(number, Image.fromarray(picture)) for number, picture in enumerate(pixels)]
        self.openings = [self.opened(self.environment(), row)[1] for row in self.examples]
        self.engine.prompts = [prompt.token_ids for prompt in self.openings]
        self.rollouts = Rollouts(
            engine=self.engine,
            renderer=self.renderer,
            decode=self.decode,
            environments={"look": TaskEnvironment(make=self.environment)},
        )
        self.trainer = grpo_trainer(
            load_subject(folder, TinySize()).model,
            subject.processor,
            folder / "trl",
            batch=EPISODES,
            max_completion_length=MAX_LENGTH,
            tools=[self.tool(is_async=is_async)],
        )

    def measure(self, seed: int, repeats: int) -> dict[str, Any]:
        plan = Plan.draw(self.subject, seed)
        read: set[int] = set()

        def checked(play: Callable[[], object]) -> None:
            play()
            engine = self.engine
            assert engine.num_turns == [len(turns) for turns in plan.said], "not every turn was played once"
            assert engine.num_sampled == plan.num_tokens, f"sampled {engine.num_sampled}, planned {plan.num_tokens}"
            assert sorted(self.slept_ms) == sorted(ms for row in plan.latencies_ms for ms in row), "other calls"
            read.add(engine.num_read)
            assert len(read) == 1, f"prompts of all turns have {read} tokens: the sides differ"

        def before(name: str) -> None:
            self.forget()
            self.slept_ms.clear()
            self.engine.begin(plan)

        plays: dict[str, Callable[[], object]] = {"ours": self.ours, "trl": self.trl, "lockstep": self.lock_step}
        sides = {name: lambda play=play: checked(play) for name, play in plays.items()}
        if not self.is_warm:
            for name, side in sides.items():
                before(name)
                side()
            self.is_warm = True
        times = interleave(sides, repeats, before=before)
        ours, tools = times["ours"], [sum(row) / 1000 for row in plan.latencies_ms]
        return {
            "plan": seed,
            "calls": sum(len(row) for row in plan.latencies_ms),
            "tokens": plan.num_tokens,
            "tokens_read": read.pop(),
            "tools_s": round(sum(tools), 2),
            "longest_tools_s": round(max(tools), 2),
            **{name: str(timing) for name, timing in times.items()},
            **{f"{name}_s": round(timing.median_s, 3) for name, timing in times.items()},
            **{f"{name}_cpu_s": round(timing.cpu_s, 3) for name, timing in times.items()},
            **{f"time_ratio_{peer}": round(times[peer].median_s / ours.median_s, 2) for peer in PEERS},
            **{f"time_ratio_{peer}_of_minima": round(times[peer].min_s / ours.min_s, 2) for peer in PEERS},
        }

    def ours(self) -> None:
        rolled = self.rollouts.roll(self.examples, group_size=1, sampling=self.sampling)
        assert all(t.status is Status.FINISHED for group in rolled.groups for t in group)

    def trl(self) -> None:
        tool_rollouts(self.trainer, [conversation(row) for row in self.examples], self.answer_ids)

    def answer_ids(self, prompts: list[list[int]]) -> list[list[int]]:
        requests = []
        for prompt in prompts:
            token_ids = np.array(prompt, dtype=np.int64)
            shown = self.openings[self.engine.episode_of(token_ids)]
            requests.append(Request(token_ids=token_ids, images=shown.images, pictures=shown.pictures))
        return [sample.token_ids.tolist() for (sample,) in self.engine.generate(requests, self.sampling)]

    def lock_step(self) -> None:
        """The parts of ours, in rounds."""
        episodes = [Episode(row, self.decode, limits=Limits(), max_length=MAX_LENGTH) for row in self.examples]
        environments = [self.environment() for _ in episodes]

        def answer(k: int, text: str) -> Any:
            said = stepped(environments[k], text)
            return shown_answer(said, episodes[k].num_images_left, self.examples[k], self.renderer)

        with ThreadPoolExecutor(EPISODES) as pool:
            for k, (opening, prompt) in enumerate(
                pool.map(lambda k: self.opened(environments[k], self.examples[k]), range(EPISODES))
            ):
                episodes[k].begin(prompt, opening)
            live = list(range(EPISODES))
            while live:
                groups = self.engine.generate([episodes[k].request() for k in live], self.sampling)
                texts = [episodes[k].said(sample) for k, (sample,) in zip(live, groups, strict=True)]
                for k, (verdict, shown) in zip(live, pool.map(answer, live, texts), strict=True):
                    if isinstance(verdict, Observation):
                        episodes[k].observed(verdict, shown, 0.0)
                    else:
                        episodes[k].done(verdict, 0.0)
                live = [k for k in live if not episodes[k].has_ended]

    def opened(self, environment: ToolEnvironment, row: Example) -> tuple[Opening, RenderedPrompt]:
        return shown_opening(environment.start(row), row, self.renderer)

    def environment(self) -> ToolEnvironment:
        return ToolEnvironment(tools=[self.tool()])

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.subject.processor.tokenizer.decode(list(token_ids))  # pyright: ignore

    def tool(self, *, is_async: bool = False) -> Callable[..., Any]:
        def look(ms: int):  # what it returns is not said: TRL would show that to the policy, and we would not
            """Looks at the image again.

            Args:
                ms: Milliseconds that it takes.
            """
            time.sleep(ms / 1000)
            self.slept_ms.append(ms)
            return "a glyph"

        async def look_async(ms: int):
            await asyncio.sleep(ms / 1000)
            self.slept_ms.append(ms)
            return "a glyph"

        if not is_async:
            return look
        look_async.__name__, look_async.__doc__ = look.__name__, look.__doc__
        return look_async


def example(number: int, picture: Image.Image) -> Example:
    content = [{"type": "image"}, {"type": "text", "text": f"Scene {number}: which digit stands there?"}]
    return Example(id=str(number), task="look", messages=({"role": "user", "content": content},), images=(picture,))


def conversation(row: Example) -> list[dict[str, Any]]:
    """As TRL takes it."""
    (message,), (picture,) = row.messages, row.images
    return [{"role": "user", "content": [{"type": "image", "image": picture}, message["content"][1]]}]


@contextmanager
def vllm_engine(folder: Path, subject: Subject) -> Iterator[tuple[VllmEngine, Callable[[], object]]]:
    engine = VllmEngine(
        folder,
        EndlessFacts(**asdict(subject.facts)),
        subject.processor,
        dtype="float32",
        max_model_len=MAX_LENGTH,
        max_images=1,
    )

    def forget() -> None:
        engine.llm.llm_engine.reset_encoder_cache()
        engine.llm.reset_mm_cache()
        engine.llm.reset_prefix_cache()

    try:
        yield engine, forget
    finally:
        engine.close()


@contextmanager
def transformers_engine(folder: Path, subject: Subject) -> Iterator[tuple[TransformersEngine, Callable[[], object]]]:
    facts = EndlessFacts(**asdict(subject.facts))
    yield TransformersEngine(PackedPolicy(subject.model, facts), facts), lambda: None


if __name__ == "__main__":
    main()
