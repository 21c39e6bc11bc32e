"""Data: sources of examples, the layouts they come in, images, rendering to tokens, mixtures, drawn scenes, prompts."""

from posttrain.data.eliciting import PromptKind, PromptSource, PromptSpec
from posttrain.data.images import CutImage, ImageCutter, open_image, resize_for, to_patches
from posttrain.data.mixture import Mixture, Pick
from posttrain.data.rendering import RenderedPrompt, Renderer, TooLong, TooManyImages
from posttrain.data.scenes import SceneSource, SceneSpec, SceneTask, corpus
from posttrain.data.source_spec import RowFormat, SourceSpec
from posttrain.data.sources import DataSource, RowSource, from_rows, open_source

__all__ = [
    "CutImage",
    "DataSource",
    "ImageCutter",
    "Mixture",
    "Pick",
    "PromptKind",
    "PromptSource",
    "PromptSpec",
    "RenderedPrompt",
    "Renderer",
    "RowFormat",
    "RowSource",
    "SceneSource",
    "SceneSpec",
    "SceneTask",
    "SourceSpec",
    "TooLong",
    "TooManyImages",
    "corpus",
    "from_rows",
    "open_image",
    "open_source",
    "resize_for",
    "to_patches",
]
