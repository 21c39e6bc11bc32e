"""The `judge_accuracy` reward: does a judge find the final answer equal to the reference?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .extraction import MAX_ANSWER_CHARS, extract_answer, last_tagged, strip_thinking, whole_answer
from .judge_images import data_urls
from .judge_prompts import ACCURACY, JudgeQuestion, context_of
from .judge_quotes import quoted
from .judge_reward import JudgeReward, Verdict, question_of
from .judge_server import ServerOptions, plain_options
from .judge_verdicts import Choice, VerdictFormat
from .references import reference_text
from .registry import register
from .score import Completion, Score

_VERDICT = VerdictFormat({"correct": Choice((True, False))})


@register("judge_accuracy")
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAccuracy(JudgeReward):
    """1 where a judge finds the final answer equal to the reference, else 0; unscored where the judge gives no verdict.

    The judge sees the question, the reference and the extracted answer, never the thoughts: a chain of reasoning argues
    for its own answer. Prose that marks no answer is shown as it is. No answer, or one longer than `max_answer_chars`,
    is 0 and is not asked about, as in DeepEyes (arXiv 2505.14362), whose policies learned to talk their judge round.
    """

    server: ServerOptions = field(default_factory=dict)
    """The judge's server: `url`, `model` and what else docs/judges.md lists."""
    answer_key: str = "answer"
    """The reference field with the right answer."""
    question_key: str = "question"
    """The reference field with the question; where it is missing, the last user turn is the question."""
    extract: Literal["final", "whole"] = "final"
    """final: the last tag, box, `####` or answer line; whole: the last tag or box. Where there is none, everything
    after the thoughts is the answer."""
    max_answer_chars: int = MAX_ANSWER_CHARS
    """A longer answer is wrong."""
    images: bool = False
    """Whether the judge is shown the images."""
    images_key: str = "images"
    """The reference field with images, for completions that carry none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", plain_options(self.server))
        if self.max_answer_chars < 1:
            raise ValueError(f"max_answer_chars must be at least 1, got {self.max_answer_chars}")

    @property
    def server_options(self) -> ServerOptions:
        return self.server

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a check of the data asks no judge. Raises `BadReferenceError` where there is no answer."""
        reference_text(reference, self.answer_key)
        return None

    def ask_about(self, completion: Completion, reference: Mapping[str, Any]) -> list[JudgeQuestion] | Score:
        right = reference_text(reference, self.answer_key)
        answer = self._answer(completion.text)
        quote = quoted(answer, self.max_answer_chars) if answer is not None else ""
        if not quote:
            return Score(value=0.0, reason=f"no final answer of at most {self.max_answer_chars} characters")
        question = JudgeQuestion(
            system=ACCURACY,
            context=context_of(question=question_of(completion, reference, self.question_key), reference_answer=right),
            judged=(("answer", quote),),
            verdict=_VERDICT,
            images=data_urls(completion, reference, self.images_key) if self.images else (),
        )
        return [question]

    def score_of(self, verdicts: Sequence[Verdict]) -> Score:
        return Score(value=float(verdicts[0]["correct"]))

    def _answer(self, text: str) -> str | None:
        answer = extract_answer(text, max_chars=self.max_answer_chars) if self.extract == "final" else None
        if answer is None and (self.extract == "whole" or _is_unmarked(text)):
            answer = (whole_answer(text) or "").strip()
        return answer if answer and len(answer) <= self.max_answer_chars else None


def _is_unmarked(text: str) -> bool:
    """Whether no tag or box was opened in which the answer stands, or should: an empty or unclosed one is none."""
    spoken = strip_thinking(text)
    return spoken is not None and last_tagged(spoken) is None and "<answer>" not in spoken and "\\boxed" not in spoken
