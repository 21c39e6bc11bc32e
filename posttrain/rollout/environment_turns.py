"""What an environment is asked, with the tokens of its answer: work for its own thread or event loop."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from posttrain.data import RenderedPrompt, Renderer
from posttrain.environments.calls import parse_reply
from posttrain.environments.environment import Done, Environment, Observation, Opening, ScoringEnvironment
from posttrain.records import Example

_log = logging.getLogger(__name__)


def opened(environment: Environment, example: Example, renderer: Renderer) -> Any:
    """(Opening, its tokens), or a coroutine of that."""

    def render(opening: Opening) -> tuple[Opening, RenderedPrompt]:
        reference = {key: value for key, value in example.reference.items() if key != "tools"}
        if opening.tools:
            reference["tools"] = [dict(tool) for tool in opening.tools]
        shown = replace(example, messages=opening.messages, images=opening.images, reference=reference)
        return opening, renderer.render_prompt(shown)

    return _then(environment.start(example), render)


def stepped(environment: Environment, text: str, num_images: int, example: Example, renderer: Renderer) -> Any:
    """(Observation, its tokens) or (Done, the environment's own score), or a coroutine of that.

    An observation of more than `num_images` images comes without tokens.
    """

    def take(answer: Observation | Done) -> Any:
        match answer:
            case Observation():
                fits = len(answer.images) <= num_images
                shown = renderer.render_observation(answer.messages, answer.images, example) if fits else None
                return answer, shown
            case Done() if isinstance(environment, ScoringEnvironment):
                return _then(environment.score(), lambda score: (answer, score))
            case _:
                return answer, None

    return _then(environment.step(parse_reply(text)), take)


def _then(given: Any, render: Callable[[Any], Any]) -> Any:
    if not inspect.isawaitable(given):
        return render(given)

    async def later() -> Any:
        rendered = render(await given)
        return await rendered if inspect.isawaitable(rendered) else rendered

    return later()


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


def _log_failure(error: Exception) -> None:
    _log.warning("an environment failed to close: %s: %s", type(error).__name__, error)
