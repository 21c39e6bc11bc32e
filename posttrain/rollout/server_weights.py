"""The policy's weights as files that vLLM servers load, kept until the next ones so that any server can have them."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import torch
from safetensors.torch import save_file
from torch import nn

from posttrain.model import PackedPolicy
from posttrain.model.loading import named_weights

_SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A whole checkpoint's weights in a folder that is named like their label; none in it where they were broadcast."""

    label: str
    version: int
    folder: Path
    wanted: Event = field(default_factory=Event)
    """A server was not there when they were broadcast: it needs the files."""

    def files(self) -> dict[str, int]:
        """Names and bytes."""
        return {path.name: path.stat().st_size for path in sorted(self.folder.glob("*.safetensors"))}

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def weights_of(policy: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a published checkpoint, adapters merged, one by one, wherever the policy is.

    Sharded weights are gathered by all ranks together, so that every rank has to read all of it: `read_through`.
    """
    model = policy.model if isinstance(policy, PackedPolicy) else policy
    with torch.no_grad():
        weights = named_weights(model)  # pyright: ignore[reportArgumentType]
    while True:
        with torch.no_grad():  # not across a yield: it would be the reader's too
            found = next(weights, None)
        if found is None:
            return
        yield found[0], found[1].detach()


def write_weights(weights: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Shards of about 1 GiB; one of them in memory at a time. The folder is there once it is whole."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True)
    try:
        for number, shard in enumerate(_shards(weights)):
            save_file(shard, part / f"weights-{number:05d}.safetensors")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_through(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """What a rank does that does not write, and the one that failed to."""
    for _ in weights:
        pass


def _shards(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    held = 0
    for name, weight in weights:
        # A copy: several names may be parts of one tensor, which a file of tensors cannot hold.
        shard[name] = weight.to("cpu", copy=True).contiguous()
        held += shard[name].nbytes
        if held >= _SHARD_BYTES:
            yield shard
            shard, held = {}, 0
    if shard:
        yield shard
