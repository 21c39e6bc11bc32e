"""What an environment is asked in an episode, and its answers in tokens: work for threads and event loops."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from posttrain.data import RenderedPrompt, Renderer
from posttrain.data.marks import check_text
from posttrain.environments.calls import parse_reply
from posttrain.environments.environment import Done, Environment, Observation, Opening, ScoringEnvironment
from posttrain.records import Example

_log = logging.getLogger(__name__)


class BadAnswer(TypeError):
    """An environment answered what is no answer."""


class EpisodeEnvironment:
    """The environment of one episode: made where it is first asked, closed if it was made. One call at a time."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self._make = make
        self._made: Environment | None = None

    def start(self, example: Example) -> Any:
        """An Opening, or a coroutine of one."""
        self._made = self._make()
        return self._made.start(example)

    def step(self, text: str) -> Any:
        """(Observation or Done, the environment's own score where it is done), or a coroutine of that."""
        assert self._made is not None
        return stepped(self._made, text)

    def close(self) -> Any:
        """As `closed`."""
        return None if self._made is None else closed(self._made)


def stepped(environment: Environment, text: str) -> Any:
    """(Observation or Done, the environment's own score where it is done), or a coroutine of that."""

    def judge(answer: Observation | Done) -> Any:
        if isinstance(answer, Done) and isinstance(environment, ScoringEnvironment):
            return _then(environment.score(), lambda score: (answer, score))
        return answer, None

    return _then(environment.step(parse_reply(text)), judge)


def closed(environment: Environment) -> Any:
    """None, or a coroutine that closes it. A failure is only logged: the episode is over, and has its score."""
    try:
        closing = environment.close()
    except Exception as error:
        return _log_failure(error)
    if not inspect.isawaitable(closing):
        return None

    async def later() -> None:
        try:
            await closing
        except Exception as error:
            _log_failure(error)

    return later()


def shown_opening(opening: Opening, example: Example, renderer: Renderer) -> tuple[Opening, RenderedPrompt]:
    """With its tokens. Raises BadAnswer where it is none, TooLong and DataError as `Renderer.render_prompt`, and
    DataError for special tokens in a text, which would forge turns."""
    if not isinstance(opening, Opening):
        raise BadAnswer(f"answered {type(opening).__name__}, wanted an Opening")
    for message in opening.messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
        for text in texts:
            check_text(text, f"{example.id}: an opening")
    reference = {key: value for key, value in example.reference.items() if key != "tools"}
    if opening.tools:
        reference["tools"] = [dict(tool) for tool in opening.tools]
    shown = replace(example, messages=opening.messages, images=opening.images, reference=reference)
    return opening, renderer.render_prompt(shown)


def shown_answer(
    answer: tuple[Observation | Done, float | None], num_images: int, example: Example, renderer: Renderer
) -> tuple[Observation, RenderedPrompt | None] | tuple[Done, float | None]:
    """(Observation, its tokens), or (Done, the environment's own score).

    An observation of more than `num_images` images comes without tokens. Raises BadAnswer for another answer.
    """
    match answer:
        case Observation() as observation, _:
            if len(observation.images) > num_images:
                return observation, None
            return observation, renderer.render_observation(observation.messages, observation.images, example)
        case Done() as verdict, score:
            return verdict, score
    raise BadAnswer(f"answered {type(answer[0]).__name__}, wanted an Observation or Done")


def _then(given: Any, follow_up: Callable[[Any], Any]) -> Any:
    if not inspect.isawaitable(given):
        return follow_up(given)

    async def later() -> Any:
        following = follow_up(await given)
        return await following if inspect.isawaitable(following) else following

    return later()


def _log_failure(error: Exception) -> None:
    _log.warning("an environment failed to close: %s: %s", type(error).__name__, error)
