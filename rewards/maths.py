"""The `math` reward: is the final answer mathematically equal to the reference?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .batching import BatchReward
from .exact_numbers import exact_number
from .extraction import NO_ANSWER
from .math_answers import given_answer, gold_answer, is_prose, is_words, quick_verdict
from .math_comparison import comparable
from .math_shapes import same_parts
from .references import reference_text
from .registry import register
from .score import BadReferenceError, Completion, Score
from .workers import WorkerError, shared_pool

_COMPARE = f"{__package__}.equivalence:compare"
_IS_READABLE = f"{__package__}.equivalence:is_readable"


@register("math")
@dataclass(frozen=True, slots=True, kw_only=True)
class MathReward(BatchReward):
    r"""1 where the final answer equals the reference, else 0; unscored where that cannot be decided in time.

    The answer is the last `\boxed{...}`, `<answer>`, `####` or "answer is" after the thoughts. Numbers and words are
    compared here, everything else by math-verify in a worker process. What math-verify is lenient about stays so:
    decimals agree to six places, 10% equals both 10 and 0.1, and a unit, a currency or the base of a numeral that only
    one side has is dropped. Two units are compared: 300 cm is 3 m, and 3 cm is not.
    """

    answer_key: str = "answer"
    r"""The reference field: a number, an expression, or a worked solution that ends in `#### ...` or `\boxed{...}`."""
    deadline_s: float = 5.0
    """Wall-clock seconds for one comparison."""

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0 seconds, got {self.deadline_s}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        """The score. Raises `BadReferenceError` where the reference cannot be parsed."""
        (verdict,) = self._verdicts([completion], [reference])
        if isinstance(verdict, BadReferenceError):
            raise verdict
        return verdict

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        verdicts = self._verdicts(completions, references)
        return [
            Score.unscored(f"bad reference: {verdict}") if isinstance(verdict, BadReferenceError) else verdict
            for verdict in verdicts
        ]

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        r"""The reference's answer in a `\boxed{...}`. Raises `BadReferenceError` where it cannot be parsed."""
        gold = self._gold(reference)
        if exact_number(gold) is None and not is_words(gold):
            bare, _ = comparable(gold, gold) or (gold, gold)
            if is_prose(bare):
                raise BadReferenceError(
                    f"{self.answer_key!r} {gold!r:.80} mixes numbers and prose: keep the answer alone"
                )
            try:
                readable = shared_pool().run(_IS_READABLE, bare, deadline_s=self.deadline_s)
            except WorkerError as error:
                raise BadReferenceError(f"{self.answer_key!r} {gold!r:.80} cannot be parsed: {error}") from None
            if not readable:
                raise self._unreadable(gold)
        return rf"\boxed{{{gold}}}"

    def _verdicts(
        self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]
    ) -> list[Score | BadReferenceError]:
        verdicts: list[Score | BadReferenceError | None] = []
        open_jobs: dict[int, tuple[str, str]] = {}
        for completion, reference in zip(completions, references, strict=True):
            try:
                verdict, job = self._quick(completion, reference)
            except BadReferenceError as error:
                verdict, job = error, None
            if job is not None:
                open_jobs[len(verdicts)] = job
            verdicts.append(verdict)
        # a group of completions often says the same thing several times; it is compared once
        jobs = list(dict.fromkeys(open_jobs.values()))
        outcomes = dict(zip(jobs, shared_pool().run_many(_COMPARE, jobs, deadline_s=self.deadline_s), strict=True))
        for index, job in open_jobs.items():
            verdicts[index] = self._compared(job, outcomes[job])
        return [verdict for verdict in verdicts if verdict is not None]

    def _quick(
        self, completion: Completion, reference: Mapping[str, Any]
    ) -> tuple[Score | None, tuple[str, str] | None]:
        """A score, or the two answers that a worker must compare."""
        gold = self._gold(reference)
        given = given_answer(completion.text)
        if given is None:
            return Score(value=0.0, reason=NO_ANSWER), None
        verdict = quick_verdict(gold, given)
        if verdict is None:
            pair = comparable(gold, given)
            if pair is None:
                return Score(value=0.0, reason=f"{given!r:.80} is not the kind of answer that {gold!r:.80} is"), None
            verdict = quick_verdict(*pair)
            if verdict is None:
                verdict = same_parts(*pair, quick_verdict)
            if verdict is None:
                return None, pair
        return Score(value=float(verdict)), None

    def _compared(self, job: tuple[str, str], outcome: Any) -> Score | BadReferenceError:
        gold, given = job
        if isinstance(outcome, WorkerError):
            return Score.unscored(f"comparing {given!r:.80} with {gold!r:.80}: {outcome}")
        if outcome == "unreadable gold":
            return self._unreadable(gold)
        return Score(value=float(outcome == "equal"))

    def _gold(self, reference: Mapping[str, Any]) -> str:
        gold = gold_answer(reference_text(reference, self.answer_key))
        if not gold:
            raise BadReferenceError(f"{self.answer_key!r} holds no answer after its last #### or in its last \\boxed")
        return gold

    def _unreadable(self, gold: str) -> BadReferenceError:
        return BadReferenceError(f"{self.answer_key!r} {gold!r:.80} is not mathematics that math-verify can read")
