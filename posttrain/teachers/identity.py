"""The identity of a teacher's weights: a hash of a checkpoint that reads a few bytes of every tensor."""

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from transformers.utils.hub import cached_file

from posttrain.errors import TeacherError

_SAMPLE_BYTES = 4096
_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_ADAPTED = "base_model_name_or_path"


def checkpoint_identity(
    path_or_name: str | Path, *, revision: str | None = None, base: str | Path | None = None
) -> str:
    """Equal for a checkpoint and its copies, different after any training step.

    Of a folder: a hash of its config and, of each safetensors file, the name, size, header and 4 KiB from the middle of
    every tensor; hundreds of GB take seconds. A step changes about one bfloat16 weight in a hundred at a learning rate
    of 1e-6, twenty in each sample, so that samples of the few tensors of a merger are enough. An adapter has its base
    model's identity in it (`base` replaces the one that its folder names). Of a hub name: the name and the commit,
    which is the same before and after its weights are downloaded; the revision where the hub cannot be reached.
    Raises TeacherError for a folder without safetensors weights, or with damaged ones.
    """
    folder = Path(path_or_name).expanduser()
    if not folder.is_dir():
        return f"{path_or_name}@{_commit(str(path_or_name), revision)}"
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(folder.glob("*.safetensors"))
    try:
        if (folder / _ADAPTER_CONFIG).is_file():
            config = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
            adapted = base_of(folder, base)
            config[_ADAPTED] = checkpoint_identity(adapted) if adapted else None
            digest.update(json.dumps(config, sort_keys=True).encode())
        elif files and (folder / _CONFIG).is_file():
            digest.update((folder / _CONFIG).read_bytes())
        else:
            raise TeacherError(f"{folder} is not a checkpoint: it needs a {_CONFIG} and safetensors weights")
        for file in files:
            with file.open("rb") as opened:
                _add(digest, opened, file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(f"the checkpoint {folder} is damaged or cannot be read ({error}); copy it again") from error
    return digest.hexdigest()


def base_of(folder: Path, base: str | Path | None = None) -> str | Path | None:
    """The model that the adapter in `folder` adapts, `base` where that is given; None where neither says it."""
    if base is not None:
        return base
    return json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8")).get(_ADAPTED)


def _commit(name: str, revision: str | None) -> str:
    """Its config is a small file, from whose place in the hub's cache the commit is read."""
    revision = revision or "main"
    try:
        config = cached_file(name, _CONFIG, revision=revision)
    except OSError:
        return revision
    return revision if config is None else Path(config).parent.name


def _add(digest: hashlib.blake2b, file: BinaryIO, path: Path) -> None:
    """Raises ValueError, KeyError or TypeError where the file is cut short or has no safetensors header."""
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError(f"{path.name} has no safetensors header")
    header = file.read(length)
    digest.update(f"{path.name} {size} ".encode() + header)
    tensors = json.loads(header)
    spans = sorted(tensors[name]["data_offsets"] for name in tensors if name != "__metadata__")
    if not spans or 8 + length + spans[-1][1] != size:
        raise ValueError(f"{path.name} is cut short")
    for begin, end in spans:
        taken = min(end - begin, _SAMPLE_BYTES)
        file.seek(8 + length + begin + (end - begin - taken) // 2)
        digest.update(file.read(taken))
