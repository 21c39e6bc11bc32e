"""Post-training and RL for Qwen-VL-class vision-language models."""

from pathlib import Path
from typing import TYPE_CHECKING

from posttrain._torchvision_cpu import install as _install_torchvision_guard

if TYPE_CHECKING:
    from posttrain.trainers import (
        DistillationConfig,
        DistillationTrainer,
        GRPOConfig,
        GRPOTrainer,
        GSPOConfig,
        GSPOTrainer,
        OffPolicyDistillationConfig,
        SAPOConfig,
        SAPOTrainer,
        SFTConfig,
        SFTTrainer,
    )

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "rewards").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))  # a source checkout: rewards/, algorithms/ and model/ lie beside posttrain/

_install_torchvision_guard()

__all__ = [
    "DistillationConfig",
    "DistillationTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "GSPOConfig",
    "GSPOTrainer",
    "OffPolicyDistillationConfig",
    "SAPOConfig",
    "SAPOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Trainers and their configs, imported on first use: importing a reward must not import torch."""
    if name in __all__ and name != "__version__":
        import posttrain.trainers as trainers

        return getattr(trainers, name)
    raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
