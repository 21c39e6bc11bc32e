"""The command `posttrain serve`: starts a vLLM server that rollouts and teachers can be asked of."""

from pathlib import Path
from typing import Annotated

import typer


def serve_model(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder or hub name: the model that is trained, or a teacher.")
    ],
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="-- [VLLM OPTIONS]", help="Passed on to vLLM's own server.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.", min=1, max=65535)] = 8000,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    max_model_len: Annotated[int, typer.Option(help="Longest prompt with answer, tokens.", min=16)] = 8192,
    max_images: Annotated[int, typer.Option(help="Most images in one prompt, all turns together.", min=0)] = 8,
    max_num_seqs: Annotated[int, typer.Option(help="Answers in flight.", min=1)] = 256,
    max_logprobs: Annotated[int, typer.Option(help="As a teacher: its largest top_k.", min=20)] = 64,
    min_pixels: Annotated[int | None, typer.Option(help="As the recipe's model.min_pixels.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="As the recipe's model.max_pixels.")] = None,
    gpu_memory: Annotated[float, typer.Option(help="Share of the GPU's memory.", min=0.01, max=1.0)] = 0.9,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share one copy of the model.", min=1)] = 1,
    enforce_eager: Annotated[bool, typer.Option("--eager", help="No CUDA graphs: starts faster.")] = False,
    weights_dir: Annotated[
        Path | None,
        typer.Option(help="A folder that the trainer sees too (engine.weights_dir): weights go through it."),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the key which every request must bring.")
    ] = "",
) -> None:
    """Serves a model with vLLM, ready to be trained against or to teach. Stop it with Ctrl-C.

    One server on this machine, and a run that samples from it:

    posttrain serve /models/Qwen3-VL-2B-Instruct --port 8000

    posttrain run mine.yaml engine.kind=server 'engine.servers=\\[http://127.0.0.1:8000]'

    On another machine, with a key that both sides hold in an environment variable:

    ROLLOUT_KEY=... posttrain serve /models/Qwen3-VL-2B-Instruct --host 0.0.0.0 --api-key-env ROLLOUT_KEY

    Several GPUs: start one server on each with CUDA_VISIBLE_DEVICES and another --port, and list them all in
    engine.servers. The run sends its weights over HTTP before every batch, through --weights-dir, or broadcasts them
    from memory to memory (engine.broadcast).
    """
    from posttrain.serving.launch import serve

    serve(
        model,
        host=host,
        port=port,
        dtype=dtype,
        max_model_len=max_model_len,
        max_images=max_images,
        max_num_seqs=max_num_seqs,
        max_logprobs=max_logprobs,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        gpu_memory_utilization=gpu_memory,
        tensor_parallel_size=tensor_parallel,
        enforce_eager=enforce_eager,
        weights_dir=weights_dir,
        api_key_env=api_key_env,
        extra=vllm_options or (),
    )
