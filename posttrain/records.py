"""The records that flow: an Example is asked, a Trajectory is what was said, a Group all that was said to one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image

from posttrain.model import ImagePatches
from posttrain.rewards import Score, ToolCall

Message = Mapping[str, Any]
"""One chat turn: {"role": "system" | "user" | "assistant" | "tool", "content": str or a list of parts}.

Parts: {"type": "text", "text": ...} and {"type": "image"}; the n-th image part shows the example's n-th image.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a data set: a conversation with its images, its task, and the fields that rewards compare with."""

    id: str
    """Names the row in errors, metrics and the report: `train.jsonl:17`."""
    task: str
    """Chooses the rewards and the share in a mixture."""
    messages: tuple[Message, ...]
    """The conversation. For RL it ends with a user turn; for SFT with an assistant turn."""
    images: tuple[Image.Image, ...] = ()
    """RGB images in the order of their parts, not resized; opened lazily by the data source."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    """Reference fields (answer, bbox, ...), read by rewards."""


class Status(StrEnum):
    """How a trajectory ended."""

    FINISHED = "finished"
    TRUNCATED = "truncated"
    ERROR = "error"


class Limit(StrEnum):
    """What cut a trajectory short."""

    NEW_TOKENS = "max_new_tokens"
    """Within a turn."""
    TURNS = "max_turns"
    IMAGES = "max_images"
    """Of the episode, or of what the engine reads."""
    LENGTH = "max_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the policy in an episode, and what the environment answered."""

    start: int
    """Its first token in the trajectory."""
    end: int
    """The token after its last, the end-of-turn token included where it was said."""
    text: str
    calls: tuple[ToolCall, ...] = ()
    """Tool calls that the environment ran or refused."""
    observation: tuple[Message, ...] = ()
    """Turns that the policy read next; empty where the episode ended here."""
    images: tuple[Image.Image, ...] = ()
    """The observation's, resized as the policy saw them."""
    seconds: float = 0.0
    """Wall-clock seconds that the environment took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One finished episode, token-exact: nothing the policy said is ever tokenised again."""

    example: Example
    token_ids: np.ndarray
    """[T] int64, prompt included, image tokens expanded."""
    mask: np.ndarray
    """[T] bool; True = said by the policy."""
    logprobs: np.ndarray
    """[T] float32, nats; the behaviour policy's, 0 where mask is False."""
    prompt_length: int
    """Tokens before the first one of the policy."""
    images: tuple[ImagePatches, ...] = ()
    text: str = ""
    """What the policy said, decoded."""
    status: Status = Status.FINISHED
    error: str = ""
    """Why it has no score, or which limit cut it short, in words."""
    limit: Limit | None = None
    """Which one it was; None where it was not cut short."""
    turns: tuple[Turn, ...] = ()
    """Of an episode with an environment, in order; empty where the task has none."""
    opening: tuple[Message, ...] = ()
    """What the environment showed first, where it was not the example's own messages."""
    opening_images: tuple[Image.Image, ...] = ()
    """Its images, resized as the policy saw them."""
    environment_score: float | None = None
    """Its own verdict of the episode, where it gives one."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of the tools that it offered, as chat templates take them."""
    weights_version: int = 0
    """How many updates the behaviour policy had seen."""
    score: Score | None = None
    advantage: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one example, compared with each other."""

    example: Example
    trajectories: Sequence[Trajectory]
