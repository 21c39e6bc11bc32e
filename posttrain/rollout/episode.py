"""One episode in tokens: what was shown, what the policy said, what it was answered. Nothing is rendered twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from posttrain.data import RenderedPrompt
from posttrain.environments.environment import Done, Observation, Opening
from posttrain.records import Example, Limit, Status, Trajectory, Turn
from posttrain.rewards import ToolCall
from posttrain.rollout.engine import Request, Sample

TOKEN_LIMIT = "the policy's turn met the limit of tokens"
"""Why an episode was cut short within a turn."""

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, markup included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where an episode is cut short, always after a whole turn of the policy."""

    max_turns: int = 6
    """Turns of the policy; an episode that would go on after the last one is cut short."""
    max_images: int = 8
    """Images that observations show; those of the opening are not counted."""


class Episode:
    """Grows turn by turn: `begin`, then `said` and `observed` in turns, until it has ended; `trajectory` at any time.

    limits: None without an environment: then the first turn is the last. max_length, max_images: what the policy may
    have read and said before a turn, the opening included. Used by one thread.
    """

    def __init__(
        self,
        example: Example,
        decode: Decode,
        *,
        limits: Limits | None = None,
        max_length: int = 1 << 30,
        max_images: int = 1 << 30,
    ) -> None:
        self.example, self.limits = example, limits or Limits()
        self.max_length, self.max_images = max_length, max_images
        self._decode, self._has_environment = decode, limits is not None
        self._token_ids: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []
        self._shown: list[RenderedPrompt] = []
        self._opening: Opening | None = None
        self._turns: list[Turn] = []
        self._said = ""
        self._version = 0
        self._status: Status | None = None
        self._error = ""
        self._limit: Limit | None = None
        self._score: float | None = None
        self.num_tokens = 0

    @property
    def has_ended(self) -> bool:
        return self._status is not None

    @property
    def num_turns(self) -> int:
        return len(self._turns)

    @property
    def last_text(self) -> str:
        """What the policy said last."""
        return self._turns[-1].text

    @property
    def num_images_left(self) -> int:
        """Images that its observations may still show."""
        return self._most_images - sum(len(shown.images) for shown in self._shown[1:])

    @property
    def _most_images(self) -> int:
        num_opening = len(self._shown[0].images) if self._shown else 0
        return min(self.limits.max_images, self.max_images - num_opening)

    def begin(self, prompt: RenderedPrompt, opening: Opening | None = None) -> None:
        self._opening = opening
        self._show(prompt)

    def request(self, n: int = 1) -> Request:
        """What the engine is asked for the next turn: all tokens so far, as they were."""
        return Request(
            token_ids=np.concatenate(self._token_ids),
            images=tuple(image for shown in self._shown for image in shown.images),
            pictures=tuple(picture for shown in self._shown for picture in shown.pictures),
            n=n,
            may_go_on=self._has_environment and self.num_turns + 1 < self.limits.max_turns,
        )

    def said(self, sample: Sample) -> str | None:
        """Takes in a turn of the policy; its text where the environment is to answer it, None where this is the end."""
        start = self.num_tokens
        self._append(sample.token_ids, sample.logprobs)
        ended = sample.stop == "end"
        words = sample.token_ids[: len(sample.token_ids) - 1 if ended else None]
        text = self._decode(words.tolist())
        self._said += text
        self._version = sample.weights_version
        self._turns.append(Turn(start=start, end=self.num_tokens, text=text))
        if not ended:
            self._cut_short(Limit.NEW_TOKENS, TOKEN_LIMIT if self._has_environment else "")
        elif not self._has_environment:
            self._end(Status.FINISHED)
        return None if self.has_ended else text

    def observed(self, observation: Observation, shown: RenderedPrompt | None, seconds: float) -> None:
        """The environment's answer: the episode goes on with it, or is cut short where it does not fit.

        shown: the observation's tokens; None where `num_images_left` did not suffice and nobody rendered it. What does
        not fit is left out, so that an episode that was cut short ends with what the policy said.
        """
        self._note(observation.calls, seconds)
        if self.num_turns >= self.limits.max_turns:
            why = "still called tools in" if observation.calls else "had not ended after"
            self._cut_short(Limit.TURNS, f"{why} turn {self.num_turns}, which is the last allowed")
        elif shown is None:
            most = self._most_images
            engine = f"; the engine reads {self.max_images} in a prompt" if most < self.limits.max_images else ""
            self._cut_short(Limit.IMAGES, f"asked for more than {most} images{engine}")
        elif self.num_tokens + len(shown.token_ids) > self.max_length:
            self._cut_short(Limit.LENGTH, f"has more than {self.max_length} tokens with this observation")
        else:
            self._turns[-1] = replace(self._turns[-1], observation=observation.messages, images=shown.pictures)
            self._show(shown)

    def done(self, verdict: Done, seconds: float, score: float | None = None) -> None:
        """score: the environment's own."""
        self._note(verdict.calls, seconds)
        self._score = score
        self._end(Status.FINISHED)

    def failed(self, reason: str) -> None:
        """The environment, not the policy, is at fault: such an episode has no score and is not trained on."""
        self._end(Status.ERROR, reason)

    def trajectory(self) -> Trajectory:
        opening = self._opening
        own = self.example
        is_new = opening is not None and (opening.messages != own.messages or opening.images != own.images)
        return Trajectory(
            example=self.example,
            token_ids=np.concatenate(self._token_ids) if self._token_ids else np.zeros(0, dtype=np.int64),
            mask=np.concatenate(self._masks) if self._masks else np.zeros(0, dtype=np.bool_),
            logprobs=np.concatenate(self._logprobs) if self._logprobs else np.zeros(0, dtype=np.float32),
            prompt_length=len(self._token_ids[0]) if self._token_ids else 0,
            images=tuple(image for shown in self._shown for image in shown.images),
            text=self._said,
            status=self._status or Status.TRUNCATED,
            error=self._error,
            limit=self._limit,
            turns=tuple(self._turns) if self._has_environment else (),
            opening=opening.messages if opening is not None and is_new else (),
            opening_images=self._shown[0].pictures if is_new and self._shown else (),
            environment_score=self._score,
            tools=opening.tools if opening is not None else (),
            weights_version=self._version,
        )

    def _show(self, shown: RenderedPrompt) -> None:
        self._shown.append(shown)
        self._append(shown.token_ids, None)

    def _append(self, token_ids: np.ndarray, logprobs: np.ndarray | None) -> None:
        n = len(token_ids)
        self._token_ids.append(token_ids)
        self._masks.append(np.full(n, logprobs is not None, dtype=np.bool_))
        self._logprobs.append(np.zeros(n, dtype=np.float32) if logprobs is None else logprobs)
        self.num_tokens += n

    def _note(self, calls: tuple[ToolCall, ...], seconds: float) -> None:
        self._turns[-1] = replace(self._turns[-1], calls=calls, seconds=seconds)

    def _cut_short(self, limit: Limit, why: str) -> None:
        self._limit = limit
        self._end(Status.TRUNCATED, why)

    def _end(self, status: Status, error: str = "") -> None:
        self._status, self._error = status, error
