"""Answers instead of scores: examples as chat requests to any OpenAI-compatible server, and its choices as texts."""

import hashlib
from typing import Any

from posttrain.errors import TeacherError
from posttrain.records import Example
from posttrain.rollout.engine import Sampling
from posttrain.teachers.answer import Answer, whole_text
from posttrain.teachers.data_urls import data_url


def chat_request(
    example: Example, *, model: str, n: int, sampling: Sampling, thinking: bool | None, is_vllm: bool
) -> dict[str, Any]:
    """The body of a chat request; an assistant turn that the example ends with is left out.

    Each example draws by a seed of its own, made from the sampling's and its id, so that it does not matter what it is
    asked together with. A vLLM server is also told what it would otherwise take from the checkpoint's generation
    config. Tools are shown, and calls of them are part of the text.
    """
    seed = hashlib.blake2b(f"{sampling.seed}:{example.id}".encode(), digest_size=4).digest()
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(example),
        "n": n,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": int.from_bytes(seed) >> 1,  # 31 bits: some servers add the number of the choice to it
    }
    if is_vllm:
        body |= {"top_k": sampling.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
    elif sampling.top_k:
        body["top_k"] = sampling.top_k
    options = dict(example.reference.get("chat_template_kwargs") or {})
    if thinking is not None:
        options["enable_thinking"] = thinking
    if options:
        body["chat_template_kwargs"] = options
    if tools := example.reference.get("tools"):
        body |= {"tools": tools, "tool_choice": "none"}
    return body


def answers_in(reply: Any, n: int, *, who: str) -> list[Answer]:
    """The choices of a chat reply, in their order. Raises TeacherError where there are not `n` of them, with texts."""
    try:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        answers = [_answer(choice) for choice in choices]
    except (KeyError, TypeError, AttributeError):
        raise TeacherError(f"{who} sent no chat completion: is it an OpenAI-compatible server?") from None
    if len(answers) != n:
        raise TeacherError(f"{who} gave {len(answers)} answers to a prompt, not {n}: it may not support n")
    return answers


def _answer(choice: dict[str, Any]) -> Answer:
    message = choice["message"]
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""  # its name before vLLM 0.14
    return Answer(text=whole_text(reasoning, message.get("content") or ""), finished=choice["finish_reason"] == "stop")


def _messages(example: Example) -> list[dict[str, Any]]:
    asked = list(example.messages)
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    images = iter(example.images)
    messages = []
    for message in asked:
        content = message["content"]
        parts = content if isinstance(content, str) else [_part(part, images, example) for part in content]
        messages.append({**message, "content": parts})
    return messages


def _part(part: dict[str, Any], images: Any, example: Example) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    image = next(images, None)
    if image is None:
        raise TeacherError(f"{example.id}: has more image parts than its {len(example.images)} images")
    return {"type": "image_url", "image_url": {"url": data_url(image)}}
