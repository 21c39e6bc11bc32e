"""Loading, saving and merging checkpoints, and the stream of full weights that a rollout engine is refreshed from."""

import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, TypeGuard

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.core_model_loading import revert_weight_conversion

from .families import ANATOMY, Family, family_of
from .lora import merged_parameters

Processor = ProcessorMixin | PreTrainedTokenizerBase
"""What a checkpoint turns messages into tensors with: a text model has a tokenizer alone."""

_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"


class ModelLoadError(ValueError):
    """A checkpoint that is not there, not whole, or not of a family that this library trains."""


def load_model(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
    is_trainable: bool = False,
) -> PreTrainedModel | PeftModel:
    """The model in a local folder or of a hub name ("Qwen/Qwen3-VL-4B-Instruct"), in evaluation mode, on `device`.

    "auto" is the dtype that the checkpoint was saved in. Only safetensors weights are read: other formats can run code.
    A folder of an adapter gives its base model with the adapter on it; `base` replaces the base model that the folder
    names, and `is_trainable` lets the adapter train on. Raises ModelLoadError, in one sentence, when the checkpoint is
    missing, incomplete, damaged, or of another kind; also when it lacks weights, which would be random otherwise.
    """
    source = _resolve(path_or_name)
    if _is_adapter(source):
        model = load_model(
            _base_of(source, base),
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        return _with_adapter(model, source, is_trainable)
    if base is not None:
        raise ModelLoadError(f"{source} is a whole model, not an adapter: it takes no base model")
    family = _family_in(source, revision)
    if isinstance(source, Path):
        _check_weights(source, "model")
    auto: Any = AutoModelForCausalLM if family is Family.QWEN3 else AutoModelForImageTextToText
    try:
        model, loading = auto.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(f"the weights of {source} cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelLoadError(f"{source} lacks {len(missing)} weights of a {ANATOMY[family].title}, {missing[0]} first")
    return model.to(device).eval()


def load_processor(
    path_or_name: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Processor:
    """The processor of a checkpoint, or the tokenizer of a text model; an adapter without one has its base model's.

    `min_pixels` and `max_pixels` replace the limits that the checkpoint's images are resized to (pixels of one image).
    Raises ModelLoadError as `load_model` does, and for limits on a text model.
    """
    source = _resolve(path_or_name)
    if _is_adapter(source):
        whole = _resolve(_base_of(source, base))
        family = _family_in(whole, revision)
        source = source if (source / "tokenizer_config.json").is_file() else whole
    else:
        family = _family_in(source, revision)
    auto = AutoTokenizer if family is Family.QWEN3 else AutoProcessor
    try:
        processor = auto.from_pretrained(source, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the processor of {source} cannot be loaded: {_first_line(error)}") from error
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    limits = {edge: pixels for edge, pixels in limits.items() if pixels is not None}
    if limits and family is Family.QWEN3:
        raise ModelLoadError(f"{source} is a text model: it has no images to limit the pixels of")
    if limits:
        processor.image_processor.size = {**dict(processor.image_processor.size), **limits}
    return processor


def save_model(
    model: PreTrainedModel | PeftModel,
    processor: Processor | None,
    folder: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes a checkpoint that `load_model` and vLLM read, whole or not at all, and returns its folder.

    A model with adapters is saved as its adapter alone. Everything is written beside `folder` and moved there last: a
    full disk or a crash leaves the checkpoint that was there before. `state_dict` holds the gathered weights of a
    sharded model. Raises FileExistsError for a folder that holds something other than a checkpoint.
    """
    folder = Path(folder).resolve()
    options: dict[str, Any] = {} if state_dict is None else {"state_dict": dict(state_dict)}
    with _replacing(folder) as new:
        if isinstance(model, PeftModel):
            # The embeddings are never adapted: peft would ask the hub whether their size has changed.
            model.save_pretrained(str(new), save_embedding_layers=False, **options)
        elif ANATOMY[family_of(model.config)].stored_transposed:
            named = model.named_parameters() if state_dict is None else state_dict.items()
            model.save_pretrained(new, state_dict=dict(_as_published(model, named)), save_original_format=False)
        else:
            model.save_pretrained(new, **options)
        if processor is not None:
            processor.save_pretrained(new)
    return folder


def merge_adapter(
    folder: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | Literal["auto"] = "auto",
) -> Path:
    """Merges the adapter in `folder` into its base model, writes an ordinary checkpoint to `out` and returns that."""
    if not _is_adapter(_resolve(folder)):
        raise ModelLoadError(f"{folder} holds no {_ADAPTER_CONFIG}: there is no adapter to merge")
    model = load_model(folder, dtype=dtype, base=base)
    assert isinstance(model, PeftModel)
    merged: Any = model.merge_and_unload(safe_merge=True)
    return save_model(merged, load_processor(folder, base=base), out)


def named_weights(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The full weights, one by one, under the names and in the layout of a published checkpoint, which vLLM reads.

    Adapters that are switched on are added on the fly (W + scale * B A, summed in float32, rounded once to W's dtype);
    the model itself is not touched, so only one merged weight is alive at a time. A tied head is not repeated. Weights
    of a sharded model are gathered as they are reached: then every rank must read the whole stream.
    Raises ValueError for kinds of adapters whose update is not such a sum (DoRA, LoRA biases).
    """
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    yield from _as_published(whole, merged_parameters(whole))


def _as_published(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    transposed = ANATOMY[family_of(model.config)].stored_transposed
    for name, weight in weights:
        # One at a time: none of these families stores a weight of a checkpoint in several of its model, or the reverse.
        for published_name, published in revert_weight_conversion(model, {name: weight}).items():
            if name.endswith(transposed) and published.shape == weight.shape:
                published = published.transpose(-1, -2).contiguous()
            yield published_name, published


def _resolve(path_or_name: str | Path) -> Path | str:
    """An existing folder as an absolute Path, or a hub name as str."""
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelLoadError(f"{path} is a file: give the folder that holds the checkpoint")
    if isinstance(path_or_name, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path_or_name):
        raise ModelLoadError(f"there is no folder {path}")
    return path_or_name


def _is_adapter(source: Path | str) -> TypeGuard[Path]:
    return isinstance(source, Path) and (source / _ADAPTER_CONFIG).is_file()


def _with_adapter(model: PreTrainedModel | PeftModel, adapter: Path, is_trainable: bool) -> PeftModel:
    _check_weights(adapter, "adapter_model")
    try:
        with warnings.catch_warnings():
            # peft only warns, and leaves adapters without weights as if they were untrained.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable).eval()
    except (OSError, RuntimeError, ValueError, UserWarning) as error:
        raise ModelLoadError(f"the adapter {adapter} does not fit its base model: {_first_line(error)}") from error


def _base_of(adapter: Path, base: str | Path | None) -> str | Path:
    named = base or _json_in(adapter / _ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        raise ModelLoadError(f"{adapter} does not say which model it adapts: give the base model")
    try:
        _resolve(named)
    except ModelLoadError as error:
        raise ModelLoadError(f"{adapter} adapts {named}, which is not there: give the base model") from error
    return named


def _family_in(source: Path | str, revision: str | None) -> Family:
    """The family that a checkpoint's config names, read without loading anything else."""
    if isinstance(source, Path) and not (source / _CONFIG).is_file():
        names = sorted(p.name for p in source.iterdir())[:5]
        raise ModelLoadError(f"{source} is not a checkpoint: no {_CONFIG} in it, only {', '.join(names) or 'nothing'}")
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision or "main")
    except (OSError, ValueError) as error:
        if isinstance(source, Path):
            raise ModelLoadError(f"{source / _CONFIG} cannot be read: {_first_line(error)}") from error
        raise ModelLoadError(
            f"'{source}' is no folder here, and the hub did not give it: {_first_line(error)}"
        ) from error
    named = config.get("model_type")
    if named not in set(Family):
        raise ModelLoadError(f"{source} is a model of type '{named}'; those that can be trained: {', '.join(Family)}")
    return Family(named)


def _check_weights(folder: Path, stem: str) -> None:
    """Opens every weights file, which compares its length with its header; reads none of the weights."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(_json_in(index).get("weight_map", {}).values()))
    else:
        shards = [f"{stem}.safetensors"]
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelLoadError(f"{folder} lacks its weights {shard}: only the safetensors format is read")
        try:
            with safe_open(folder / shard, "pt"):
                pass
        except SafetensorError as error:
            raise ModelLoadError(f"{folder / shard} is damaged or cut short: {_first_line(error)}") from error


def _json_in(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `folder` when the block ends well and is removed if not."""
    is_checkpoint = any((folder / name).is_file() for name in (_CONFIG, _ADAPTER_CONFIG))
    if folder.exists() and not is_checkpoint and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something other than a checkpoint: it will not be replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
