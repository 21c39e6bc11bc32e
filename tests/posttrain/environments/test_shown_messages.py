"""What an environment shows is checked where it is made: nothing is lost, or read as the policy's words, in silence."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from posttrain.environments import Observation, Opening

RED = Image.new("RGB", (32, 32), "red")
PART = {"type": "image"}


@pytest.mark.parametrize(
    ("messages", "images", "says"),
    [
        ([{"role": "system", "content": "I"}], (), "message 0 has the role 'system'; wanted 'user' or 'tool'"),
        ([{"role": "assistant", "content": "I"}], (), "message 0 has the role 'assistant'"),
        ([{"role": "user", "content": "a"}, {"role": "User", "content": "b"}], (), "message 1 has the role 'User'"),
        ([], (), "at least one message"),
        ("text", (), "at least one message"),
        (["text"], (), "message 0 must be a mapping with 'role' and 'content'"),
        ([{"role": "user"}], (), "must be a mapping with 'role' and 'content'"),
        ([{"role": "user", "content": None}], (), "must be a mapping with 'role' and 'content'"),
        ([{"role": "user", "content": [{"type": "video"}]}], (), "has the part {'type': 'video'}; parts are"),
        ([{"role": "user", "content": [{"type": "text"}]}], (), "has the part"),
        ([{"role": "user", "content": ["text"]}], (), "has the part 'text'"),
        ([{"role": "user", "content": [PART]}], (), "1 image parts but 0 images"),
        ([{"role": "user", "content": "a"}], (RED,), "0 image parts but 1 images"),
        ([{"role": "user", "content": [PART]}], (np.zeros((8, 8, 3)),), "PIL images, got an object of ndarray"),
        ([{"role": "user", "content": [PART]}], RED, "images must be a tuple"),
    ],
)
def test_what_no_template_shows_is_refused(messages: Any, images: Any, says: str) -> None:
    with pytest.raises(ValueError, match="an Observation") as raised:
        Observation(messages=messages, images=images)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "assistant", "content": "x"}], "last message has the role 'assistant'"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "last message has the role 'system'"),
        (
            [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}, {"role": "user", "content": "z"}],
            "move it to the beginning",
        ),
        ([{"role": "system", "content": [PART]}, {"role": "user", "content": "x"}], "only user and tool turns"),
        ([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "x"}]}], "has the part"),
    ],
)
def test_an_opening_is_a_conversation_that_the_policy_can_answer(messages: Any, says: str) -> None:
    with pytest.raises(ValueError, match="an Opening") as raised:
        Opening(messages=messages, images=())
    assert says in str(raised.value)


def test_what_can_be_shown_is_taken() -> None:
    system = {"role": "system", "content": "s"}
    said = {"role": "assistant", "content": "", "tool_calls": []}
    asked = {"role": "user", "content": [PART, {"type": "text", "text": "x"}]}
    answer = {"role": "tool", "content": (PART,)}
    assert len(Opening(messages=(system, asked, said, answer), images=(RED, RED)).messages) == 4
    assert Observation(messages=(answer, asked), images=(RED, RED)).calls == ()
