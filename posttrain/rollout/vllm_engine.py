"""Sampling with vLLM in this process: its paged cache and batching, with the trainer's weights streamed into it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import ProcessorMixin

from posttrain.errors import EngineError
from posttrain.model import Family, ModelFacts, PackedPolicy
from posttrain.model.loading import named_weights
from posttrain.rollout.engine import Capacity, Request, Sample, Sampling
from posttrain.rollout.vllm_prompts import full_logprobs, one_token_an_image, vllm_seed
from posttrain.rollout.vllm_stream import RunningRequests, VllmStream, failures_named, side_effects_undone

__all__ = ["VllmEngine", "full_logprobs", "one_token_an_image"]

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

    `llm` is vLLM's own `LLM`, None once closed.
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
        self.capacity = Capacity(max_tokens=max_model_len - 1, max_images=max_images if facts.has_vision else None)
        self._asleep, self._sleeps = False, enable_sleep
        self._owns_process_group = not torch.distributed.is_initialized()
        for name, value in _ENVIRONMENT.items() | (_CPU_ENVIRONMENT.items() if on_cpu else set()):
            os.environ.setdefault(name, value)
        settings: dict[str, Any] = {"distributed_executor_backend": "external_launcher"} if world_size > 1 else {}
        if on_cpu:  # vLLM 0.32 dies of a seeded request whose prompt it reads in parts
            settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_model_len, 4096)}
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
        with side_effects_undone(), failures_named("vLLM did not start"):
            self.llm: Any = vllm.LLM(
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
            self._running = RunningRequests(vllm, self.llm, facts, max_model_len)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """`n` samples for every request; wakes the engine where it sleeps. Equal seeds give equal samples.

        Log-probabilities are over the full vocabulary at the sampling temperature, as a trainer computes them (see
        `full_logprobs`); with top_p or top_k, over what the filter left. Raises EngineError where a prompt is too long,
        where vLLM counts its tokens differently, and when vLLM fails.
        """
        stream = self.stream(sampling)
        found: list[dict[int, Sample]] = [{} for _ in requests]
        try:
            for place, request in enumerate(requests):
                seed = vllm_seed(sampling.seed, place)
                self._running.add(stream, place, request, sampling, sampling.max_new_tokens, seed)
            while stream.num_running:
                for answer in stream.poll(1.0):
                    found[answer.key][answer.index] = answer.sample
        finally:
            stream.close()
        return [
            [samples[index] for index in range(request.n)] for request, samples in zip(requests, found, strict=True)
        ]

    @property
    def weights_version(self) -> int:
        return self._running.weights_version

    def stream(self, sampling: Sampling) -> VllmStream:
        """Requests that join while others are answered; what earlier turns of a prompt have computed is used again.

        Ranks that share an engine must add the same requests in the same order, also where tools answer in between.
        """
        self._wake()
        return VllmStream(self._running, sampling)

    def update_weights(self, policy: nn.Module, version: int) -> None:
        """Streams the policy's weights, adapters merged, into vLLM, and forgets what was computed with the old ones.

        Raises EngineError where vLLM fails, while it samples, and for a mixture of experts on a CPU.
        """
        if self._on_cpu and self.facts.family is Family.QWEN3_VL_MOE:
            raise EngineError(
                "vLLM on a CPU packs the weights of experts once and cannot take new ones: use the transformers engine"
            )
        self._check_idle("take new weights")
        model: Any = policy.model if isinstance(policy, PackedPolicy) else policy
        self._wake()
        with torch.no_grad(), failures_named("vLLM did not take the new weights"):
            weights = ((name, weight.detach()) for name, weight in named_weights(model))
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if self.facts.tied_embeddings:
                self.llm.apply_model(renew_head)
            # Without the first of these, images that the scheduler remembers are missing from the worker's cache.
            self.llm.llm_engine.reset_encoder_cache()
            self.llm.reset_mm_cache()
            self.llm.reset_prefix_cache()
        self._running.weights_version = version

    def rest(self) -> None:
        """Sleeps at level 2 where `enable_sleep` was asked for: the next weights are on their way anyway."""
        if self._sleeps:
            self.sleep(level=2)

    def sleep(self, level: Literal[1, 2] = 1) -> None:
        """Frees device memory until the next call: level 1 moves the weights to the host, level 2 drops them too, so
        that `update_weights` must come before `generate`."""
        if not self._asleep:
            self._check_idle("sleep")
            with failures_named("vLLM did not fall asleep"):
                self.llm.sleep(level=level)
            self._asleep = True

    def close(self) -> None:
        """Frees the engine's memory; a process group that it opened is closed with it."""
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        destroy_model_parallel()
        if self._owns_process_group:
            destroy_distributed_environment()

    def _check_idle(self, what: str) -> None:
        if len(self._running):
            raise EngineError(
                f"vLLM cannot {what} while it is at {len(self._running)} samples: close the stream that asked for them"
            )

    def _wake(self) -> None:
        if self._asleep:
            with failures_named("vLLM did not wake up"):
                self.llm.wake_up()
            self._asleep = False


def renew_head(model: nn.Module) -> None:
    """On a CPU, vLLM's head works on a repacked copy of its weight, which reloading leaves stale where the head is tied
    to the embeddings: only the embeddings are seen to change. Elsewhere this does nothing."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
