"""The `judge_process` reward: were the tools' answers read rightly, and the steps coherent?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from .judge_images import data_urls
from .judge_prompts import PROCESS, JudgeQuestion, context_of
from .judge_quotes import kept_turns, quoted_turns
from .judge_reward import JudgeReward, Verdict, optional_text, question_of
from .judge_server import ServerOptions, plain_options
from .judge_verdicts import Scale, VerdictFormat
from .registry import register
from .score import BadReferenceError, Completion, Score, ToolCall

_HIGHEST = 10.0
_VERDICT = VerdictFormat({"interpretation": Scale(0.0, _HIGHEST), "coherence": Scale(0.0, _HIGHEST)})
_CALL_END = "</tool_call>"


@register("judge_process")
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeProcess(JudgeReward):
    """A judge's grades of a trajectory with tools, in [0, 1]: interpretation of the tools' answers, and coherence.

    The second reward of Qwen3-VL's agents (arXiv 2511.21631, section 4.5). The judge sees the turns, thoughts included;
    tool turns are what the environment answered, never what the text claims, and an image that a turn showed is named
    in it by its place among the images that the judge is shown. Alone it teaches the policy to make one
    call and talk well: pay it beside accuracy, and `tool_count`, on right answers only (a gate of the table).
    """

    server: ServerOptions = field(default_factory=dict)
    """The judge's server: `url`, `model` and what else docs/judges.md lists."""
    answer_key: str = "answer"
    """The reference field with the right answer; rows may lack it."""
    question_key: str = "question"
    """The reference field with the question; where it is missing, the last user turn is the question."""
    max_turns: int = 40
    """Of more turns the judge sees the first and the last ones."""
    max_turn_chars: int = 3000
    """Of a longer turn the judge sees the two ends."""
    images: bool = False
    """Whether the judge is shown the images: the prompt's, and those of the turns that it sees."""
    images_key: str = "images"
    """The reference field with images, for completions that carry none."""

    reads_whole_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", plain_options(self.server))
        if self.max_turns < 2 or self.max_turn_chars < 1:
            got = f"{self.max_turns} and {self.max_turn_chars}"
            raise ValueError(f"max_turns must be at least 2 and max_turn_chars at least 1, got {got}")

    @property
    def server_options(self) -> ServerOptions:
        return self.server

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: grades determine no answer."""
        optional_text(reference, self.answer_key)
        return None

    def ask_about(self, completion: Completion, reference: Mapping[str, Any]) -> list[JudgeQuestion] | Score:
        if not completion.text.strip():
            return Score(value=0.0, reason="an empty trajectory")
        shown = _shown_images(completion, self.max_turns) if self.images else ()
        turns = turns_of(completion, {image: place for place, image in enumerate(shown, start=1)})
        seen = replace(completion, images=tuple(completion.images[image] for image in shown))
        question = JudgeQuestion(
            system=PROCESS,
            context=context_of(
                question=question_of(completion, reference, self.question_key),
                right_answer=optional_text(reference, self.answer_key),
            ),
            judged=(("turns", quoted_turns(turns, max_turns=self.max_turns, max_turn_chars=self.max_turn_chars)),),
            verdict=_VERDICT,
            images=data_urls(seen, reference, self.images_key) if self.images else (),
        )
        return [question]

    def score_of(self, verdicts: Sequence[Verdict]) -> Score:
        parts = {axis: verdicts[0][axis] / _HIGHEST for axis in _VERDICT.fields}
        return Score(value=sum(parts.values()) / len(parts), parts=parts)


def turns_of(completion: Completion, places: Mapping[int, int]) -> list[tuple[str, str]]:
    """(role, text) of what followed the prompt: the turns of the episode, as its environment recorded them.

    places: index in the completion's images -> what the judge calls it. For a completion without turns: what was said
    up to each call, then what the environment answered. Where the text holds another number of calls than the
    environment ran, all that was said comes first.
    """
    if completion.turns:
        first = len(completion.images) - sum(turn.num_images for turn in completion.turns)
        turns: list[tuple[str, str]] = []
        for turn in completion.turns:
            images = range(first, first + turn.num_images)
            marks = [f"(image {places[image]})" if image in places else "(an image)" for image in images]
            turns.append((turn.role, "\n".join([turn.text, *marks] if turn.text else marks)))
            first += turn.num_images
        return turns
    return _parted(completion)


def _shown_images(completion: Completion, max_turns: int) -> tuple[int, ...]:
    """Indices of the images of the prompt and of the turns that are not left out."""
    kept = kept_turns(len(completion.turns), max_turns)
    place = len(completion.images) - sum(turn.num_images for turn in completion.turns)
    if place < 0:
        raise BadReferenceError(f"the turns show {-place} images more than the {len(completion.images)} that are there")
    shown = list(range(place))
    for number, turn in enumerate(completion.turns):
        if number in kept:
            shown += range(place, place + turn.num_images)
        place += turn.num_images
    return tuple(shown)


def _parted(completion: Completion) -> list[tuple[str, str]]:
    said = completion.text.split(_CALL_END)
    said = [part + _CALL_END for part in said[:-1]] + [said[-1]]
    if len(said) != len(completion.tool_calls) + 1:
        said = [completion.text] + [""] * len(completion.tool_calls)
    turns: list[tuple[str, str]] = []
    for index, text in enumerate(said):
        if text.strip():
            turns.append(("assistant", text))
        if index < len(completion.tool_calls):
            turns.append(("tool", _answered(completion.tool_calls[index])))
    return turns


def _answered(call: ToolCall) -> str:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False, default=str)
    outcome = f"failed: {call.error}" if call.error else f"answered: {call.text or '(an image, or nothing)'}"
    return f"{call.name}({arguments})\n{outcome}"
