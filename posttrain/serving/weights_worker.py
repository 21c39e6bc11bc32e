"""In each of a vLLM server's workers: weights, from files or by broadcast, into the running model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from safetensors import safe_open

from posttrain.rollout.vllm_engine import renew_head
from posttrain.serving.weight_broadcast import Meeting, received


class WeightsWorker:
    """Methods that vLLM adds to its worker class (`--worker-extension-cls`)."""

    reload_weights: Any
    """The worker's own."""
    model_runner: Any
    """The worker's own."""
    model_config: Any
    """The worker's own."""
    parallel_config: Any
    """The worker's own."""
    rank: int
    """The worker's own, among those of its copy of the model."""
    device: torch.device
    """The worker's own."""

    def load_posttrain_weights(self, files: Sequence[str]) -> None:
        """Replaces the weights by those of the safetensors files, which hold a whole published checkpoint."""
        self._take(_tensors(files))

    def receive_posttrain_weights(self, meeting: dict[str, Any], first_rank: int) -> None:
        """Replaces the weights by a whole published checkpoint's that the trainer broadcasts.

        first_rank: of this server's workers in the group that meets. Raises BroadcastFailed.
        """
        copy = self.parallel_config.data_parallel_index
        rank = first_rank + copy * self.parallel_config.world_size + self.rank
        with closing(received(Meeting(**meeting), rank, torch.device(self.device))) as weights:
            self._take(weights)

    def _take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            self.reload_weights(weights_iterator=weights)
            if self.model_config.hf_config.tie_word_embeddings:
                renew_head(self.model_runner.get_model())


def _tensors(files: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                yield name, file.get_tensor(name)
