"""In each of a vLLM server's workers: weights from files into the running model."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import safe_open

from posttrain.rollout.vllm_engine import renew_head


class WeightsWorker:
    """Methods that vLLM adds to its worker class (`--worker-extension-cls`)."""

    reload_weights: Any
    """The worker's own."""
    model_runner: Any
    """The worker's own."""
    model_config: Any
    """The worker's own."""

    def load_posttrain_weights(self, files: Sequence[str]) -> None:
        """Replaces the weights by those of the safetensors files, which hold a whole published checkpoint."""
        with torch.no_grad():
            self.reload_weights(weights_iterator=_tensors(files))
            if self.model_config.hf_config.tie_word_embeddings:
                renew_head(self.model_runner.get_model())


def _tensors(files: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                yield name, file.get_tensor(name)
