"""`select_frames`: a closer look at frames of a video whose frames are the prompt's images."""

from dataclasses import dataclass
from typing import Any

from posttrain.environments.arguments import shown
from posttrain.environments.tool_registry import register_tool
from posttrain.environments.tools import Tool, ToolBroken, ToolContext, ToolError, tool_from_function
from posttrain.errors import ConfigError


@register_tool("select_frames")
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectFrames:
    """Frames at full size, each after its time as Qwen3-VL writes it: `<2.5 seconds>`.

    The frames are the images of the prompt. It makes sense where the environment's `overview` shows those reduced.
    """

    times_key: str = "frame_times"
    """The reference field with the time of each frame in seconds; need not be there."""
    max_frames: int = 8
    """Most frames of one call; the environment's `max_images_per_call` holds as well."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ConfigError(f"select_frames: max_frames must be at least 1, got {self.max_frames}")

    def as_tool(self) -> Tool:
        return tool_from_function(self.select_frames)

    def select_frames(self, frame_idxs: list[int], context: ToolContext) -> list[Any]:
        """Select frames of the video by their indices, to see them at full size.

        Args:
            frame_idxs: The indices of the frames (starting from 0)
        """
        num_frames = context.num_prompt_images
        if not 1 <= len(frame_idxs) <= self.max_frames:
            raise ToolError(f"frame_idxs must name 1 to {self.max_frames} frames, got {len(frame_idxs)}")
        for frame in frame_idxs:
            if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < num_frames:
                raise ToolError(f"frame_idxs must be whole numbers from 0 to {num_frames - 1}, got {shown(frame)}")
        times = context.example.reference.get(self.times_key)
        if times is not None and len(times) != num_frames:
            raise ToolBroken(f"{context.example.id}: {num_frames} frames, but {len(times)} {self.times_key}")
        answer: list[Any] = []
        for frame in frame_idxs:
            answer += [f"<{times[frame]:.1f} seconds>"] if times is not None else []
            answer.append(context.images[frame])
        return answer
