"""Conversations -> token ids with exact masks: the only user of chat templates.

What the model must say in a turn is what the template writes after the generation prompt that the model would have
got for that turn. So for assistant turn k two texts are rendered, the conversation before it with the generation
prompt, P_k, and the conversation up to it, which is P_k C_k and a line break: C_k is trained, nothing else.

    P_1 = S U1 <assistant>     P_1 C_1 = S U1 <assistant> A1     P_2 = S U1 <assistant> A1 U2 <assistant>    ...

Where P_2 begins with P_1 C_1, one sequence trains both turns. Thinking templates drop earlier thoughts, so that it
does not: then each turn has a sequence of its own, in the context in which it would be deployed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from posttrain.data.images import CutImage, ImageCutter
from posttrain.data.marks import check_text
from posttrain.data.turns import Turn, pieces_of, shared_prefix, stretches_of, turns_of
from posttrain.errors import CheckpointError, DataError
from posttrain.model import ImagePatches, TokenSequence
from posttrain.model.families import ModelFacts
from posttrain.records import Example, Message


class TooLong(DataError):
    """An example over the length limit: to be dropped whole, counted and named, never cut."""

    def __init__(self, example_id: str, num_tokens: int, max_length: int) -> None:
        super().__init__(
            f"{example_id}: has {num_tokens} tokens, more than the limit of {max_length}; "
            "raise max_length, lower max_pixels, or let it be dropped"
        )
        self.example_id = example_id
        self.num_tokens = num_tokens
        self.max_length = max_length


class TooManyImages(TooLong):
    """An example with more images than the rollout engine reads in one prompt: dropped in the same way."""

    def __init__(self, example_id: str, num_images: int, max_images: int) -> None:
        DataError.__init__(
            self,
            f"{example_id}: has {num_images} images, more than the {max_images} that the engine reads in a prompt; "
            "raise the engine's max_images, or let it be dropped",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """What the policy is asked: the generation prompt is its last part."""

    token_ids: np.ndarray
    """[T] int64, image tokens expanded, one per merged patch."""
    images: tuple[ImagePatches, ...]
    pictures: tuple[Image.Image, ...]
    """The same images, resized, for engines that cut patches themselves."""


class Renderer:
    """Renders examples for one checkpoint, by its own chat template, tokenizer and image processor."""

    def __init__(
        self,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        facts: ModelFacts,
        *,
        max_length: int,
        enable_thinking: bool | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """The pixel limits may only be stricter. `enable_thinking` goes to the template where it is not None; a row's
        own `chat_template_kwargs: {enable_thinking: ...}` (TRL's column) is heard first, so that rows may differ."""
        self.facts = facts
        self.max_length = max_length
        self._processor: Any = processor
        self._tokenizer: Any = (
            processor if isinstance(processor, PreTrainedTokenizerBase) else self._processor.tokenizer
        )
        self._options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._turn_ends = tuple(self._tokenizer.convert_ids_to_tokens(list(facts.eos_token_ids)))
        self._lock = Lock()  # observations are rendered on the threads of their environments
        self._cutter = (
            ImageCutter(self._processor.image_processor, min_pixels=min_pixels, max_pixels=max_pixels)
            if facts.has_vision
            else None
        )

    def render_prompt(self, example: Example) -> RenderedPrompt:
        """The tokens that the policy continues; a final assistant turn is left out, being what it is asked to say.

        Raises TooLong over `max_length`, DataError where the template does not show the images as they are given.
        """
        asked = example.messages
        while asked and asked[-1]["role"] == "assistant":
            asked = asked[:-1]
        if not asked:
            raise DataError(f"{example.id}: has no turn of a user to answer")
        cut = self._cut_images(example)
        ids = self._encode(self._template(asked, example, generation_prompt=True))
        shown = cut[: _num_images(asked)]
        ids = self._expand(ids, shown, example)
        self._check_length(len(ids), example)
        return RenderedPrompt(
            token_ids=ids,
            images=tuple(image.patches for image in shown),
            pictures=tuple(image.picture for image in shown),
        )

    def render_observation(
        self, messages: Sequence[Message], images: Sequence[Image.Image], example: Example
    ) -> RenderedPrompt:
        """The tokens between a finished turn of the policy and its next one: what it is shown, and the invitation to
        go on. They follow its own end-of-turn token; what it said before is never rendered again.

        images: in the order of the image parts. Raises DataError where the template does not show them as given, or
        where a text holds special tokens, which would forge turns.
        """
        for message in messages:
            for text in _texts(message):
                check_text(text, f"{example.id}: an observation")
        asked = ({"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}, *messages)
        whole = self._template(asked, replace(example, reference=_told(example)), generation_prompt=True)
        after = whole.rpartition(_SAID)[2].lstrip("\n")
        end = next((end for end in self._turn_ends if after.startswith(end)), None)
        if end is None:
            raise CheckpointError(
                f"the chat template goes on with {after[:20]!r} after a turn, but turns end at "
                f"{' or '.join(self._turn_ends)}: episodes of several turns cannot be rendered"
            )
        cut = self._cut_all(images, example, _num_images(messages))
        with self._lock:
            ids = self._encode(after.removeprefix(end))
        return RenderedPrompt(
            token_ids=self._expand(ids, cut, example),
            images=tuple(image.patches for image in cut),
            pictures=tuple(image.picture for image in cut),
        )

    def render_training(self, example: Example) -> list[TokenSequence]:
        """Sequences that train every assistant turn: the words, the end-of-turn token, and nothing else. A turn with
        `weight: 0` is read and not trained.

        One sequence where the template keeps what was said as it was said; otherwise one for each stretch of turns
        that it keeps, whose common beginning is their `prefix_length`. Raises TooLong over `max_length`, DataError
        where a turn cannot be rendered as the model would say it.
        """
        turns = turns_of(example, partial(self._write, example), self._turn_ends)
        cut = self._cut_images(example)
        sequences = []
        for stretch in stretches_of(turns, self._encode):
            if not any(turn.is_trained for turn in stretch):
                continue
            num_images = _num_images(example.messages[: stretch[-1].index])
            sequences.append(self._sequence(stretch, cut[:num_images], example))
        for sequence in sequences:
            self._check_length(sequence.num_tokens, example)
        prefix = shared_prefix(sequences, self.facts.image_token_id)
        return [
            TokenSequence(token_ids=s.token_ids, mask=s.mask, images=s.images, prefix_length=prefix) for s in sequences
        ]

    def _sequence(self, stretch: Sequence[Turn], cut: Sequence[CutImage], example: Example) -> TokenSequence:
        pieces = pieces_of(stretch, self._encode)
        ids = np.array([i for piece, _ in pieces for i in piece], dtype=np.int64)
        trained = np.array([on for piece, on in pieces for _ in piece], dtype=np.bool_)
        repeats = self._repeats(ids, cut, example)
        patches = tuple(image.patches for image in cut)
        return TokenSequence(token_ids=ids.repeat(repeats), mask=trained.repeat(repeats), images=patches)

    def _write(self, example: Example, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._template(messages, example, generation_prompt=generation_prompt)

    def _template(self, messages: Sequence[Message], example: Example, *, generation_prompt: bool) -> str:
        options = dict(self._options)
        own = example.reference.get("chat_template_kwargs") or {}
        if own.get("enable_thinking") is not None:
            options["enable_thinking"] = own["enable_thinking"]
        if tools := example.reference.get("tools"):
            options["tools"] = tools
        try:
            return self._processor.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **options,
            )
        except TemplateError as error:
            raise DataError(f"{example.id}: the chat template refuses the conversation ({error})") from error

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _cut_images(self, example: Example) -> list[CutImage]:
        return self._cut_all(example.images, example, _num_images(example.messages))

    def _cut_all(self, images: Sequence[Image.Image], example: Example, num_parts: int) -> list[CutImage]:
        if num_parts != len(images):
            raise DataError(f"{example.id}: {num_parts} image parts but {len(images)} images")
        if images and self._cutter is None:
            raise DataError(f"{example.id}: has {len(images)} images, but {self.facts.anatomy.title} reads text only")
        return [self._cutter.cut(image, example.id) for image in images] if self._cutter else []

    def _expand(self, ids: Sequence[int], cut: Sequence[CutImage], example: Example) -> np.ndarray:
        expanded = np.array(ids, dtype=np.int64)
        return expanded.repeat(self._repeats(expanded, cut, example))

    def _repeats(self, ids: np.ndarray, cut: Sequence[CutImage], example: Example) -> np.ndarray:
        """How often each token stands in the sequence: an image token once per merged patch of its image."""
        repeats = np.ones(len(ids), dtype=np.int64)
        if self.facts.image_token_id is None:
            return repeats
        places = np.flatnonzero(ids == self.facts.image_token_id)
        if len(places) != len(cut):
            raise DataError(f"{example.id}: the chat template shows {len(places)} images, but {len(cut)} are given")
        repeats[places] = [image.patches.num_tokens(self.facts.merge_size) for image in cut]
        return repeats

    def _check_length(self, num_tokens: int, example: Example) -> None:
        if num_tokens > self.max_length:
            raise TooLong(example.id, num_tokens, self.max_length)


_SAID = "What the policy said"
"""Stands for a turn of the policy where only what follows it is wanted."""


def _told(example: Example) -> dict[str, Any]:
    """What the row tells its template, without the tools: they are shown once, in the opening."""
    return {key: value for key, value in example.reference.items() if key == "chat_template_kwargs"}


def _texts(message: Message) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _num_images(messages: Sequence[Message]) -> int:
    parts = (part for m in messages if not isinstance(m["content"], str) for part in m["content"])
    return sum(part["type"] == "image" for part in parts)
