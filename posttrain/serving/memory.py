"""Folders for weights on their way, in memory where the system has such; what killed processes left there goes."""

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")


def memory_folder(what: str) -> Path:
    """A new folder `posttrain-WHAT-PID-...`, whoever made it has to remove it."""
    prefix = f"posttrain-{what}-"
    parent = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    for left in parent.glob(f"{prefix}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
