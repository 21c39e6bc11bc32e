"""Tiny checkpoints, prompts with images, and what the trainer says of an engine's samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from posttrain.model import Budget, Family, ImagePatches, ModelFacts, PackedPolicy, TokenSequence, facts_of, pack
from posttrain.model.loading import load_model, load_processor
from posttrain.model.tiny import build_tiny

from posttrain.rollout.engine import Request, Sample, Stream


@dataclass
class Tiny:
    """A loaded tiny checkpoint; every test gets its own copy of the weights."""

    folder: Path
    model: Any
    processor: Any
    facts: ModelFacts
    policy: PackedPolicy

    def request(self, text: str, sizes: Sequence[tuple[int, int]] = (), n: int = 4) -> Request:
        """One user turn; a noise image of each (width, height) before the text."""
        rng = np.random.default_rng(len(text) + len(sizes))
        pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
        marks = "<|vision_start|><|image_pad|><|vision_end|>" * len(pictures)
        turn = f"<|im_start|>user\n{marks}{text}<|im_end|>\n<|im_start|>assistant\n"
        if not self.facts.has_vision:
            return Request(token_ids=np.array(self.processor(turn)["input_ids"]), n=n)
        read = self.processor(text=[turn], images=[pictures] if pictures else None, return_tensors="pt")
        images: list[ImagePatches] = []
        if pictures:
            grids = [tuple(grid) for grid in read["image_grid_thw"].tolist()]
            for pixels, grid in zip(read["pixel_values"].split([t * h * w for t, h, w in grids]), grids, strict=True):
                key = str(hash(pixels.numpy().tobytes()))
                images.append(ImagePatches(pixel_values_PD=pixels, grid_thw=grid, key=key))
        return Request(token_ids=read["input_ids"][0].numpy(), images=tuple(images), pictures=tuple(pictures), n=n)

    def mixed_requests(self, n: int = 4) -> list[Request]:
        """Prompts of different lengths: one image, two images, none (three times none for a text model)."""
        if not self.facts.has_vision:
            return [self.request(text, n=n) for text in ("hi", "Locate the red circle.", "What is 3+4? Say it twice.")]
        return [
            self.request("Locate the red circle.", [(64, 64)], n),
            self.request("How many shapes are there in both?", [(96, 64), (64, 128)], n),
            self.request("hi", n=n),
        ]

    def episode(self, stream: Stream, turns: int, max_new_tokens: int) -> tuple[TokenSequence, np.ndarray]:
        """A conversation with an image before each turn, token by token as it was shown and said: the sequence as it
        is trained on, and the engine's log-probabilities of its trained tokens."""
        shown = self.request("Look.", [(64, 64)], n=1)
        token_ids, mask, logprobs = shown.token_ids, np.zeros(len(shown.token_ids), dtype=bool), []
        images, pictures = shown.images, shown.pictures
        for turn in range(turns):
            if turn:
                shown = self.request(f"Again, turn {turn}.", [(32 + 32 * turn, 96)], n=1)
                token_ids = np.concatenate([token_ids, shown.token_ids])
                mask = np.concatenate([mask, np.zeros(len(shown.token_ids), dtype=bool)])
                images, pictures = images + shown.images, pictures + shown.pictures
            request = Request(token_ids=token_ids, images=images, pictures=pictures, n=1)
            stream.add(turn, request, max_new_tokens=max_new_tokens, seed=turn)
            answers = []
            while not answers:
                answers = stream.poll(5.0)
            (answer,) = answers
            assert (answer.key, answer.index) == (turn, 0)
            token_ids = np.concatenate([token_ids, answer.sample.token_ids])
            mask = np.concatenate([mask, np.ones(len(answer.sample.token_ids), dtype=bool)])
            logprobs.append(answer.sample.logprobs)
        return TokenSequence(token_ids=token_ids, mask=mask, images=images), np.concatenate(logprobs)

    def gap(self, requests: Sequence[Request], samples: Sequence[Sequence[Sample]], temperature: float = 1.0) -> float:
        """Largest difference in nats between the engine's log-probabilities and the trainer's."""
        sequences, theirs = [], []
        for request, group in zip(requests, samples, strict=True):
            assert len(group) == request.n
            for sample in group:
                prefix = len(request.token_ids)
                token_ids = np.concatenate([request.token_ids, sample.token_ids])
                mask = np.arange(len(token_ids)) >= prefix
                sequences.append(
                    TokenSequence(token_ids=token_ids, mask=mask, images=request.images, prefix_length=prefix)
                )
                theirs.append(sample.logprobs)
        self.policy.eval()
        ours = self.policy.logprobs(sequences, Budget(tokens=4096), temperature=temperature)
        return max(float(np.abs(a.numpy() - b).max()) for a, b in zip(ours, theirs, strict=True))

    def shake(self, seed: int = 0) -> None:
        """Changes every weight."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)

    def crave(self, token_id: int, request: Request, nats: float) -> None:
        """Makes `token_id`, which must not stand in the prompt, `nats` likelier than any other as the first answer."""
        token_ids = np.append(request.token_ids, self.facts.eos_token_ids[0])
        mask = np.arange(len(token_ids)) == len(request.token_ids)
        sequence = TokenSequence(token_ids=token_ids, mask=mask, images=request.images)
        with torch.no_grad():
            self.policy.eval()
            (hidden_H,) = self.policy.hidden_states(pack([sequence], self.facts, Budget(tokens=4096))[0])
            weight_VH = self.model.get_output_embeddings().weight
            top = (weight_VH @ hidden_H).max()
            weight_VH[token_id] = hidden_H * (top + nats) / hidden_H.dot(hidden_H)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    made: dict[Family, Path] = {}

    def folder(family: Family) -> Path:
        if family not in made:
            made[family] = build_tiny(family, tmp_path_factory.mktemp(family.value) / "model")
        return made[family]

    return folder


@pytest.fixture(scope="session")
def load_tiny(tiny_folders: Callable[[Family], Path]) -> Callable[[Family], Tiny]:
    def load(family: Family) -> Tiny:
        folder = tiny_folders(family)
        model: Any = load_model(folder, dtype=torch.float32)
        processor: Any = load_processor(folder)
        tokenizer = processor if family is Family.QWEN3 else processor.tokenizer
        facts = facts_of(model.config, tokenizer, model.generation_config)
        return Tiny(folder, model, processor, facts, PackedPolicy(model, facts))

    return load
