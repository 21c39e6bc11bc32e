"""What the judge rewards share: a batch is prepared, asked all at once, and a failure is unscored with its reason."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from .batching import BatchReward
from .judge import Judge, Verdict, find_judge
from .judge_client import JudgeError
from .judge_loop import run_on_judge_loop
from .judge_prompts import JudgeQuestion
from .judge_server import ServerOptions, make_server
from .references import as_text
from .score import BadReferenceError, Completion, Score


class JudgeReward(BatchReward):
    """A reward whose verdicts come from a model on a server. Nothing is contacted before the first completion."""

    __slots__ = ()

    @property
    @abstractmethod
    def server_options(self) -> ServerOptions:
        """Where and how to ask."""

    @abstractmethod
    def ask_about(self, completion: Completion, reference: Mapping[str, Any]) -> list[JudgeQuestion] | Score:
        """What to ask, or the score where nothing is to be asked. Raises `BadReferenceError`."""

    @abstractmethod
    def score_of(self, verdicts: Sequence[Verdict]) -> Score:
        """The score from one verdict for each question."""

    @property
    def judge(self) -> Judge:
        """The judge that is asked; rewards with equal server settings share it."""
        return find_judge(make_server(self.server_options))

    @property
    def deadline_s(self) -> float:
        """Seconds after which a verdict is given up at the latest: the judge keeps its own time."""
        server = make_server(self.server_options)
        return server.verdict_tries * (server.retries + 1) * server.timeout_s

    def metrics(self) -> dict[str, float]:
        """`judge/failed_frac`, `judge/requests`, `judge/cache_hits` and others, since the process began."""
        return self.judge.metrics()

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        """One score for each, all asked at once; callable from any thread, inside a running event loop too."""
        prepared = [self._prepared(*row) for row in zip(completions, references, strict=True)]
        return run_on_judge_loop(self._score_all(prepared))

    async def score_batch_async(
        self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]
    ) -> list[Score]:
        """`score_batch` without blocking the caller's event loop."""
        import asyncio

        return await asyncio.to_thread(self.score_batch, completions, references)

    def _prepared(self, completion: Completion, reference: Mapping[str, Any]) -> list[JudgeQuestion] | Score:
        """`ask_about`, on the caller's thread: encoding images must not hold up what is under way."""
        try:
            return self.ask_about(completion, reference)
        except BadReferenceError as error:
            return Score.unscored(f"bad reference: {error}")

    async def _score_all(self, prepared: Sequence[list[JudgeQuestion] | Score]) -> list[Score]:
        import asyncio

        judge = self.judge
        return await asyncio.gather(*(self._score(judge, questions) for questions in prepared))

    async def _score(self, judge: Judge, questions: list[JudgeQuestion] | Score) -> Score:
        if isinstance(questions, Score):
            return questions
        import asyncio

        try:
            return self.score_of(await asyncio.gather(*(judge.ask(question) for question in questions)))
        except JudgeError as error:
            return Score(value=None, reason=str(error), error=True)


def question_of(completion: Completion, reference: Mapping[str, Any], key: str) -> str:
    """What was asked: the reference's field where it has one, else the last user turn."""
    return optional_text(reference, key) or completion.prompt


def optional_text(reference: Mapping[str, Any], key: str) -> str:
    """`reference[key]` as text, empty where it is missing. Raises `BadReferenceError` for what is no text."""
    held = reference.get(key)
    return "" if held is None else as_text(held, key)
