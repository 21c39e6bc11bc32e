"""A teacher that is somewhere else: a vLLM server, asked token-exactly, with the very pixels that the student sees."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from threading import Event
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.errors import ConfigError, TeacherError
from posttrain.model import ModelFacts, TokenSequence
from posttrain.model.loading import Processor
from posttrain.records import Example
from posttrain.rollout.engine import Sampling
from posttrain.teachers.answer import Answer
from posttrain.teachers.data_urls import DataUrls
from posttrain.teachers.server_answers import answers_in, chat_request
from posttrain.teachers.server_client import ServerClient, ServerRefusal
from posttrain.teachers.server_models import find_served
from posttrain.teachers.server_prompts import ScoredPrompts
from posttrain.teachers.server_refusals import explained, is_too_long
from posttrain.teachers.server_scores import logprobs_of, top_scores_of
from posttrain.teachers.server_tokenizer import check_modes, check_server_tokenizer
from posttrain.teachers.teacher import TopScores

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ServerTeacher:
    """A `Teacher` on a vLLM server, and a source of answers on any OpenAI-compatible one.

    Sequences go out as token ids, and are scored only where the server says that it has read those ids and no others;
    images go out as PNGs of the pixels that the student's patches were cut from. Wanted are `--max-logprobs` of top_k
    or more, and `--enable-scale-out`, which images cannot do without and text is several times faster with.
    Safe to ask from any number of threads; `concurrency` requests are under way at most, for all of them together.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        facts: ModelFacts | None,
        processor: Processor | None,
        model: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 5,
        backoff_s: float = 2.0,
        concurrency: int = 16,
        api_key_env: str | None = None,
    ) -> None:
        """facts, processor: the student's; None for a teacher that only answers.

        model: as the server calls it; not needed where it serves one. timeout_s: of one try of one request. retries,
        backoff_s: five further tries after pauses of up to 2, 4, 8, 16 and 32 s outlast a restart of half a minute;
        nine, one of two minutes. api_key_env: the environment variable that holds the server's key.
        Asks which models are served. Raises TeacherError where the server cannot be asked or serves none of that name,
        ConfigError for arguments that cannot be right.
        """
        if concurrency < 1:
            raise ConfigError(f"teacher '{name}': concurrency must be 1 or more, got {concurrency}")
        self._name, self._facts, self._model = name, facts, model
        self._client = ServerClient(
            name, url, timeout_s=timeout_s, retries=retries, backoff_s=backoff_s, api_key_env=api_key_env
        )
        self._who = self._client.who
        try:
            self._served = find_served(self._client, model)
        except BaseException:
            self._client.close()
            raise
        self._prompts = None
        if facts is not None and processor is not None:
            urls = DataUrls(processor.image_processor) if facts.has_vision else None  # pyright: ignore
            self._prompts = ScoredPrompts(self._client, self._served.name, facts, urls)
        self._modes_checked = False
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=f"teacher-{name}")

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        """The served name, and what the server says its weights were loaded from: other weights that were put into the
        same folder are not told apart."""
        return f"{self._served.name} ({self._served.root})"

    @property
    def context(self) -> int:
        """One less than the server's max_model_len: it cannot score a prompt without saying one token more."""
        if self._served.max_model_len is None:
            raise TeacherError(f"{self._who} does not say how much it reads: scores want a vLLM server")
        return self._served.max_model_len - 1

    def top_scores(self, sequences: Sequence[TokenSequence], top_k: int) -> list[TopScores]:
        """As `Teacher` says. A tail holds 1e-6 of the mass at least: less is lost in the server's rounding."""
        facts, prompts = self._scoring(sequences)
        if not 1 <= top_k <= facts.vocab_size:
            raise TeacherError(f"{self._who} cannot give top_k {top_k}: the student has {facts.vocab_size} tokens")

        def score(sequence: TokenSequence, stop: Event) -> TopScores:
            def read(found: Any) -> TopScores:
                return top_scores_of(found, sequence, top_k, vocab_size=facts.vocab_size, who=self._who)

            return prompts.ask(sequence, top_k, read, stop) if sequence.num_trained else read(_nothing(sequence))

        return self._each(score, sequences)

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        _, prompts = self._scoring(sequences)

        def score(sequence: TokenSequence, stop: Event) -> np.ndarray:
            def read(found: Any) -> np.ndarray:
                return logprobs_of(found, sequence, who=self._who)

            return prompts.ask(sequence, 0, read, stop) if sequence.num_trained else read(_nothing(sequence))

        return self._each(score, sequences)

    def answer(
        self, examples: Sequence[Example], *, n: int, sampling: Sampling, thinking: bool | None
    ) -> list[list[Answer]]:
        """`n` answers to each example, in their order; none to one that is too long for the server, which is warned of.

        thinking: the template's enable_thinking; None leaves it out. Equal calls give equal answers as far as the
        server keeps to its seeds. Images go out as the example has them: the server resizes them for the teacher.
        Raises TeacherError also where a vLLM server's template writes the same prompt, thinking or not.
        """
        if thinking is not None:
            self.check_modes()
        greedy = sampling.temperature == 0  # vLLM refuses to answer greedily more than once
        draws, copies = (1, n) if greedy else (n, 1)

        def ask(example: Example, stop: Event) -> list[Answer]:
            body = chat_request(
                example,
                model=self._served.name,
                n=draws,
                sampling=sampling,
                thinking=thinking,
                is_vllm=self._served.is_vllm,
            )
            try:
                read = partial(answers_in, n=draws, who=self._who)
                return self._client.post("/v1/chat/completions", body, read, stop=stop) * copies
            except ServerRefusal as refusal:
                if not is_too_long(refusal):
                    raise explained(refusal, f"{self._who}, asked for {example.id},") from refusal
                _log.warning("not asked: %s is too long for %s: %s", example.id, self._who, refusal.message)
                return []

        return self._each(ask, examples)

    def check_modes(self) -> None:
        """Raises TeacherError where a vLLM server's template writes the same prompt, thinking or not. Asks once."""
        if self._served.is_vllm and not self._modes_checked:
            check_modes(self._client, self._served.name, who=self._who)
            self._modes_checked = True

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises TeacherError, naming the first token that differs, where the server reads a probe text otherwise."""
        check_server_tokenizer(self._client, self._served.name, tokenizer, who=self._who)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _scoring(self, sequences: Sequence[TokenSequence]) -> tuple[ModelFacts, ScoredPrompts]:
        """What scoring wants. Raises TeacherError, before anything is asked, for a sequence over the context."""
        if self._facts is None or self._prompts is None:
            raise TeacherError(f"{self._who} was made to answer, without a student whose tokens it could score")
        for sequence in sequences:
            if sequence.num_tokens > self.context:
                raise TeacherError(
                    f"{self._who} reads {self.context} tokens, a sequence has {sequence.num_tokens}: lower max_length, "
                    "or start it with a greater --max-model-len"
                )
        return self._facts, self._prompts

    def _each(self, ask: Callable[[_Item, Event], _Result], items: Sequence[_Item]) -> list[_Result]:
        """The results in the order of the items. The first failure ends the others' tries, and is raised."""
        stop = Event()
        asked = [self._threads.submit(ask, item, stop) for item in items]
        try:
            for future in wait(asked, return_when=FIRST_EXCEPTION).done:
                future.result()
            results = [future.result() for future in asked]
        except BaseException:
            stop.set()
            for future in asked:
                future.cancel()
            raise
        if asked:
            self._check_unchanged()
        return results

    def _check_unchanged(self) -> None:
        """A server that was restarted meanwhile may have other weights under the old name."""
        now = find_served(self._client, self._model)
        if (now.name, now.root) != (self._served.name, self._served.root):
            raise TeacherError(
                f"{self._who} now serves '{now.name}' ({now.root}), no longer '{self._served.name}' "
                f"({self._served.root}): serve the first one again, or start a new run"
            )


def _nothing(sequence: TokenSequence) -> list[None]:
    """What a server says of a sequence that trains nothing, and that it is not asked about."""
    return [None] * sequence.num_tokens
