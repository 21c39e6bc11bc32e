"""Which examples make up a batch: a fixed share of every source in every batch, from the step number alone.

Nothing is remembered between steps: a run that is resumed at step n draws what the uninterrupted run would have drawn.
"""

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from posttrain.data.sources import DataSource
from posttrain.errors import DataError
from posttrain.records import Example

_MAX_PERIOD = 100_000


class Pick(NamedTuple):
    """One example of a batch."""

    source: str
    row: int


class Mixture:
    """Sources in fixed proportions, each gone through in a fresh order every epoch.

    In every batch a source has its share of the batch rounded down or up. What rounding takes from a source is given
    back in later batches: over `period(size)` batches the proportions are exact.
    """

    def __init__(
        self, sources: Mapping[str, DataSource], ratios: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        """`ratios` are relative weights, one for every source; in proportion to the sources' lengths unless told."""
        if not sources:
            raise DataError("a mixture needs at least one data source")
        if empty := [name for name, source in sources.items() if len(source) == 0]:
            raise DataError(f"data source '{empty[0]}' is empty; remove it or give it rows")
        self.sources = dict(sources)
        self.seed = seed
        self.weights = _weights({name: len(s) for name, s in sources.items()} if ratios is None else ratios, sources)

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[Pick]:
        """What rank `rank` of `world` draws of the `size` examples of step `step` (counted from 0).

        The shares of all ranks together are the batch. Raises DataError where `size` does not divide among the ranks.
        """
        if step < 0 or size < 1 or not 0 <= rank < world:
            raise DataError(f"no batch of {size} for step {step}, rank {rank} of {world}")
        if size % world:
            raise DataError(f"a batch of {size} examples does not divide among {world} processes; change one of them")
        counts, before = self._schedule(size)
        turns, phase = divmod(step, len(counts))
        picks = []
        for s, name in enumerate(self.sources):
            first = int(turns * before[-1, s] + before[phase, s])
            picks += [self._pick(name, first + i) for i in range(counts[phase, s])]
        return picks[rank::world]

    def examples(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[Example]:
        """The examples of `batch`."""
        return [self.sources[pick.source][pick.row] for pick in self.batch(step, size, rank, world)]

    def period(self, size: int) -> int:
        """Batches of `size` after which the proportions are exact."""
        return len(self._schedule(size)[0])

    def steps_for(self, epochs: float, size: int) -> int:
        """Steps that draw `epochs` times as many examples as all sources hold together."""
        return math.ceil(epochs * sum(len(source) for source in self.sources.values()) / size)

    def _schedule(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        return _schedule(tuple(self.weights.values()), size)

    def _pick(self, name: str, drawn_before: int) -> Pick:
        length = len(self.sources[name])
        epoch, place = divmod(drawn_before, length)
        return Pick(name, int(_permutation(self.seed, name, epoch, length)[place]))


def _weights(ratios: Mapping[str, float], sources: Mapping[str, DataSource]) -> dict[str, int]:
    """Whole numbers without a common divisor, in the proportions of the ratios."""
    if set(ratios) != set(sources):
        raise DataError(f"ratios are given for {sorted(ratios)}, but the data sources are {sorted(sources)}")
    for name, ratio in ratios.items():
        if not (math.isfinite(ratio) and ratio > 0):
            raise DataError(f"the ratio of data source '{name}' must be a positive number, got {ratio}; or remove it")
    fractions = {name: Fraction(str(ratios[name])) for name in sources}  # by its digits: 0.1 is a tenth
    scale = math.lcm(*(f.denominator for f in fractions.values()))
    whole = {name: int(f * scale) for name, f in fractions.items()}
    divisor = math.gcd(*whole.values())
    return {name: w // divisor for name, w in whole.items()}


@lru_cache(maxsize=16)
def _schedule(weights: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """How many examples of each source the batches of one period hold, and how many were drawn before each.

    [period, sources] and [period + 1, sources] int64. Largest remainder with error feedback: every batch gives each
    source its share rounded down, and the places left over to the sources that are owed most.
    """
    total = sum(weights)
    period = total // math.gcd(total, *(w * size for w in weights))
    if period > _MAX_PERIOD:
        raise DataError(f"the ratios repeat only after {period} batches of {size}; write them with fewer digits")
    share = np.array(weights, dtype=np.int64) * size  # in units of 1/total examples
    counts = np.empty((period, len(weights)), dtype=np.int64)
    owed = np.zeros(len(weights), dtype=np.int64)
    for step in range(period):
        counts[step] = share // total
        owed += share % total
        left = size - counts[step].sum()
        # A source whose share is whole is never owed anything, and ties go to the source named first.
        chosen = np.lexsort((np.arange(len(weights)), -np.where(share % total > 0, owed, -total * period)))[:left]
        counts[step, chosen] += 1
        owed[chosen] -= total
    before = np.concatenate([np.zeros((1, len(weights)), dtype=np.int64), counts.cumsum(axis=0)])
    return counts, before


@lru_cache(maxsize=32)
def _permutation(seed: int, name: str, epoch: int, length: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}/{name}/{epoch}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).permutation(length)
