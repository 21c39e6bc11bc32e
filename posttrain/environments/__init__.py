"""Environments: what an episode shows, which tools it offers, and what they answer; nothing here knows tokens."""

from posttrain.environments import frames, image_tools, python_tool, search, zoom  # noqa: F401  (they register their tools)
from posttrain.environments.calls import parse_reply
from posttrain.environments.environment import (
    CallRequest,
    Done,
    Environment,
    Observation,
    Opening,
    Reply,
    ScoringEnvironment,
)
from posttrain.environments.registry import (
    EnvironmentFactory,
    EnvironmentSpec,
    available_environments,
    describe_environment,
    make_environment_factory,
    register_environment,
)
from posttrain.environments.tool_answers import safe_text, shown_image
from posttrain.environments.tool_environment import ToolEnvironment
from posttrain.environments.tool_registry import ToolSpec, available_tools, describe_tool, make_tool, register_tool
from posttrain.environments.tools import Tool, ToolBroken, ToolContext, ToolError, tool_from_function
from posttrain.environments.trl_adapter import TRLEnvironment

__all__ = [
    "CallRequest",
    "Done",
    "Environment",
    "EnvironmentFactory",
    "EnvironmentSpec",
    "Observation",
    "Opening",
    "Reply",
    "ScoringEnvironment",
    "TRLEnvironment",
    "Tool",
    "ToolBroken",
    "ToolContext",
    "ToolEnvironment",
    "ToolError",
    "ToolSpec",
    "available_environments",
    "available_tools",
    "describe_environment",
    "describe_tool",
    "make_environment_factory",
    "make_tool",
    "parse_reply",
    "register_environment",
    "register_tool",
    "safe_text",
    "shown_image",
    "tool_from_function",
]
