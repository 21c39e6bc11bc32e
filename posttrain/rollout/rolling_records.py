"""What a task is played in, a trajectory under way, and what became of a batch of rollouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from posttrain.data import TooLong
from posttrain.environments.environment import Environment
from posttrain.records import Trajectory
from posttrain.rollout.environment_turns import EpisodeEnvironment
from posttrain.rollout.episode import Episode, Limits

Finished = Callable[[int, Sequence[Trajectory]], None]
"""Is told the place of an example, and its trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnvironment:
    """In what a task is played."""

    make: Callable[[], Environment]
    """Makes the environment of one episode; called on any thread, by several at once."""
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 120.0
    """Wall-clock seconds of one answer of the environment; those of making it count with the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """What became of a batch, and what took how long, in seconds."""

    groups: Sequence[Sequence[Trajectory]]
    """Of each example in order; empty where its prompt is too long."""
    too_long: Sequence[TooLong]
    sampling_s: float
    environment_s: float
    """Waited for environments while nothing was left to sample."""
    environment_busy_s: float
    """Spent in environments, all of them together."""


@dataclass(slots=True, kw_only=True)
class Running:
    """A trajectory under way."""

    key: int
    place: int
    """Of its example."""
    episode: Episode
    task: TaskEnvironment | None = None
    environment: EpisodeEnvironment | None = None
    """None without a task, and once somebody closes it."""
    trajectory: Trajectory | None = None
    """Once it has ended."""
