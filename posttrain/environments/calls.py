"""The policy's text -> what it asks the environment to do."""

import re
from typing import Any

from posttrain.environments.environment import CallRequest, Reply
from posttrain.rewards.json_text import strict_json
from posttrain.rewards.tool_calls import CallText, call_problem, written_calls

_THINK = re.compile("<(/?)think>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LAYOUT = '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'


def parse_reply(text: str) -> Reply:
    """The turn with its tool calls: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, in order. Never raises.

    What counts as a call, and which calls are well formed, is what the reward `tool_call_format` says, by the same
    code: strict JSON with these two keys and no other, calls in thoughts are none, and a tag without its partner is a
    malformed call. `arguments` is an object; a text that holds one is refused, as that reward refuses it. The reward
    reads all turns of a trajectory at once; here it is known that this is one turn, so that all before a `</think>`
    whose thought the chat template opened is thought.
    """
    text = without_surrogates(text)
    return Reply(text=text, calls=tuple(_request(call) for call in written_calls(_after_opened_thought(text))))


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair: JSON can write them, UTF-8 and tokenizers cannot."""
    return _SURROGATE.sub("\ufffd", text)


def _after_opened_thought(text: str) -> str:
    thinking, start = False, 0
    for mark in _THINK.finditer(text):
        if mark[1] and not thinking:
            start = mark.end()
        thinking = not mark[1]
    return text[start:]


def _request(call: CallText) -> CallRequest:
    problem = call_problem(call, None)
    if problem is not None:
        return CallRequest(name="", arguments={}, problem=f"{without_surrogates(problem)}; write {_LAYOUT}")
    written = _clean(strict_json(call.body))
    return CallRequest(name=written["name"], arguments=written["arguments"])


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): _clean(item) for key, item in value.items()}
    return value
