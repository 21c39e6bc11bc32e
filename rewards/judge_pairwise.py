"""The `judge_pairwise` reward: is the response better than an anchor, whichever of the two is shown first?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .extraction import strip_thinking
from .judge_images import data_urls
from .judge_prompts import PAIRWISE, JudgeQuestion, context_of
from .judge_quotes import quoted
from .judge_reward import JudgeReward, Verdict, question_of
from .judge_server import ServerOptions, plain_options
from .judge_verdicts import Choice, VerdictFormat
from .references import reference_text
from .registry import register
from .score import Completion, Score

_VERDICT = VerdictFormat({"better": Choice(("first", "second", "tie"))})
_WORTH_FIRST = {"first": 1.0, "tie": 0.5, "second": 0.0}


@register("judge_pairwise")
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePairwise(JudgeReward):
    """1 where a judge prefers the response to the anchor, 0 where it prefers the anchor, 0.5 for a tie.

    Both orders are asked, because judges favour a place. For tasks without a right answer: against one anchor a group
    of G takes 2 G requests, where all pairs would take G (G - 1). An empty response, and a thought that was never
    closed, are 0 and not asked about.
    """

    server: ServerOptions = field(default_factory=dict)
    """The judge's server: `url`, `model` and what else docs/judges.md lists."""
    anchor_key: str = "answer"
    """The reference field with the response to compare with."""
    question_key: str = "question"
    """The reference field with the request; where it is missing, the last user turn is the request."""
    disagreement: Literal["half", "unscored"] = "half"
    """What it earns where the two orders give different verdicts: 0.5, or none."""
    max_response_chars: int = 8000
    """Of a longer response the judge sees the two ends."""
    images: bool = False
    """Whether the judge is shown the images."""
    images_key: str = "images"
    """The reference field with images, for completions that carry none."""

    reads_whole_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", plain_options(self.server))
        if self.disagreement not in ("half", "unscored"):
            raise ValueError(f"disagreement must be 'half' or 'unscored', got {self.disagreement!r}")
        if self.max_response_chars < 1:
            raise ValueError(f"max_response_chars must be at least 1, got {self.max_response_chars}")

    @property
    def server_options(self) -> ServerOptions:
        return self.server

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: nothing is known that beats the anchor. Raises `BadReferenceError` where there is no anchor."""
        reference_text(reference, self.anchor_key)
        return None

    def ask_about(self, completion: Completion, reference: Mapping[str, Any]) -> list[JudgeQuestion] | Score:
        anchor = quoted(reference_text(reference, self.anchor_key), self.max_response_chars)
        response = strip_thinking(completion.response)
        if response is None:
            return Score(value=0.0, reason="the thought was never closed")
        quote = quoted(response, self.max_response_chars)
        if not quote:
            return Score(value=0.0, reason="an empty response")
        context = context_of(request=question_of(completion, reference, self.question_key))
        images = data_urls(completion, reference, self.images_key) if self.images else ()
        return [
            JudgeQuestion(
                system=PAIRWISE,
                context=context,
                judged=(("first response", first), ("second response", second)),
                verdict=_VERDICT,
                images=images,
            )
            for first, second in ((quote, anchor), (anchor, quote))
        ]

    def score_of(self, verdicts: Sequence[Verdict]) -> Score:
        shown_first = _WORTH_FIRST[verdicts[0]["better"]]
        shown_second = 1.0 - _WORTH_FIRST[verdicts[1]["better"]]
        parts = {"shown_first": shown_first, "shown_second": shown_second}
        if shown_first == shown_second:
            return Score(value=shown_first, parts=parts)
        remark = "the judge's two orders disagree"
        if self.disagreement == "unscored":
            return Score.unscored(remark, **parts)
        return Score(value=0.5, parts=parts, reason=remark)
