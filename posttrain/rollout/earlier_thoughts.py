"""Environments that answer as a user under a chat template that drops earlier thoughts: a warning, once."""

import logging

from posttrain.data import Renderer
from posttrain.environments.environment import Observation
from posttrain.errors import DataError
from posttrain.records import Example

_log = logging.getLogger(__name__)

_THOUGHT = "<think>\nWell.\n</think>\n\nYes."
_ENDS = "</think>"


class EarlierThoughts:
    """Rollouts show the policy all that it has thought; after a turn of a user, thinking templates show it no more.

    They keep thoughts before the answer of a tool. Used by one thread.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._is_settled = False

    def look_at(self, text: str, observation: Observation, task: str) -> None:
        """text: what the policy said before."""
        if self._is_settled or _ENDS not in text or all(m["role"] != "user" for m in observation.messages):
            return
        self._is_settled = True
        if drops_earlier_thoughts(self._renderer):
            _log.warning(
                "the environment of task '%s' answers in turns of the role 'user', after which the chat template drops "
                "what the policy thought before; rollouts keep it, so that a deployed model, or one trained on these "
                "episodes as data, reads another conversation; let it answer as 'tool'",
                task,
            )


def drops_earlier_thoughts(renderer: Renderer) -> bool:
    """Whether the template shows a thought no more once a user has spoken again."""
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": _THOUGHT}
    try:
        return len(renderer.render_training(Example(id="a thought", task="", messages=(asked, said, asked, said)))) > 1
    except DataError:  # it cannot write a turn with a thought at all
        return False
