"""What the stages of a run share."""

from collections.abc import Mapping
from dataclasses import dataclass

from accelerate import Accelerator
from rich.console import Console

from posttrain.config import Recipe
from posttrain.rewards import RewardTable
from posttrain.rollout.engine_room import EngineRoom
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.teachers.room import TeacherRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """Made once a run, and handed to each of its stages."""

    recipe: Recipe
    rewards: RewardTable | None
    environments: Mapping[str, TaskEnvironment]
    engines: EngineRoom
    teachers: TeacherRoom
    accelerator: Accelerator
    console: Console
