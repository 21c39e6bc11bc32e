"""Scoring many completions by one reward, whatever the reward does: it may raise, hang, or return nonsense."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .score import BadReferenceError, BadRewardError, Completion, Reward, Score, TimedReward

_log = logging.getLogger(__name__)
_logged: set[tuple[str, type]] = set()
"""(reward, kind of exception) whose traceback has been logged."""

_MAX_FAILED_CALLS = 20
"""Calls that may fail while the completions that a batch reward cannot score are looked for; 256 take 9 for each."""

Returned = TypeVar("Returned")


class BatchReward(ABC):
    """A `Reward` that also scores a whole batch: in worker processes, or by one call of a user's function."""

    __slots__ = ()

    @abstractmethod
    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        """One score for each completion, in order; a reference that cannot be parsed gives an unscored one."""

    @abstractmethod
    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """As `Reward.perfect_answer`."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        return self.score_batch([completion], [reference])[0]


class DeadlineError(TimeoutError):
    """A call that ran past its deadline."""


def score_many(
    reward: Reward,
    completions: Sequence[Completion],
    references: Sequence[Mapping[str, Any]],
    *,
    name: str = "",
    deadline_s: float | None = None,
) -> list[Score]:
    """Scores of any reward for many completions, in order.

    A bad reference leaves its own completion unscored, with the reason: `check` finds them before training, and one
    that is met later must not end a run of hours, nor teach the policy that its answer was wrong. So does a reward that
    raises; the score then says `error`, and the first traceback is logged. A batch reward that raises is called again
    on halves of the batch, so that one odd row does not cost the others their scores.

    deadline_s: wall-clock seconds of one call, for rewards that keep no deadline of their own; a call that runs longer
    goes on in its thread, and nobody waits for it. Raises `BadRewardError` for anything but one score a completion.
    """
    name = name or type(reward).__name__
    limit = None if isinstance(reward, TimedReward) else deadline_s
    if isinstance(reward, BatchReward):
        return _score_batch(reward, completions, references, name, limit)
    scores = []
    for completion, reference in zip(completions, references, strict=True):
        try:
            scores.append(_checked(_within(limit, lambda c=completion, r=reference: reward(c, r)), name))
        except BadReferenceError as error:
            scores.append(Score.unscored(f"bad reference: {error}"))
        except BadRewardError:
            raise
        except Exception as error:
            scores.append(_failure(name, error))
    return scores


def one_line(error: BaseException) -> str:
    """`ValueError: what it says`, on one line of bounded length."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said:.300}" if said else type(error).__name__


def _score_batch(
    reward: BatchReward,
    completions: Sequence[Completion],
    references: Sequence[Mapping[str, Any]],
    name: str,
    deadline_s: float | None,
) -> list[Score]:
    scores: dict[int, Score] = {}
    failed_calls = 0
    spans = [range(len(completions))] if completions else []
    while spans:
        span = spans.pop()
        rows, given = [completions[i] for i in span], [references[i] for i in span]
        try:
            found = _within(deadline_s, lambda rows=rows, given=given: reward.score_batch(rows, given))
        except BadRewardError:
            raise
        except Exception as error:
            failed_calls += 1
            middle = len(span) // 2
            if middle == 0 or isinstance(error, DeadlineError) or failed_calls >= _MAX_FAILED_CALLS:
                scores.update(dict.fromkeys(span, _failure(name, error)))
            else:
                spans += [span[middle:], span[:middle]]
            continue
        if not isinstance(found, Sequence) or len(found) != len(rows):
            got = f"{len(found)} scores" if isinstance(found, Sequence) else f"{found!r:.80}"
            raise BadRewardError(f"reward {name!r} returned {got} for {len(rows)} completions; return one for each")
        scores.update(zip(span, (_checked(score, name) for score in found), strict=True))
    return [scores[index] for index in range(len(completions))]


def _checked(score: Any, name: str) -> Score:
    if not isinstance(score, Score):
        raise BadRewardError(f"reward {name!r} must return a Score, such as Score(value=1.0), got {score!r:.80}")
    return score


def _failure(name: str, error: Exception) -> Score:
    kind = (name, type(error))
    if kind not in _logged:
        _logged.add(kind)
        _log.error("reward '%s' raises; what it cannot score is unscored", name, exc_info=error)
    return Score(value=None, reason=one_line(error), error=True)


def _within(deadline_s: float | None, call: Callable[[], Returned]) -> Returned:
    """What `call` returns or raises. Raises `DeadlineError` where it takes longer; Python cannot end its thread."""
    if deadline_s is None:
        return call()
    outcome: list[Returned] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # belongs to whoever waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)  # a hanging reward must not keep the interpreter from ending
    thread.start()
    thread.join(deadline_s)
    if raised:
        raise raised[0]
    if not outcome:
        raise DeadlineError(f"no verdict within {deadline_s:g} s")
    return outcome[0]
