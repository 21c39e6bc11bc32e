"""Where the seconds of a step go."""

import time
from collections import defaultdict
from collections.abc import Mapping

from posttrain.algorithms import Average


class Clock:
    """Seconds between laps, summed by name."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    def lap(self, name: str, *, but: Mapping[str, float] | None = None) -> None:
        """`but`: parts of this lap that are others'."""
        now = time.perf_counter()
        for other, seconds in (but or {}).items():
            self.note(other, seconds)
        self._seconds[name] += now - self._last - sum((but or {}).values())
        self._last = now

    def note(self, name: str, seconds: float) -> None:
        """Seconds that passed beside the laps; none where it never happens."""
        if seconds:
            self._seconds[name] += seconds

    @property
    def laps(self) -> dict[str, Average]:
        return {name: Average(total=seconds, count=1.0) for name, seconds in self._seconds.items()}
