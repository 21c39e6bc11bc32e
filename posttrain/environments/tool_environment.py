"""The environment of tools: the policy calls them until a reply without calls, which is its answer."""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from posttrain.environments.deadlines import TimeUp, run_within
from posttrain.environments.environment import CallRequest, Done, Environment, Observation, Opening, Reply
from posttrain.environments.own_thread import OwnThread
from posttrain.environments.registry import register_environment
from posttrain.environments.tool_answers import AnswerLimits, ToolAnswer, text_answer, tool_answer
from posttrain.environments.tool_registry import ToolSpec, make_tool
from posttrain.environments.tools import Tool, ToolBroken, ToolContext, ToolError
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example, Message
from posttrain.rewards import ToolCall
from posttrain.rewards.registry import nearest

_MAX_ERROR_CHARS = 500


@register_environment("tools")
@dataclass(slots=True, kw_only=True, eq=False)
class ToolEnvironment:
    """One episode with tools. The calls of a reply run in order, each sees the images of those before it.

    Whatever goes wrong in a call is an answer that the policy reads, `Tool Execution Error: ...`, and the episode goes
    on; only ToolBroken ends it, and what only the tool's author can put right: a result that cannot be shown. Tools
    that are methods of another environment share one thread of the episode, and one of them that does not answer in
    time ends it too. Raises ConfigError for options that cannot be used, RuntimeError where it is used in another order
    than `start`, `step`..., `close`.
    """

    tools: Sequence[ToolSpec]
    """Names, `{name: ..., options}`, `module:function`, or in Python functions with type hints."""
    system_prompt: str = ""
    """Stands in the system turn, after what the row's own says."""
    announce: bool = True
    """The tools' schemas stand in the system turn; false for a model that was trained on these tools alone."""
    overview: int = 1
    """The prompt's images are shown reduced by this factor (a box filter); tools see them at full size."""
    max_calls_per_turn: int = 8
    """Calls of one reply that are run; the others are refused."""
    tool_timeout_s: float = 30.0
    """Wall-clock seconds of one call."""
    turn_timeout_s: float = 90.0
    """Of all calls of one reply; those that are left then are refused. Less than the rollout waits for an answer."""
    max_text_chars: int = 8000
    """Text of one answer; more is cut off, with a remark."""
    max_images_per_call: int = 8
    """Images of one answer; more are left out, with a remark."""
    max_image_pixels: int = 12_845_056
    """Of one image of an answer; larger ones are shrunk."""
    _tools: dict[str, Tool] = field(init=False, repr=False)
    _limits: AnswerLimits = field(init=False, repr=False)
    _example: Example | None = field(init=False, repr=False, default=None)
    _images: list[Image.Image] = field(init=False, repr=False, default_factory=list)
    _num_prompt_images: int = field(init=False, repr=False, default=0)
    _thread: OwnThread = field(init=False, repr=False, default_factory=OwnThread)
    """Of tools that are methods of an environment."""
    _is_closed: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        at_least_one = (self.overview, self.max_calls_per_turn, self.max_text_chars, self.max_images_per_call)
        in_time = 0 < self.tool_timeout_s < 1e6 and 0 < self.turn_timeout_s < 1e6
        if min(at_least_one) < 1 or self.max_image_pixels < 32 * 32 or not in_time:
            raise ConfigError(f"limits of a tool environment must be above 0 (max_image_pixels 1,024), got {self}")
        if isinstance(self.tools, str):
            raise ConfigError(f"tools must be a list, got the text {self.tools!r:.80}")
        made = [self._made(spec) for spec in self.tools]
        self._tools = {tool.name: tool for tool in made}
        if len(self._tools) < len(made):
            twice = next(name for name in self._tools if sum(tool.name == name for tool in made) > 1)
            raise ConfigError(f"two tools have the name {twice!r}; give one of them another")
        self._limits = AnswerLimits(
            max_text_chars=self.max_text_chars,
            max_images=self.max_images_per_call,
            max_image_pixels=self.max_image_pixels,
        )

    def validate(self, example: Example) -> None:
        """Raises DataError where the row has no user turn to answer, or images that do not fit its parts."""
        asked = _asked(example)
        num_parts = _num_images(example.messages)
        if num_parts != len(example.images):
            raise DataError(f"{example.id}: {num_parts} image parts but {len(example.images)} images")
        for image in example.images[: _num_images(asked)]:
            if min(image.size) < self.overview:
                size = f"{image.width} x {image.height}"
                raise DataError(f"{example.id}: an image of {size} pixels cannot be reduced by {self.overview}")

    def start(self, example: Example) -> Opening:
        if self._example is not None or self._is_closed:
            raise RuntimeError("an environment is used once; make a new one for every episode")
        self.validate(example)
        self._example = example
        asked = _asked(example)
        originals = example.images[: _num_images(asked)]
        self._images, self._num_prompt_images = list(originals), len(originals)
        reduced = originals if self.overview == 1 else tuple(image.reduce(self.overview) for image in originals)
        return Opening(
            messages=_with_system(asked, self.system_prompt),
            images=reduced,
            tools=tuple(tool.schema for tool in self._tools.values()) if self.announce else (),
        )

    def step(self, reply: Reply) -> Observation | Done:
        if self._example is None or self._is_closed:
            raise RuntimeError("an environment is asked to step before it was started, or after it was closed")
        if not reply.calls:
            return Done()
        ends = time.monotonic() + self.turn_timeout_s
        answers = [self._run(request, ends) for request in reply.calls[: self.max_calls_per_turn]]
        refused = reply.calls[self.max_calls_per_turn :]
        if refused:
            why = f"only {self.max_calls_per_turn} calls are run in a turn; {len(refused)} more were not"
            answers.append(self._error(why))
        calls = [_fact(*pair) for pair in zip(reply.calls, answers, strict=False)]
        calls += [_fact(request, answers[-1]) for request in refused[1:]]
        return Observation(
            messages=tuple(answer.message for answer, _ in answers),
            images=tuple(image for answer, _ in answers for image in answer.images),
            calls=tuple(calls),
        )

    def close(self) -> None:
        self._is_closed = True
        self._images = []
        self._thread.end()

    def _made(self, spec: ToolSpec) -> Tool:
        tool = make_tool(spec)
        is_of_environment = inspect.ismethod(spec) and isinstance(spec.__self__, Environment)
        return replace(tool, thread=self._thread) if is_of_environment else tool

    def _run(self, request: CallRequest, ends: float) -> tuple[ToolAnswer, str]:
        """The answer of one call, and its error where it has one; `ends` is when the turn's time is up."""
        assert self._example is not None
        seconds = min(self.tool_timeout_s, ends - time.monotonic())
        tool = self._tools.get(request.name)
        if request.problem:
            return self._error(request.problem)
        if tool is None:
            return self._error(f"there is no tool {request.name[:80]!r}{nearest(request.name[:80], self._tools)}")
        if problem := tool.argument_problem(request.arguments):
            return self._error(problem)
        if seconds <= 0:
            return self._error(f"no time is left of the {self.turn_timeout_s:g} s of a turn")
        context = ToolContext(
            example=self._example, images=tuple(self._images), num_prompt_images=self._num_prompt_images
        )
        try:
            answer = run_within(
                seconds,
                lambda: tool.call(request.arguments, context),
                lambda result: tool_answer(result, self._limits, tool=f"tool {tool.name!r}", written=tool.written),
                tool.thread,
            )
        except TimeUp as error:
            if tool.thread is not None:
                raise ToolBroken(f"tool {tool.name!r} gave {error}, and may still be changing its object") from error
            return self._error(str(error))
        except ToolError as error:
            return self._error(str(error))
        except (ToolBroken, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a tool's failure is the policy's to read, whatever it is
            return self._error(f"{type(error).__name__}: {error}")
        self._images += answer.images
        return answer, ""

    def _error(self, why: str) -> tuple[ToolAnswer, str]:
        why = why[:_MAX_ERROR_CHARS] or "unknown"
        return text_answer(f"Tool Execution Error: {why}", AnswerLimits()), why


def _fact(request: CallRequest, ended: tuple[ToolAnswer, str]) -> ToolCall:
    answer, error = ended
    return ToolCall(name=request.name, arguments=request.arguments, text=answer.text, error=error)


def _asked(example: Example) -> tuple[Message, ...]:
    """The conversation without a final assistant turn, which is what the policy is asked to say."""
    asked = example.messages
    while asked and asked[-1]["role"] == "assistant":
        asked = asked[:-1]
    if not asked or asked[-1]["role"] == "system":
        raise DataError(f"{example.id}: has no turn of a user to answer")
    return asked


def _num_images(messages: Sequence[Message]) -> int:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return sum(part["type"] == "image" for content in contents for part in content)


def _with_system(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    if not text:
        return messages
    if messages[0]["role"] != "system":
        return ({"role": "system", "content": text}, *messages)
    own: Any = messages[0]["content"]
    joined = f"{own}\n\n{text}" if isinstance(own, str) else [*own, {"type": "text", "text": f"\n\n{text}"}]
    return ({**messages[0], "content": joined}, *messages[1:])
