"""Files that are written whole or not at all, and the sentence where the disk is full."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError


def write_whole(path: Path, pieces: Iterable[bytes]) -> str:
    """Writes the pieces one after the other; the SHA-256 of the file. Raises CheckpointError."""
    scratch, digest = path.with_name(f".{path.name}.{os.getpid()}"), hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as stream:
            for piece in pieces:
                digest.update(piece)
                stream.write(piece)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise not_written(path, error) from error
    return digest.hexdigest()


def not_written(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be written ({error.strerror or error}); all that was finished is kept: free space and run the "
        "same command to go on"
    )


def json_line(content: Mapping[str, Any]) -> bytes:
    # A lone surrogate, which UTF-8 cannot hold, becomes \udXXX: in JSON that is its escape.
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
