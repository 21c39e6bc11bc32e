"""What a recipe may say: every key, its type, its default, and the sentence that `posttrain` shows for it."""

from posttrain.config.recipe import Recipe, is_taught, routes_of
from posttrain.config.sections import (
    DataSection,
    EngineSection,
    EvaluationSection,
    LoraSection,
    ModelSection,
    RewardItem,
    SceneSection,
    TaskSection,
    TeacherSection,
)
from posttrain.config.stages import (
    AnswersStage,
    DistillStage,
    GRPOStage,
    GSPOStage,
    OffPolicyDistillStage,
    OnPolicyDistillStage,
    PolicyStage,
    SAPOStage,
    SFTStage,
    Stage,
    TrainingStage,
)

__all__ = [
    "AnswersStage",
    "DataSection",
    "DistillStage",
    "EngineSection",
    "EvaluationSection",
    "GRPOStage",
    "GSPOStage",
    "LoraSection",
    "ModelSection",
    "OffPolicyDistillStage",
    "OnPolicyDistillStage",
    "PolicyStage",
    "Recipe",
    "RewardItem",
    "SAPOStage",
    "SFTStage",
    "SceneSection",
    "Stage",
    "TaskSection",
    "TeacherSection",
    "TrainingStage",
    "is_taught",
    "routes_of",
]
