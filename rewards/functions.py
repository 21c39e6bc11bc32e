"""Plain functions as rewards, in the style that TRL's trainers take."""

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .batching import BatchReward
from .score import BadRewardError, Completion, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReward(BatchReward):
    """`f(prompts=..., completions=..., **columns) -> list[float | None]`, called once for a batch.

    Columns are the reference fields, each a list as long as the batch, with None where a row lacks the field.
    `completion_ids` is passed as TRL does, and `final_answers` as the task's extraction finds them. A function without
    `**kwargs` gets only what it names. It may be async: it is awaited in an event loop of its own, from any thread.
    None and NaN mean unscored; an infinite number is unscored as an error. Raises `BadRewardError` for an answer of
    another length or kind.
    """

    reads_whole_text: ClassVar[bool] = True
    function: Callable[..., Any]
    """The function."""
    conversational: bool = True
    """Gives prompts and completions as message lists, as TRL does for conversational data; False gives bare texts."""

    @property
    def name(self) -> str:
        return self.function.__name__ if inspect.isroutine(self.function) else type(self.function).__name__

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: nothing is known about what the function wants."""
        return None

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        values = self.function(**self._arguments(completions, references))
        if inspect.isawaitable(values):
            values = _awaited(values)
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise self._wrong(f"must return a list of numbers, got {values!r:.80}")
        try:
            values = list(values)
        except TypeError:  # an array without axes is an Iterable, and cannot be walked
            raise self._wrong(f"must return a list of numbers, got {values!r:.80}") from None
        if len(values) != len(completions):
            raise self._wrong(f"returned {len(values)} values for {len(completions)} completions")
        return [self._score(value) for value in values]

    def _arguments(
        self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[Any]]:
        columns = sorted({key for reference in references for key in reference})
        offered: dict[str, list[Any]] = {key: [reference.get(key) for reference in references] for key in columns}
        offered["completion_ids"] = [list(completion.token_ids) for completion in completions]
        offered["prompts"] = [self._as_given("user", completion.prompt) for completion in completions]
        offered["completions"] = [self._turns(completion) for completion in completions]
        offered.setdefault("final_answers", [completion.answer for completion in completions])
        parameters = inspect.signature(self.function).parameters.values()
        for parameter in parameters:
            required = parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if required and parameter.name not in offered:
                held = ", ".join(columns) or "no fields"
                raise self._wrong(f"wants {parameter.name!r}, but the references hold: {held}")
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return offered
        return {parameter.name: offered[parameter.name] for parameter in parameters if parameter.name in offered}

    def _turns(self, completion: Completion) -> Any:
        """All turns of an episode, what the environment answered too, else the one that was said."""
        if self.conversational and completion.turns:
            return [{"role": turn.role, "content": turn.text} for turn in completion.turns]
        return self._as_given("assistant", completion.text)

    def _as_given(self, role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if self.conversational else text

    def _score(self, value: Any) -> Score:
        if isinstance(value, str | bytes):
            raise self._wrong(f"returned {value!r:.80} where a number was wanted")
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise self._wrong(f"returned {value!r:.80} where a number was wanted") from None
        if math.isnan(number):
            return Score.unscored("it gave no verdict")
        if math.isinf(number):
            return Score(value=None, reason=f"it returned {number}", error=True)
        return Score(value=number)

    def _wrong(self, problem: str) -> BadRewardError:
        return BadRewardError(f"reward function {self.name!r} {problem}")


def _awaited(values: Awaitable[Any]) -> Any:
    """What it comes to, in a thread of its own: this one may be running an event loop."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def wait() -> Any:
        return await values

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(wait())).result()
