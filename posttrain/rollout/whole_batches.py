"""A stream for engines that answer whole batches only: what has gathered is asked together."""

from posttrain.rollout.engine import Answer, Engine, Request, Sampling, Stream, StreamingEngine


def stream_of(engine: Engine, sampling: Sampling) -> Stream:
    """The engine's own stream, or one that asks it batch by batch."""
    return engine.stream(sampling) if isinstance(engine, StreamingEngine) else WholeBatches(engine, sampling)


class WholeBatches:
    """Episodes of several turns then wait for each other: an engine of your own wants a `stream` for those."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self._engine, self._sampling = engine, sampling
        self._waiting: list[tuple[int, Request]] = []
        self._num_batches = 0
        self._max_new_tokens = sampling.max_new_tokens

    @property
    def num_running(self) -> int:
        return sum(request.n for _, request in self._waiting)

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        """A batch is drawn with the sampling's seed, and with the longest answer that one of its requests may have."""
        self._waiting.append((key, request))
        self._max_new_tokens = max(max_new_tokens, self._max_new_tokens if len(self._waiting) > 1 else 0)

    def forget(self, key: int) -> None:
        """Nothing is kept."""

    def poll(self, timeout_s: float) -> list[Answer]:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        sampling = Sampling(
            max_new_tokens=self._max_new_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=self._sampling.top_k,
            seed=self._sampling.seed + self._num_batches,
        )
        self._num_batches += 1
        answers = self._engine.generate([request for _, request in waiting], sampling)
        return [
            Answer(key=key, index=index, sample=sample)
            for (key, _), samples in zip(waiting, answers, strict=True)
            for index, sample in enumerate(samples)
        ]

    def close(self) -> None:
        self._waiting.clear()
