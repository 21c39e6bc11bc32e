"""What tools raise: an error that the policy reads, or one that ends the episode."""


class ToolError(ValueError):
    """What a tool raises to tell the policy that a call cannot be done: the policy reads its text and nothing else."""


class ToolBroken(RuntimeError):
    """What a tool raises that cannot work whatever the policy says: it ends the episode, without a score."""
