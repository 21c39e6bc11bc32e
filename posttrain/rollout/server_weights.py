"""The policy's weights as files that vLLM servers load, kept until the next ones so that any server can have them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from posttrain.model import PackedPolicy
from posttrain.model.loading import named_weights

_SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A whole checkpoint's weights in a folder that is named like their label."""

    label: str
    version: int
    folder: Path

    def files(self) -> dict[str, int]:
        """Names and bytes."""
        return {path.name: path.stat().st_size for path in sorted(self.folder.glob("*.safetensors"))}

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def write_weights(policy: nn.Module, folder: Path) -> None:
    """The policy's weights, adapters merged, as shards of about 1 GiB; one of them in memory at a time."""
    folder.mkdir(parents=True)
    for number, shard in enumerate(_shards(policy)):
        save_file(shard, folder / f"weights-{number:05d}.safetensors")


def read_through(policy: nn.Module) -> None:
    """What a rank does that does not write: sharded weights are gathered by all ranks together."""
    for _ in _shards(policy):
        pass


def _shards(policy: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    model = policy.model if isinstance(policy, PackedPolicy) else policy
    shard: dict[str, torch.Tensor] = {}
    held = 0
    with torch.no_grad():
        for name, weight in named_weights(model):  # pyright: ignore[reportArgumentType]
            # A copy: several names may be parts of one tensor, which a file of tensors cannot hold.
            shard[name] = weight.detach().to("cpu", copy=True).contiguous()
            held += shard[name].nbytes
            if held >= _SHARD_BYTES:
                yield shard
                shard, held = {}, 0
    if shard:
        yield shard
