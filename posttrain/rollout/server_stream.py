"""Requests to vLLM servers from a thread that goes on with its own work, and their samples as they end."""

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from threading import Thread

from posttrain.errors import EngineError
from posttrain.model import ModelFacts
from posttrain.rollout.engine import Answer, Request, Sample, Sampling
from posttrain.rollout.server_fleet import Fleet
from posttrain.rollout.server_homes import Homes
from posttrain.rollout.server_samples import Job, job_for
from posttrain.rollout.vllm_prompts import checked_prompt, vllm_seed
from posttrain.teachers.data_urls import data_url

_LOOK_S = 1.0
"""Between two looks at whether the thread that asks is alive."""


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="vllm-servers", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


class ServerStream:
    """A `Stream` on vLLM servers. Made by `VllmServerEngine.stream`."""

    def __init__(
        self,
        fleet: Fleet,
        background: Background,
        facts: ModelFacts,
        sampling: Sampling,
        max_model_len: int,
        *,
        between: Callable[[], None],
    ) -> None:
        """between: called by the thread that polls, at least once a second while it waits."""
        self._between = between
        self._fleet, self._background, self._facts, self._sampling = fleet, background, facts, sampling
        self._max_model_len = max_model_len
        self._homes = Homes()
        self._urls: dict[str, str] = {}
        self._ended: SimpleQueue[tuple[int, range, Future[Sample]]] = SimpleQueue()
        self._asked: set[Future[Sample]] = set()
        self.num_running = 0

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        self.add_seeded(key, request, max_new_tokens=max_new_tokens, seed=vllm_seed(seed))

    def add_seeded(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        """seed: vLLM's own, for the first of the samples."""
        token_ids = checked_prompt(request, self._facts, self._max_model_len)
        urls = [self._url(image.key, place, request) for place, image in enumerate(request.images)]
        # Greedy samples of one prompt are all the same.
        greedy = self._sampling.temperature == 0
        for indices in [range(request.n)] if greedy else [range(i, i + 1) for i in range(request.n)]:
            job = job_for(
                request,
                token_ids,
                urls,
                self._facts,
                self._sampling,
                max_new_tokens=max_new_tokens,
                seed=seed + indices.start,
            )
            self._ask(job, key, indices)

    def forget(self, key: int) -> None:
        """The servers' prefix caches keep what is used."""

    def poll(self, timeout_s: float) -> list[Answer]:
        """Waits until a sample has ended, or `timeout_s` is over."""
        answers: list[Answer] = []
        waited = 0.0
        while self.num_running:
            self._between()
            wait_s = 0.0 if answers else min(_LOOK_S, timeout_s - waited)
            try:
                key, indices, future = self._ended.get(timeout=wait_s) if wait_s > 0 else self._ended.get_nowait()
            except Empty:
                waited += wait_s
                if not self._background.is_alive:
                    raise EngineError("the thread that asks the vLLM servers has died") from None
                if answers or waited >= timeout_s:
                    break
                continue
            self._asked.discard(future)
            try:
                sample = future.result()
            except CancelledError:
                raise EngineError("the engine was closed while it was asked") from None
            answers.extend(Answer(key=key, index=index, sample=sample) for index in indices)
            self.num_running -= len(indices)
        return answers

    def close(self) -> None:
        """Drops what is still running; servers stop at what nobody waits for."""
        for future in self._asked:
            future.cancel()
        self._asked.clear()
        self._ended = SimpleQueue()
        self.num_running = 0

    def _ask(self, job: Job, key: int, indices: range) -> None:
        future = asyncio.run_coroutine_threadsafe(self._fleet.sample(job, self._homes), self._background.loop)
        ended = self._ended
        future.add_done_callback(lambda done: ended.put((key, indices, done)))
        self._asked.add(future)
        self.num_running += len(indices)

    def _url(self, key: str, place: int, request: Request) -> str:
        if key not in self._urls:
            self._urls[key] = data_url(request.pictures[place])
        return self._urls[key]
