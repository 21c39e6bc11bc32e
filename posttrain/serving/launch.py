"""`posttrain serve`: a vLLM server with the settings that rollouts and teachers need, in place of this process."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from posttrain.errors import ConfigError, EngineError

WEIGHTS_DIR = "POSTTRAIN_WEIGHTS_DIR"
"""Environment variable of the server: the folder that it shares with the trainer, where there is one."""

_MODULE = "vllm.entrypoints.openai.api_server"  # the command `vllm serve` does not start where vLLM is a CPU build
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less to start: half the time
    "TORCHDYNAMO_DISABLE": "1",  # the first generation would probe compilers for half a minute
}
_OURS = {"--middleware", "--worker-extension-cls", "--logprobs-mode", "--generation-config", "--enable-scale-out"}
"""What the engine relies on, and nobody may set otherwise."""


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    dtype: str = "auto",
    max_model_len: int = 8192,
    max_images: int = 8,
    max_num_seqs: int = 256,
    max_logprobs: int = 64,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel_size: int = 1,
    enforce_eager: bool = False,
    weights_dir: Path | None = None,
    api_key_env: str = "",
    extra: Sequence[str] = (),
) -> NoReturn:
    """Becomes the server: signals and the exit code are vLLM's own. It answers until it is stopped.

    model: a folder or hub name. min_pixels, max_pixels: of an image, as the trainer's recipe has them; default: the
    checkpoint's. weights_dir: a folder that trainer and server both see, through which weights then go instead of over
    HTTP. api_key_env: the environment variable that holds the key which every request must bring; it is never an
    argument, which other users of the machine could read.
    extra: further arguments of vLLM's own server.
    Raises EngineError where vLLM is not installed, ConfigError for arguments that cannot be right.
    """
    if find_spec("vllm") is None:
        raise EngineError("vLLM is not installed: pip install 'posttrain[vllm]'")
    if clash := sorted(_OURS & {argument.partition("=")[0] for argument in extra}):
        raise ConfigError(f"{', '.join(clash)} cannot be set: rollouts rely on what posttrain serve gives there")
    if host not in ("127.0.0.1", "localhost", "::1") and not (api_key_env or os.environ.get("VLLM_API_KEY")):
        raise ConfigError(
            f"on {host} others could replace the model's weights: name the environment variable that holds an API key "
            "with --api-key-env, or serve on 127.0.0.1"
        )
    command = [
        *("--model", model, "--host", host, "--port", str(port)),
        *("--dtype", dtype, "--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)),
        *("--gpu-memory-utilization", str(gpu_memory_utilization)),
        *("--tensor-parallel-size", str(tensor_parallel_size)),
        *("--max-logprobs", str(max_logprobs)),
        *("--limit-mm-per-prompt", json.dumps({"image": max_images, "video": 0})),
        "--enable-scale-out",  # token ids in and out, with images
        *("--generation-config", "vllm"),  # not the checkpoint's: its top_p and penalties are not the trainer's
        *("--logprobs-mode", "processed_logprobs"),  # after the temperature
        *("--middleware", "posttrain.serving.weights_endpoint.WeightsEndpoint"),
        *("--worker-extension-cls", "posttrain.serving.weights_worker.WeightsWorker"),
        "--disable-uvicorn-access-log",
    ]
    if enforce_eager or not torch.cuda.is_available():
        command.append("--enforce-eager")
    if not torch.cuda.is_available():  # vLLM 0.32 dies of a seeded request whose prompt is read in parts
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(max_model_len, 4096))]
    if size := image_size(model, min_pixels, max_pixels):
        command += ["--mm-processor-kwargs", json.dumps({"size": size})]
    arguments = [sys.executable, "-m", _MODULE, *command, *extra]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, arguments, environment(weights_dir=weights_dir, api_key_env=api_key_env))


def image_size(model: str, min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    """Both limits, as image processors name them, where one is given: the other is the checkpoint's."""
    if min_pixels is None and max_pixels is None:
        return {}
    from posttrain.model.loading import load_processor

    processor = load_processor(model, min_pixels=min_pixels, max_pixels=max_pixels)
    return dict(processor.image_processor.size)  # pyright: ignore


def environment(*, weights_dir: Path | None, api_key_env: str) -> dict[str, str]:
    """This process's environment with what the server needs; what is set already is kept."""
    found = {**_ENVIRONMENT, **({} if torch.cuda.is_available() else _CPU_ENVIRONMENT), **os.environ}
    found.pop(WEIGHTS_DIR, None)
    if weights_dir is not None:
        if not weights_dir.is_dir():
            raise ConfigError(f"weights_dir {weights_dir} is no folder: make it, where trainer and server both see it")
        found[WEIGHTS_DIR] = str(weights_dir.resolve())
    if api_key_env:
        key = os.environ.get(api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(f"the environment variable {api_key_env}, named as api_key_env, holds no key; set it")
        found["VLLM_API_KEY"] = key
    return found
