"""Token ids and pixels to a vLLM server, and what it says of each token: sure to be about these tokens."""

from collections.abc import Callable
from threading import Event
from typing import Any, TypeVar

from posttrain.errors import TeacherError
from posttrain.model import ModelFacts, TokenSequence
from posttrain.rollout.vllm_engine import one_token_an_image
from posttrain.teachers.data_urls import DataUrls
from posttrain.teachers.server_client import ServerClient, ServerRefusal
from posttrain.teachers.server_refusals import explained, lacks_endpoint
from posttrain.teachers.server_scores import check_tokens

_TOKENS = "/inference/v1/generate"
_TEXT = "/v1/completions"

_Read = TypeVar("_Read")


class ScoredPrompts:
    """Asks for the log-probabilities of prompts' tokens.

    Token ids and images go to /inference/v1/generate, which `--enable-scale-out` opens. Where it is closed, text goes
    to /v1/completions, which every server has: there vLLM makes a text of every token that it names, and takes five
    times as long.
    """

    def __init__(self, client: ServerClient, model: str, facts: ModelFacts, urls: DataUrls | None) -> None:
        """urls: of the student's patches; None for a text model."""
        self._client, self._model, self._facts, self._urls = client, model, facts, urls
        self._who = client.who
        self._is_open = True  # until the server says otherwise

    def ask(self, sequence: TokenSequence, top_k: int, read: Callable[[Any], _Read], stop: Event) -> _Read:
        """What `read` makes of the server's `prompt_logprobs`: for each token those of the `top_k` likeliest and its
        own, once it is sure that the server has read these tokens and no others; else TeacherError is raised."""

        def read_sure(answer: Any) -> _Read:
            if not isinstance(answer, dict):
                raise TeacherError(f"{self._who} sent JSON that is not of vLLM's shape: is it a vLLM server?")
            check_tokens(answer.get("prompt_token_ids"), sequence, who=self._who)
            return read(answer.get("prompt_logprobs"))

        try:
            return self._asked(sequence, top_k, read_sure, stop)
        except ServerRefusal as refusal:
            raise explained(refusal, self._who, top_k=top_k) from refusal

    def _asked(self, sequence: TokenSequence, top_k: int, read: Callable[[Any], _Read], stop: Event) -> _Read:
        if self._is_open:
            try:
                return self._client.post(_TOKENS, self._tokens(sequence, top_k), read, stop=stop)
            except ServerRefusal as refusal:
                if not lacks_endpoint(refusal):
                    raise
                self._is_open = False
        if sequence.images:
            raise TeacherError(
                f"{self._who} keeps {_TOKENS} closed, which alone takes images with token ids: start it with "
                "--enable-scale-out"
            )

        def read_choice(reply: Any) -> _Read:
            choices = reply.get("choices") if isinstance(reply, dict) else None
            return read(choices[0] if choices and isinstance(choices, list) else None)

        return self._client.post(_TEXT, self._text(sequence, top_k), read_choice, stop=stop)

    def _tokens(self, sequence: TokenSequence, top_k: int) -> dict[str, Any]:
        token_ids = one_token_an_image(sequence.token_ids, self._facts.image_token_id)
        places = token_ids.count(self._facts.image_token_id) if self._facts.image_token_id is not None else 0
        if places != len(sequence.images):
            raise TeacherError(
                f"{self._who} cannot be asked about a sequence with {len(sequence.images)} images and {places} places "
                "for them; tokens between two images keep their places apart"
            )
        body: dict[str, Any] = {
            "model": self._model,
            "token_ids": token_ids,
            "sampling_params": {"max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k, "detokenize": False},
            "return_token_ids": True,
        }
        if sequence.images:
            body["content_parts"] = [{"type": "image_url", "url": url} for url in self._pictures(sequence)]
        return body

    def _pictures(self, sequence: TokenSequence) -> list[str]:
        assert self._urls is not None  # there are image tokens
        try:
            return [self._urls.of(image) for image in sequence.images]
        except ValueError as error:
            raise TeacherError(f"{self._who} cannot be shown an image: {error}") from error

    def _text(self, sequence: TokenSequence, top_k: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": sequence.token_ids.tolist(),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top_k,
            "return_token_ids": True,
        }
