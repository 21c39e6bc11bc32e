"""Whether a server reads text as the student's tokenizer does, and whether its template reads `enable_thinking`."""

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.errors import TeacherError
from posttrain.teachers.server_client import ServerClient

_PATH = "/tokenize"
_SCRIPTS = (
    "The quick brown fox doesn't jump; it's 3.14159 × 2 = 6.28318?  \t\n\n    def f(x):\r\n        return x**2 - 10_000"
    "\nGrüße, façade, naïve, İstanbul, Ελληνικά, Русский текст, עברית, العربية, हिन्दी, ไทย, 한국어, 日本語のテキスト, "
    "简体中文，繁體中文。 0123456789 ٣٤٥ Ⅳ ½ x² ∑∫√∞ → ✓ 👩‍🔬🇨🇭 "
    "e\u0301 \u00e9 \ufb01 \u200b\u00a0\ufeff <box>(12,345),(678,900)</box> https://example.org/a?b=c&d=%20\n"
)
_PIECES = 2000
"""From all over the vocabulary."""


def check_server_tokenizer(client: ServerClient, model: str, tokenizer: PreTrainedTokenizerBase, *, who: str) -> None:
    """Raises TeacherError, naming the first token that differs."""
    text = probe_text(tokenizer)
    request = {"model": model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
    theirs, names = client.post(_PATH, request, partial(_tokens, who=who))
    ours = tokenizer.encode(text, add_special_tokens=False)
    if theirs == ours:
        return
    place = next((t for t, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    there = f"{theirs[place]} ({names[place]!r})" if place < len(names) else str(theirs[place : place + 1])
    here = tokenizer.convert_ids_to_tokens(ours[place : place + 1])
    raise TeacherError(
        f"{who} has another tokenizer than the student: token {place} of a probe text is {there} there and "
        f"{ours[place] if here else 'missing'}{f' ({here[0]!r})' if here else ''} here; choose a teacher with the "
        "student's tokenizer, or distil this one's answers, with a stage of algorithm 'answers'"
    )


def probe_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Many scripts, digits and spaces, every added token, and the texts of tokens from all over the vocabulary."""
    added = "".join(sorted(tokenizer.get_added_vocab()))  # pyright: ignore[reportCallIssue, reportOptionalCall]
    step = max(1, len(tokenizer) // _PIECES)
    pieces = " ".join(str(tokenizer.decode([i])) for i in range(0, len(tokenizer), step))
    return _SCRIPTS + added + pieces


def check_modes(client: ServerClient, model: str, *, who: str) -> None:
    """Raises TeacherError where the chat template writes one prompt, whether it is to think or not."""
    request = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    on, off = (
        client.post(_PATH, {**request, "chat_template_kwargs": {"enable_thinking": mode}}, partial(_tokens, who=who))
        for mode in (True, False)
    )
    if on == off:
        raise TeacherError(
            f"{who} is asked the same with thinking on and off: its chat template does not read enable_thinking; set "
            "thinking to 'template'"
        )


def _tokens(reply: Any, who: str) -> tuple[list[int], list[str]]:
    """Ids, and their texts where these were asked for."""
    if not isinstance(reply, dict) or not isinstance(reply.get("tokens"), list):
        raise TeacherError(f"{who} sent no tokens from {_PATH}: is it a vLLM server?")
    return reply["tokens"], reply.get("token_strs") or []
