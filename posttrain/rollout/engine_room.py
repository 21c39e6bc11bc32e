"""The run's engine: made once, on the first rollout or evaluation, and handed from stage to stage."""

import hashlib
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from peft import PeftModel

from posttrain.checkpoints import is_sharded
from posttrain.config import EngineSection, ModelSection
from posttrain.errors import ConfigError
from posttrain.loaded import Loaded
from posttrain.rollout.engine import Engine


class EngineRoom:
    """Hands out the engine that samples from a model; one of vLLM serves every stage whose model has its shape."""

    def __init__(self, section: EngineSection, model: ModelSection, seed: int, accelerator: Accelerator) -> None:
        self.section, self._model, self._seed, self._accelerator = section, model, seed, accelerator
        self._kept: Engine | None = None
        self._shape = ""

    def engine_for(self, loaded: Loaded, *, dtype: Literal["float32", "bfloat16"] | None = None) -> Engine:
        """dtype: what vLLM computes in, where it is not the recipe's."""
        section = self.section
        if section.kind == "transformers":
            if is_sharded(self._accelerator):
                raise ConfigError(
                    "engine.kind 'transformers' samples from the trained model, which FSDP and DeepSpeed cut into "
                    "shards; set engine.kind to 'vllm'"
                )
            from posttrain.rollout.transformers_engine import TransformersEngine

            return TransformersEngine(
                loaded.policy,
                loaded.facts,
                max_batch_tokens=section.max_batch_tokens,
                vocab_limit=len(loaded.tokenizer),
            )
        shape = _shape_of(loaded)
        if self._kept is not None and shape != self._shape:
            if section.kind == "server":
                raise ConfigError(
                    "the servers hold a model of another shape than this stage's: train models of different shapes in "
                    "recipes of their own, or set engine.kind to 'vllm'"
                )
            self.close()
        if self._kept is None:
            made = self._servers(loaded) if section.kind == "server" else self._vllm(loaded, dtype)
            self._kept, self._shape = made, shape
        return self._kept

    def _servers(self, loaded: Loaded) -> Engine:
        from posttrain.rollout.server_engine import VllmServerEngine

        section = self.section
        return VllmServerEngine(
            section.servers,
            loaded.facts,
            weights_dir=Path(section.weights_dir) if section.weights_dir is not None else None,
            broadcast=section.broadcast,
            broadcast_host=section.broadcast_host,
            api_key_env=section.api_key_env,
            timeout_s=section.timeout_s,
            retries=section.retries,
            without_servers_s=section.without_servers_s,
            concurrency=section.concurrency,
        )

    def _vllm(self, loaded: Loaded, dtype: Literal["float32", "bfloat16"] | None) -> Engine:
        from posttrain.rollout.vllm_engine import VllmEngine

        section = self.section
        return VllmEngine(
            _base_folder(loaded),
            loaded.facts,
            loaded.processor if loaded.facts.has_vision else None,  # pyright: ignore[reportArgumentType]
            dtype=dtype or self._model.dtype,
            max_model_len=section.max_model_len,
            max_images=section.max_images,
            max_num_seqs=section.max_num_seqs,
            gpu_memory_utilization=section.gpu_memory_utilization,
            tensor_parallel_size=section.tensor_parallel_size,
            enforce_eager=section.enforce_eager,
            enable_sleep=section.sleep and self._accelerator.device.type == "cuda",
            seed=self._seed,
        )

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _base_folder(loaded: Loaded) -> Path | str:
    """What an engine of its own can start from: the base model of an adapter."""
    model = loaded.policy.model
    if isinstance(model, PeftModel):
        base = model.peft_config["default"].base_model_name_or_path
        return base or loaded.path
    return loaded.path


def _shape_of(loaded: Loaded) -> str:
    """Equal for models that can take over each other's weights."""
    config = loaded.policy.base_model.config
    return hashlib.sha256(f"{type(config).__name__} {config.to_json_string(use_diff=False)}".encode()).hexdigest()
