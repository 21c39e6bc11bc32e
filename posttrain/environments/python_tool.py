"""`python`: runs a program of the policy in the sandbox of the `code` reward, and shows what it printed. Linux only."""

import warnings
from dataclasses import dataclass

from posttrain.environments.tool_registry import register_tool
from posttrain.environments.tools import Tool, ToolBroken, ToolError, tool_from_function
from posttrain.errors import ConfigError
from posttrain.rewards.coding import MAX_CODE_CHARS
from posttrain.rewards.sandbox.launch import LAYERS, Limits, SandboxError, layers_in_force, run_program


@register_tool("python")
@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTool:
    """Each call is a process of its own, confined for good and killed with its group at its deadline: no network, no
    other process, no file but the interpreter's library, nothing kept for the next call. It sees no images.

    What confines it is said in docs/rewards.md, of the reward `code`. Raises ConfigError where no program can be run.
    """

    deadline_s: float = 10.0
    """Wall-clock seconds of a program."""
    memory_mb: int = 512
    """Address space of a program, the interpreter included, in MiB."""
    packages: bool = False
    """Lets programs import installed packages; by default the standard library alone."""
    require_isolation: bool = False
    """Refuses to run where the kernel lacks a layer of the sandbox; by default that is a warning."""

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s < 3600 or self.memory_mb < 64:
            raise ConfigError(
                f"python: deadline_s must be in (0, 3600) and memory_mb at least 64, "
                f"got {self.deadline_s} and {self.memory_mb}"
            )

    def as_tool(self) -> Tool:
        try:
            missing = [layer for layer in LAYERS if layer not in layers_in_force()]
        except SandboxError as error:
            raise ConfigError(f"the tool 'python' cannot run here: {error}") from error
        if missing and self.require_isolation:
            raise ConfigError(f"this kernel confines programs without {', '.join(missing)}; require_isolation is on")
        if missing:
            warnings.warn(f"the tool 'python' confines programs without {', '.join(missing)}", stacklevel=2)
        return tool_from_function(self.python)

    def python(self, code: str) -> str:
        """Run a Python program and read what it prints. Nothing is kept between calls, and there is no network.

        Args:
            code: The program; print what you want to see
        """
        if len(code) > MAX_CODE_CHARS:
            raise ToolError(f"the program has {len(code):,} characters; at most {MAX_CODE_CHARS:,} are run")
        limits = Limits(deadline_s=self.deadline_s, memory_bytes=self.memory_mb * 2**20, packages=self.packages)
        try:
            ended = run_program(code, b"", limits)
        except SandboxError as error:
            raise ToolBroken(f"the tool 'python' cannot run: {error}") from error
        printed = ended.output.decode(errors="replace")
        if ended.problem:
            return f"{printed.rstrip()}\nError: {ended.problem}".lstrip("\n")
        return printed or "(the program printed nothing)"
