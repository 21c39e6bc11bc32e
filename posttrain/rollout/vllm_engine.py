"""Sampling with vLLM in this process: its paged cache and batching, with the trainer's weights streamed into it."""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import ProcessorMixin

from posttrain.errors import EngineError
from posttrain.model import Family, ModelFacts, PackedPolicy
from posttrain.model.loading import named_weights
from posttrain.rollout.engine import Request, Sample, Sampling

_BAN_NATS = 100.0
"""Taken from the logits of banned tokens, the most that vLLM allows; known, so that their mass can be reckoned back."""

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: weights are handed over, not sent
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are shared with the trainer
    "TORCHDYNAMO_DISABLE": "1",  # the first generation would probe compilers for half a minute
}


class VllmEngine:
    """vLLM on a checkpoint of the policy, refreshed by `update_weights`.

    checkpoint: a folder (or hub name) of the whole model; its weights serve until the first update.
    processor: the trainer's, whose limits of image sizes replace the checkpoint's; None for a text model.
    max_images: the most in one prompt. gpu_memory_utilization: vLLM's share of the device's memory (CUDA).
    enable_sleep: lets `sleep` free that memory while the trainer works (CUDA).
    tensor_parallel_size: above 1 only under a launcher (`accelerate launch`), whose ranks then share one engine and
    must ask it the same; otherwise each rank has an engine of its own. Neither has been tried on several devices yet.
    Making and asking an engine leaves the random states of Python, NumPy and torch as they were.
    Raises EngineError where vLLM is not installed or does not start.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        facts: ModelFacts,
        processor: ProcessorMixin | None = None,
        *,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        max_model_len: int = 8192,
        max_images: int = 8,
        gpu_memory_utilization: float = 0.4,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        max_num_seqs: int = 256,
        seed: int = 0,
        enable_sleep: bool = False,
    ) -> None:
        on_cpu = self._on_cpu = not torch.cuda.is_available()
        if enable_sleep and on_cpu:
            raise EngineError("vLLM can sleep on CUDA devices only: set enable_sleep to false")
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size % tensor_parallel_size:
            raise EngineError(
                f"tensor_parallel_size {tensor_parallel_size} does not divide the {world_size} launched processes: "
                f"launch a multiple of {tensor_parallel_size}"
            )
        self.facts, self.max_model_len = facts, max_model_len
        self.weights_version = 0
        self._asleep, self._sleeps = False, enable_sleep
        self._owns_process_group = not torch.distributed.is_initialized()
        for name, value in _ENVIRONMENT.items() | (_CPU_ENVIRONMENT.items() if on_cpu else set()):
            os.environ.setdefault(name, value)
        settings: dict[str, Any] = {"distributed_executor_backend": "external_launcher"} if world_size > 1 else {}
        if facts.has_vision:
            settings["limit_mm_per_prompt"] = {"image": max_images, "video": 0}
            if processor is not None:
                settings["mm_processor_kwargs"] = {"size": dict(processor.image_processor.size)}  # pyright: ignore
        try:
            import vllm
        except ImportError as error:
            raise EngineError(
                "vLLM is not installed: pip install 'posttrain[vllm]', or use the transformers engine"
            ) from error
        self._vllm: Any = vllm
        with _side_effects_undone(), _failures_named("vLLM did not start"):
            self._llm: Any = vllm.LLM(
                model=str(checkpoint),
                dtype=dtype,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                enforce_eager=enforce_eager or on_cpu,
                max_num_seqs=max_num_seqs,
                seed=seed,
                enable_sleep_mode=enable_sleep,
                generation_config="vllm",  # not the checkpoint's: its top_p and penalties are not the trainer's
                logprobs_mode="processed_logprobs",  # after the temperature
                **settings,
            )

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """`n` samples for every request; wakes the engine where it sleeps. Equal seeds give equal samples.

        Log-probabilities are over the full vocabulary at the sampling temperature, as a trainer computes them (see
        `full_logprobs`); with top_p or top_k, over what the filter left. Raises EngineError where a prompt is too long,
        where vLLM counts its tokens differently, and when vLLM fails.
        """
        self._wake()
        prompts = [self._prompt(request) for request in requests]
        greedy = sampling.temperature == 0  # vLLM refuses to answer greedily more than once
        params = [self._params(i, 1 if greedy else request.n, sampling) for i, request in enumerate(requests)]
        with _side_effects_undone(), _failures_named("vLLM failed while generating"):
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        samples = []
        for request, output in zip(requests, outputs, strict=True):
            theirs, ours = len(output.prompt_token_ids), len(request.token_ids)
            if theirs != ours:
                raise EngineError(
                    f"vLLM read a prompt of {theirs} tokens where the trainer has {ours}: give the engine the "
                    "trainer's processor, so that both resize images alike"
                )
            answers = sorted(output.outputs, key=lambda answer: answer.index)
            samples.append([self._sample(answer, sampling) for answer in answers] * (request.n if greedy else 1))
        return samples

    def update_weights(self, policy: nn.Module, version: int) -> None:
        """Streams the policy's weights, adapters merged, into vLLM, and forgets what was computed with the old ones.

        Raises EngineError where vLLM fails, and for a mixture of experts on a CPU.
        """
        if self._on_cpu and self.facts.family is Family.QWEN3_VL_MOE:
            raise EngineError(
                "vLLM on a CPU packs the weights of experts once and cannot take new ones: use the transformers engine"
            )
        model: Any = policy.model if isinstance(policy, PackedPolicy) else policy
        self._wake()
        with torch.no_grad(), _failures_named("vLLM did not take the new weights"):
            weights = ((name, weight.detach()) for name, weight in named_weights(model))
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if self.facts.tied_embeddings:
                self._llm.apply_model(_renew_head)
            # Without the first of these, images that the scheduler remembers are missing from the worker's cache.
            self._llm.llm_engine.reset_encoder_cache()
            self._llm.reset_mm_cache()
            self._llm.reset_prefix_cache()
        self.weights_version = version

    def rest(self) -> None:
        """Sleeps at level 2 where `enable_sleep` was asked for: the next weights are on their way anyway."""
        if self._sleeps:
            self.sleep(level=2)

    def sleep(self, level: Literal[1, 2] = 1) -> None:
        """Frees device memory until the next call: level 1 moves the weights to the host, level 2 drops them too, so
        that `update_weights` must come before `generate`."""
        if not self._asleep:
            with _failures_named("vLLM did not fall asleep"):
                self._llm.sleep(level=level)
            self._asleep = True

    def close(self) -> None:
        """Frees the engine's memory; a process group that it opened is closed with it."""
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        destroy_model_parallel()
        if self._owns_process_group:
            destroy_distributed_environment()

    def _wake(self) -> None:
        if self._asleep:
            with _failures_named("vLLM did not wake up"):
                self._llm.wake_up()
            self._asleep = False

    def _prompt(self, request: Request) -> dict[str, Any]:
        if len(request.token_ids) >= self.max_model_len:
            raise EngineError(
                f"a prompt of {len(request.token_ids)} tokens leaves no room to answer within max_model_len "
                f"{self.max_model_len}: raise it, or drop such prompts"
            )
        if len(request.pictures) != len(request.images):
            raise EngineError(
                f"a prompt has {len(request.images)} images but {len(request.pictures)} pictures: vLLM cuts patches "
                "itself and needs each image as the trainer resized it"
            )
        prompt: dict[str, Any] = {"prompt_token_ids": one_token_an_image(request.token_ids, self.facts.image_token_id)}
        if request.pictures:
            prompt["multi_modal_data"] = {"image": list(request.pictures)}
        return prompt

    def _params(self, place: int, n: int, sampling: Sampling) -> Any:
        banned = list(self.facts.banned_token_ids)
        seed = np.random.SeedSequence([sampling.seed % (1 << 64), place]).generate_state(1, np.uint32)[0]
        return self._vllm.SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=int(seed) << 20,  # vLLM adds 0 .. n - 1 for the samples of a request
            stop_token_ids=list(self.facts.eos_token_ids),
            logit_bias=dict.fromkeys(banned, -_BAN_NATS) if banned else None,
            logprobs=None if banned else 0,
            logprob_token_ids=banned or None,
            flat_logprobs=True,
            detokenize=False,
        )

    def _sample(self, answer: Any, sampling: Sampling) -> Sample:
        token_ids = np.array(answer.token_ids, dtype=np.int64)
        if answer.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM gave up on a sample: {answer.finish_reason}")
        if np.isin(token_ids, self.facts.banned_token_ids).any():
            raise EngineError(f"a vision token was sampled against a bias of -{_BAN_NATS:g}: the weights are broken")
        # For each token: the sampled one first, then the banned ones.
        table = np.array(answer.logprobs.logprobs).reshape(len(token_ids), -1)
        return Sample(
            token_ids=token_ids,
            logprobs=full_logprobs(table[:, 0], table[:, 1:], sampling.temperature or 1.0),
            stop="end" if answer.finish_reason == "stop" else "length",
            weights_version=self.weights_version,
        )


def _renew_head(model: nn.Module) -> None:
    """On a CPU, vLLM's head works on a repacked copy of its weight, which reloading leaves stale where the head is tied
    to the embeddings: only the embeddings are seen to change. Elsewhere this does nothing."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def full_logprobs(sampled_T: np.ndarray, banned_TB: np.ndarray, temperature: float) -> np.ndarray:
    """float32 [T] log-probabilities over the full vocabulary, from those after the ban.

    The ban took 100 from each banned logit, so its log-probability before is that after plus 100 / temperature, up to
    the change of the total that is sought: log p = log p' - log(1 + sum_b exp(log p'_b + 100 / temperature)).
    """
    before_TB = banned_TB.astype(np.float64) + _BAN_NATS / temperature
    total_T = np.logaddexp.reduce(before_TB, axis=1, initial=0.0)
    return (sampled_T - total_T).astype(np.float32)


def one_token_an_image(token_ids: np.ndarray, image_token_id: int | None) -> list[int]:
    """The prompt with every run of image tokens cut to one: vLLM expands it itself, and would expand each of a run."""
    shortened: list[int] = []
    for token_id, run in groupby(token_ids.tolist()):
        shortened.extend([token_id] if token_id == image_token_id else run)
    return shortened


@contextmanager
def _failures_named(what: str) -> Iterator[None]:
    """vLLM's failures have no common class: whatever stops it here stops the engine."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise EngineError(f"{what}: {type(error).__name__}: {first_line}") from error


@contextmanager
def _side_effects_undone() -> Iterator[None]:
    """vLLM seeds and draws from the global generators, and on a CPU replaces `torch.set_num_threads` by a warning."""
    python, numpy, set_num_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads = set_num_threads
