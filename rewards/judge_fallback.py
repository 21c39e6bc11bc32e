"""The `rule_then_judge` reward: a rule decides what it can, a judge is asked about the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .batching import BatchReward, score_many
from .registry import make_reward, register
from .score import BadReferenceError, Completion, Reward, Score, TimedReward

RewardOption = str | Mapping[str, Any]
"""A reward's name, or a mapping with `name` and its options."""


@register("rule_then_judge")
@dataclass(frozen=True, slots=True, kw_only=True)
class RuleThenJudge(BatchReward):
    """The rule's score where it says right; elsewhere the judge's. Cheap, and few right answers are lost to a format.

    DeepEyes (arXiv 2505.14362) asks so in mathematics. A judge can overrule a rule that rightly said "wrong": watch
    the part `overruled`, and choose `ask_when: unscored` where the rule is to be trusted.
    """

    rule: RewardOption = "math"
    """Any reward: its name, or a mapping of `name` and options."""
    judge: RewardOption = "judge_accuracy"
    """The reward that is asked where the rule does not say right."""
    ask_when: Literal["wrong", "unscored", "wrong_or_unscored"] = "wrong_or_unscored"
    """When the judge is asked."""
    right_at: float = 1.0
    """The rule's score from which an answer is right."""
    judge_failed: Literal["unscored", "rule"] = "unscored"
    """What counts where the judge gives no verdict: nothing, or what the rule said."""

    def __post_init__(self) -> None:
        if self.ask_when not in ("wrong", "unscored", "wrong_or_unscored"):
            raise ValueError(f"ask_when must be 'wrong', 'unscored' or 'wrong_or_unscored', got {self.ask_when!r}")
        if self.judge_failed not in ("unscored", "rule"):
            raise ValueError(f"judge_failed must be 'unscored' or 'rule', got {self.judge_failed!r}")
        self._made()

    @property
    def deadline_s(self) -> float:
        """Seconds of both, so far as they keep a deadline; a task's deadline does not cut a judge off."""
        return sum(reward.deadline_s for reward in self._made() if isinstance(reward, TimedReward))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a check of the data asks no judge.

        Raises `BadReferenceError` where the rule's own perfect answer is not right by the rule.
        """
        rule, judge = self._made()
        judge.perfect_answer(reference)
        perfect = rule.perfect_answer(reference)
        if perfect is not None:
            (score,) = score_many(rule, [Completion(text=perfect)], [reference])
            if score.value is None or score.value < self.right_at - 1e-9:
                earned = score.reason if score.value is None else f"{score.value:g}"
                raise BadReferenceError(f"the rule's own perfect answer {perfect!r:.80} is not right by it: {earned}")
        return None

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        rule, judge = self._made()
        by_rule = score_many(rule, completions, references)
        asked = [index for index, score in enumerate(by_rule) if self._is_open(score)]
        by_judge = score_many(judge, [completions[i] for i in asked], [references[i] for i in asked])
        verdicts = dict(zip(asked, by_judge, strict=True))
        return [self._joined(score, verdicts.get(index)) for index, score in enumerate(by_rule)]

    def _made(self) -> tuple[Reward, Reward]:
        return make_reward(self.rule), make_reward(self.judge)

    def _is_open(self, score: Score) -> bool:
        if score.value is None:
            return self.ask_when != "wrong"
        return score.value < self.right_at - 1e-9 and self.ask_when != "unscored"

    def _joined(self, rule: Score, judge: Score | None) -> Score:
        parts = dict(rule.parts)
        if rule.value is not None:
            parts["rule"] = rule.value
        parts["asked"] = float(judge is not None)
        if judge is None:
            return replace(rule, parts=parts)
        parts |= {f"judge/{name}": value for name, value in judge.parts.items()}
        if judge.value is None:
            value = rule.value if self.judge_failed == "rule" else None
            return Score(value=value, parts=parts, reason=f"judge: {judge.reason}", error=judge.error and value is None)
        parts |= {"judge": judge.value, "overruled": float(rule.value is not None and judge.value >= self.right_at)}
        return Score(value=judge.value, parts=parts, reason=judge.reason)
