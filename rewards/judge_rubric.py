"""The `judge_rubric` reward: a judge's grades on several axes, weighted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .extraction import strip_thinking
from .judge_images import data_urls
from .judge_prompts import RUBRIC, JudgeQuestion, context_of
from .judge_quotes import quoted
from .judge_reward import JudgeReward, Verdict, optional_text, question_of
from .judge_server import ServerOptions, plain_options
from .judge_verdicts import Scale, VerdictFormat
from .registry import register
from .score import Completion, Score

HIGHEST = 10.0
CRITERIA = {
    "instruction_following": "does what was asked: content, format, length, and every constraint",
    "helpfulness": "serves the purpose of the one who asked, complete and to the point",
    "factuality": "every claim is true, and agrees with the reference and the images where there are any",
    "style": "clear, fitting in tone, well ordered, without repetition or filler",
}
"""The known axes and what they mean."""


@register("judge_rubric")
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRubric(JudgeReward):
    """The weighted mean of a judge's grades from 0 to 10, divided by 10; every axis is a part in [0, 1].

    The axes of Qwen3-VL's general RL (arXiv 2511.21631, section 4.4): instruction following, and preference in
    helpfulness, factuality and style, against a reference answer where the row has one. The judge sees what follows the
    thoughts; a thought that was never closed, and an empty response, are 0 and not asked about.
    """

    server: ServerOptions = field(default_factory=dict)
    """The judge's server: `url`, `model` and what else docs/judges.md lists."""
    axes: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CRITERIA, 1.0))
    """Axis -> weight."""
    criteria: Mapping[str, str] = field(default_factory=dict)
    """Axis -> what it means, for axes of your own, or to say it in another way."""
    answer_key: str = "answer"
    """The reference field with a reference answer; rows may lack it."""
    rubric_key: str = "rubric"
    """The reference field with criteria of this row alone, as text; rows may lack it."""
    question_key: str = "question"
    """The reference field with the request; where it is missing, the last user turn is the request."""
    max_response_chars: int = 8000
    """Of a longer response the judge sees the two ends."""
    images: bool = False
    """Whether the judge is shown the images."""
    images_key: str = "images"
    """The reference field with images, for completions that carry none."""

    reads_whole_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", plain_options(self.server))
        if not self.axes or any(weight < 0 for weight in self.axes.values()) or not sum(self.axes.values()) > 0:
            raise ValueError(f"axes must map names to weights of 0 or more, not all 0; got {dict(self.axes)}")
        for axis in self.axes:
            if axis == "id" or not axis.isidentifier():
                raise ValueError(f"an axis is named by one word, joined by underscores, other than 'id'; got {axis!r}")
            if axis not in CRITERIA and axis not in self.criteria:
                raise ValueError(
                    f"the axis {axis!r} has no description; add it to criteria, or use {', '.join(CRITERIA)}"
                )
        if unused := set(self.criteria) - set(self.axes):
            raise ValueError(f"criteria describe {min(unused)!r}, which is none of the axes: {', '.join(self.axes)}")
        if self.max_response_chars < 1:
            raise ValueError(f"max_response_chars must be at least 1, got {self.max_response_chars}")

    @property
    def server_options(self) -> ServerOptions:
        return self.server

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: grades determine no answer."""
        optional_text(reference, self.answer_key)
        optional_text(reference, self.rubric_key)
        return None

    def ask_about(self, completion: Completion, reference: Mapping[str, Any]) -> list[JudgeQuestion] | Score:
        response = strip_thinking(completion.response)
        if response is None:
            return Score(value=0.0, reason="the thought was never closed")
        quote = quoted(response, self.max_response_chars)
        if not quote:
            return Score(value=0.0, reason="an empty response")
        meanings = {**CRITERIA, **self.criteria}
        question = JudgeQuestion(
            system=RUBRIC,
            context=context_of(
                axes="\n".join(f"{axis}: {meanings[axis]}" for axis in self.axes),
                request=question_of(completion, reference, self.question_key),
                criteria_of_this_request=optional_text(reference, self.rubric_key),
                reference_answer=optional_text(reference, self.answer_key),
            ),
            judged=(("response", quote),),
            verdict=VerdictFormat(dict.fromkeys(self.axes, Scale(0.0, HIGHEST))),
            images=data_urls(completion, reference, self.images_key) if self.images else (),
        )
        return [question]

    def score_of(self, verdicts: Sequence[Verdict]) -> Score:
        parts = {axis: verdicts[0][axis] / HIGHEST for axis in self.axes}
        total = sum(weight * parts[axis] for axis, weight in self.axes.items())
        return Score(value=total / sum(self.axes.values()), parts=parts)
