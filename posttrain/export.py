"""Writes a trained model for deployment: whole, merged from an adapter, or the adapter alone."""

from pathlib import Path

import torch

from posttrain.errors import CheckpointError, ConfigError
from posttrain.model.loading import ModelLoadError, load_model, load_processor, merge_adapter, save_model
from posttrain.runs import read_json

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_model(source: Path, target: Path, *, adapter: bool = False, dtype: str | None = None) -> Path:
    """Writes `source` (a checkpoint, an adapter, or a run: then its last finished stage) to `target` and returns that.

    An adapter is merged into its base unless `adapter`. Raises ConfigError for a target that exists, CheckpointError
    for a source that is no model.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already and is not empty; choose another folder")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype '{dtype}' is not one of {', '.join(_DTYPES)}")
    folder = last_model(source) if (source / "manifest.json").is_file() else source
    is_adapter = (folder / "adapter_config.json").is_file()
    if adapter and not is_adapter:
        raise ConfigError(f"{folder} is a whole model, there is no adapter to write alone; leave out --adapter")
    wanted = _DTYPES[dtype] if dtype else "auto"
    try:
        if is_adapter and not adapter:
            return merge_adapter(folder, target, dtype=wanted)
        model = load_model(folder, dtype=wanted)
        return save_model(model, load_processor(folder), target)
    except ModelLoadError as error:
        raise CheckpointError(str(error)) from error


def last_model(run: Path) -> Path:
    """The model of the last finished stage of a run. Raises CheckpointError where none is finished."""
    stages = list(read_json(run / "manifest.json").get("recipe", {}).get("stages", {}))
    for name in reversed(stages):
        final = run / "stages" / name / "final"
        if (run / "stages" / name / "result.json").is_file() and final.is_dir():
            return final
    raise CheckpointError(f"{run} has no finished stage yet; run the same recipe again to go on")
