"""The errors that posttrain raises: each is also a standard error, and each says in one sentence what to do."""


class PosttrainError(Exception):
    """Anything a user can put right; the command line prints it as one sentence, without a traceback."""


class ConfigError(PosttrainError, ValueError):
    """A recipe, an override or an argument that cannot be used as written."""


class DataError(PosttrainError, ValueError):
    """A data set, a row of it, or an image that cannot be used."""


class CheckpointError(PosttrainError, RuntimeError):
    """A model folder or a training checkpoint that cannot be loaded or written."""


class EngineError(PosttrainError, RuntimeError):
    """A rollout engine that is missing, misconfigured or has died."""


class TeacherError(PosttrainError, RuntimeError):
    """A teacher that cannot be asked, or whose scores cannot be trusted; nothing was trained on them."""


class Interrupted(PosttrainError, KeyboardInterrupt):
    """Ctrl-C during training, after the state was saved; the text says how to resume."""
