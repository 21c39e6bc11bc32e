"""Lets the registry's torchvision wheel import beside a CPU-only torch.

That wheel is built for CUDA. Beside a CPU torch its C++ library does not load, and its Python part then fails with
"operator torchvision::nms does not exist", which takes transformers' Qwen3-VL processor and vLLM down with it.
Declaring the two operators' schemas first is enough for everything that is pure Python (transforms, processors).
The guard does nothing before somebody imports torchvision, and nothing at all beside a CUDA build of torch.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class _TorchvisionGuard(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None  # the ordinary finders go on


def _declare_operators() -> None:
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    installed = find_spec("torchvision")
    if installed is None or installed.origin is None:
        return
    try:
        for library in Path(installed.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
            return  # a torchvision that was built for this torch: it brings its operators
    except OSError:
        pass  # built for CUDA: its operators will be missing, and its Python part insists on them
    for name, schema in _SCHEMAS.items():
        try:
            torch.library.define(name, schema)
        except RuntimeError:  # declared already, by another copy of this guard
            continue


def install() -> None:
    """Puts the guard in front of the import system, once; costs nothing until torchvision is imported."""
    if "torchvision" in sys.modules or any(type(f).__name__ == "_TorchvisionGuard" for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionGuard())
