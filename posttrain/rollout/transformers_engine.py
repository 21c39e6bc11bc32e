"""Sampling from the very model that is trained, through transformers: no copy of the weights, no server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from posttrain.errors import EngineError
from posttrain.model import ImagePatches, ModelFacts, PackedPolicy, rope_positions
from posttrain.model.vision import ImageFeatures, language_inputs, run_tower
from posttrain.rollout.engine import Request, Sample, Sampling
from posttrain.rollout.sampling import Uniforms, draw_tokens
from posttrain.rollout.shared_prefix import SharedPrefix, cached, own_cache, shared_prefix_decoding


class TransformersEngine:
    """Each distinct prompt is prefilled once, with its images, and its samples share its keys and values.

    All samples of a batch take a token in one forward pass, and leave the batch soon after they end. The model is in
    eval mode meanwhile (no dropout, no gradient checkpointing) and goes back to the modes it had.

    max_batch_tokens: keys and values held at a time, in tokens: a padded prompt once, and max_new_tokens for each of
    its samples. A batch of one sample may exceed it.
    vocab_limit: ids from here on are never sampled; the tokenizer's length, where the head has more rows.
    autocast: the dtype of the trainer's mixed precision, None without it.
    """

    def __init__(
        self,
        policy: PackedPolicy,
        facts: ModelFacts,
        *,
        max_batch_tokens: int = 1 << 17,
        vocab_limit: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.policy, self.facts, self.autocast = policy, facts, autocast
        self.max_batch_tokens = max_batch_tokens
        self.weights_version = 0
        device = next(policy.parameters()).device
        self._banned_V = torch.zeros(facts.vocab_size, dtype=torch.bool, device=device)
        self._banned_V[list(facts.banned_token_ids)] = True
        self._banned_V[facts.vocab_size if vocab_limit is None else vocab_limit :] = True
        self._ends = torch.tensor(facts.eos_token_ids, device=device)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """`n` samples for every request. Equal seeds give equal samples, whatever the global random state.

        Raises ValueError where image tokens and patches of a prompt differ.
        """
        prompts: dict[object, _Prompt] = {}
        num_samples = 0
        for request in requests:
            key = (request.token_ids.tobytes(), *(image.key for image in request.images))
            prompt = prompts.setdefault(key, _Prompt(token_ids=request.token_ids, images=request.images))
            prompt.samples.extend(range(num_samples, num_samples + request.n))
            num_samples += request.n
        done: dict[int, Sample] = {}
        with self._inference():
            for batch in _batches(list(prompts.values()), sampling.max_new_tokens, self.max_batch_tokens):
                done |= self._run(batch, sampling, Uniforms.seeded(num_samples, sampling.seed))
        in_order = iter(range(num_samples))
        return [[done[next(in_order)] for _ in range(request.n)] for request in requests]

    def update_weights(self, policy: nn.Module, version: int) -> None:
        """Notes the version: the weights are the trainer's own. Raises EngineError for another model."""
        if next(policy.parameters()) is not next(self.policy.parameters()):
            raise EngineError("this engine samples from the model it was made with, got another: make a new engine")
        self.weights_version = version

    def rest(self) -> None:
        """Nothing to give back: the model is the trainer's, and the cache is gone."""

    def close(self) -> None:
        """Nothing to free: the model is the trainer's."""

    @contextmanager
    def _inference(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.policy.modules()]
        device = next(self.policy.parameters()).device.type
        self.policy.eval()
        try:
            mixed = torch.autocast(device, self.autocast) if self.autocast else nullcontext()
            with torch.no_grad(), mixed, shared_prefix_decoding(self.policy.base_model):
                yield
        finally:
            for module, training in modes:
                module.training = training

    def _run(self, batch: Sequence["_Prompt"], sampling: Sampling, uniforms: Uniforms) -> dict[int, Sample]:
        """Samples of one batch, by their number in the call. U prompts, N samples, B samples still in the batch."""
        device = self._ends.device
        prefill = self._prefill(batch)
        prompt_N = torch.tensor([u for u, prompt in enumerate(batch) for _ in prompt.samples], device=device)
        numbers = torch.tensor([number for prompt in batch for number in prompt.samples])
        num_samples, limit = len(numbers), sampling.max_new_tokens
        tokens_NT = torch.full((num_samples, limit), self.facts.pad_token_id, device=device)
        logprobs_NT = torch.zeros(num_samples, limit, device=device)
        lengths_N = torch.full((num_samples,), limit, device=device)

        head: Any = self.policy.base_model.get_output_embeddings()
        head_VH = head.weight.to(prefill.hidden_UH.dtype)
        logits_BV = _logits(prefill.hidden_UH, head_VH)[prompt_N]
        prefix = SharedPrefix.of(prefill.keys, prefill.values, prefill.visible_UL, prompt_N)
        own = own_cache(self.facts.num_layers)
        following_B = prefill.following_U[prompt_N]
        sample_B = torch.arange(num_samples, device=device)
        running_B = torch.ones(num_samples, dtype=torch.bool, device=device)
        ended_N = torch.zeros(num_samples, dtype=torch.bool, device=device)
        for step in range(limit):
            uniforms_B = uniforms.draw()[numbers].to(device)[sample_B]
            next_B, logprobs_B = draw_tokens(logits_BV, uniforms_B, sampling, self._banned_V)
            tokens_NT[sample_B, step], logprobs_NT[sample_B, step] = next_B, logprobs_B
            ends_B = running_B & torch.isin(next_B, self._ends)
            lengths_N[sample_B[ends_B]] = step + 1
            ended_N[sample_B[ends_B]] = True
            running_B &= ~ends_B
            num_running = int(running_B.sum())
            if num_running == 0 or step + 1 == limit:
                break
            if num_running <= _KEPT_FRAC * len(running_B):
                kept = running_B.nonzero()[:, 0]
                prefix = prefix.kept(kept)
                own.batch_select_indices(kept)
                next_B, sample_B, running_B, following_B = (x[kept] for x in (next_B, sample_B, running_B, following_B))
            logits_BV = _logits(self._decode(next_B, following_B + step, prefix, own), head_VH)
        return self._samples(numbers, tokens_NT, logprobs_NT, lengths_N, ended_N)

    def _prefill(self, batch: Sequence["_Prompt"]) -> "_Prefill":
        """Prompts padded on the left; the images of all of them through the vision tower once."""
        facts, device = self.facts, self._ends.device
        longest = max(len(prompt.token_ids) for prompt in batch)
        token_ids_UL = np.full((len(batch), longest), facts.pad_token_id, dtype=np.int64)
        positions_RUL = np.zeros((facts.position_rows, len(batch), longest), dtype=np.int64)
        following_U = np.zeros(len(batch), dtype=np.int64)
        for u, prompt in enumerate(batch):
            start = longest - len(prompt.token_ids)
            token_ids_UL[u, start:] = prompt.token_ids
            positions_RUL[:, u, start:], following_U[u] = rope_positions(
                prompt.token_ids,
                [image.grid_thw for image in prompt.images],
                image_token_id=facts.image_token_id,
                merge_size=facts.merge_size,
                rows=facts.position_rows,
            )
        lengths_U = torch.tensor([len(prompt.token_ids) for prompt in batch], device=device)
        padded = int(lengths_U.min()) < longest
        visible_UL = torch.arange(longest, device=device) >= longest - lengths_U[:, None] if padded else None
        positions = torch.from_numpy(positions_RUL).to(device)
        cache = DynamicCache()
        inner: Any = self.policy.base_model.model
        token_ids = torch.from_numpy(token_ids_UL).to(device)
        if facts.has_vision:
            features = self._features([image for prompt in batch for image in prompt.images])
            text, inputs = inner.language_model, language_inputs(inner, facts, token_ids, features)
        else:
            text, inputs, positions = inner, {"input_ids": token_ids}, positions[0]
        output = text(
            position_ids=positions,
            attention_mask=None if visible_UL is None else _causal(visible_UL),
            past_key_values=cache,
            use_cache=True,
            **inputs,
        )
        keys, values = cached(cache)
        return _Prefill(
            hidden_UH=output.last_hidden_state[:, -1],
            keys=keys,
            values=values,
            visible_UL=visible_UL,
            following_U=torch.from_numpy(following_U).to(device),
        )

    def _features(self, images: Sequence[ImagePatches]) -> list[ImageFeatures]:
        """Features of every occurrence, in order; each distinct image passes the tower once."""
        if not images:
            return []
        distinct = {image.key: image for image in images}
        found = run_tower(self.policy.base_model.model, self.facts, list(distinct.values()))
        by_key = dict(zip(distinct, found, strict=True))
        return [by_key[image.key] for image in images]

    def _decode(self, tokens_B: Tensor, positions_B: Tensor, prefix: SharedPrefix, own: Cache) -> Tensor:
        """[B, H] last hidden states after one more token. The explicit positions leave no use for `rope_deltas`."""
        inner = self.policy.base_model.model
        positions = positions_B[:, None]
        if self.facts.has_vision:
            text, positions, mask = inner.language_model, positions.expand(3, -1, -1), None
        else:
            text, mask = inner, {"full_attention": None}
        output = text(
            input_ids=tokens_B[:, None],
            position_ids=positions,
            attention_mask=mask,
            past_key_values=own,
            use_cache=True,
            shared_prefix=prefix,
        )
        return output.last_hidden_state[:, -1]

    def _samples(
        self, numbers: Tensor, tokens_NT: Tensor, logprobs_NT: Tensor, lengths_N: Tensor, ended_N: Tensor
    ) -> dict[int, Sample]:
        tokens, logprobs = tokens_NT.cpu().numpy(), logprobs_NT.cpu().numpy()
        made: dict[int, Sample] = {}
        for row, (number, length, ended) in enumerate(
            zip(numbers.tolist(), lengths_N.tolist(), ended_N.tolist(), strict=True)
        ):
            stop: Literal["end", "length"] = "end" if ended else "length"
            made[number] = Sample(
                token_ids=tokens[row, :length].copy(),
                logprobs=logprobs[row, :length].copy(),
                stop=stop,
                weights_version=self.weights_version,
            )
        return made


_KEPT_FRAC = 0.875
"""Samples that have ended are dropped once they are an eighth of the batch."""


@dataclass(slots=True, kw_only=True)
class _Prompt:
    """A distinct prompt and the numbers, within the call, of the samples that start from it."""

    token_ids: np.ndarray
    images: tuple[ImagePatches, ...]
    samples: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefill:
    hidden_UH: Tensor
    """Last hidden state of each prompt."""
    keys: list[Tensor]
    """[U, kv heads, L, D] for each layer."""
    values: list[Tensor]
    visible_UL: Tensor | None
    """bool, False at padding; None where no prompt is padded."""
    following_U: Tensor
    """Rotary position after each prompt."""


def _batches(prompts: Sequence[_Prompt], max_new_tokens: int, max_tokens: int) -> Iterator[list[_Prompt]]:
    """Prompts of like length together, so that little is padded; one whose samples do not fit is split."""
    batch: list[_Prompt] = []
    room = max_tokens
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.token_ids)):
        waiting = prompt.samples
        while waiting:
            held = len((batch or [prompt])[0].token_ids)  # the first is the longest: the others are padded to it
            fitting = (room - held) // max_new_tokens
            if batch and fitting < len(waiting):
                yield batch
                batch, room = [], max_tokens
                continue
            taken, waiting = waiting[: max(fitting, 1)], waiting[max(fitting, 1) :]
            batch.append(_Prompt(token_ids=prompt.token_ids, images=prompt.images, samples=taken))
            room -= held + len(taken) * max_new_tokens
    if batch:
        yield batch


def _logits(hidden_NH: Tensor, head_VH: Tensor) -> Tensor:
    """[N, V] float32, rounded as the trainer's head rounds: a product in the hidden states' dtype, then float32."""
    with torch.autocast(hidden_NH.device.type, enabled=False):
        return torch.mm(hidden_NH, head_VH.t()).float()


def _causal(visible_UL: Tensor) -> Tensor:
    """[U, 1, L, L] bool. Padding sees itself: a row that sees nothing would be NaN in some kernels."""
    length = visible_UL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=visible_UL.device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=visible_UL.device)
    return ((visible_UL[:, None, :] & causal_LL) | itself_LL)[:, None]
