"""Laws of mixtures: fixed shares in every batch, exact in the long run, nothing skipped, nothing remembered."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import Mixture
from posttrain.errors import DataError
from posttrain.records import Example


class Numbers:
    """A data source of `length` examples."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Example:
        return Example(id=str(index), task="t", messages=())


def mixture(lengths: list[int], ratios: list[float] | None = None, seed: int = 0) -> Mixture:
    names = [f"s{i}" for i in range(len(lengths))]
    sources = {name: Numbers(n) for name, n in zip(names, lengths, strict=True)}
    return Mixture(sources, None if ratios is None else dict(zip(names, ratios, strict=True)), seed)


ratio = st.integers(1, 30).map(lambda n: n / 10)
several = st.lists(st.tuples(st.integers(1, 40), ratio), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(several, st.integers(1, 33))
def test_every_batch_gives_each_source_its_share_rounded_down_or_up(drawn, size):
    made = mixture([n for n, _ in drawn], [r for _, r in drawn])
    total = sum(made.weights.values())
    so_far: Counter[str] = Counter()
    for step in range(min(made.period(size), 200)):
        counts = Counter(pick.source for pick in made.batch(step, size))
        assert sum(counts.values()) == size
        for name, weight in made.weights.items():
            assert weight * size // total <= counts[name] <= -(-weight * size // total)
            so_far[name] += counts[name]
            assert abs(so_far[name] - weight * size * (step + 1) / total) < 2


@settings(deadline=None, max_examples=60)
@given(several, st.integers(1, 33))
def test_the_shares_of_a_period_are_exact(drawn, size):
    made = mixture([n for n, _ in drawn], [r for _, r in drawn])
    period, total = made.period(size), sum(made.weights.values())
    counts = Counter(pick.source for step in range(period) for pick in made.batch(step, size))
    assert all(counts[name] * total == weight * size * period for name, weight in made.weights.items())


@settings(deadline=None, max_examples=60)
@given(several, st.integers(1, 17), st.integers(0, 3))
def test_a_source_is_gone_through_whole_before_any_row_comes_again(drawn, size, seed):
    made = mixture([n for n, _ in drawn], [r for _, r in drawn], seed)
    rows: dict[str, list[int]] = {name: [] for name in made.sources}
    for step in range(40):
        for pick in made.batch(step, size):
            rows[pick.source].append(pick.row)
    for name, source in made.sources.items():
        n = len(source)
        for start in range(0, len(rows[name]) - n + 1, n):
            assert sorted(rows[name][start : start + n]) == list(range(n))


@settings(deadline=None, max_examples=40)
@given(several, st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(0, 1000))
def test_the_ranks_together_draw_the_batch_and_a_resumed_run_draws_the_same(drawn, per_rank, world, step):
    made = mixture([n for n, _ in drawn], [r for _, r in drawn])
    resumed = mixture([n for n, _ in drawn], [r for _, r in drawn])
    whole = resumed.batch(step, per_rank * world)
    parts = [made.batch(step, per_rank * world, rank, world) for rank in range(world)]
    assert sorted(pick for part in parts for pick in part) == sorted(whole)
    assert {len(part) for part in parts} == {per_rank}


def test_hand_computed_shares_of_two_to_one_in_batches_of_four():
    made = mixture([100, 100], [2, 1])
    counts = [Counter(pick.source for pick in made.batch(step, 4)) for step in range(3)]
    assert [(c["s0"], c["s1"]) for c in counts] == [(3, 1), (2, 2), (3, 1)]


def test_without_ratios_the_lengths_decide_and_one_epoch_draws_every_row_once():
    made = mixture([30, 10, 20])
    steps = made.steps_for(1, 6)
    picks = [pick for step in range(steps) for pick in made.batch(step, 6)]
    assert steps == 10 and len(picks) == 60 == len(set(picks))
    assert made.steps_for(0.25, 16) == 1


def test_epochs_and_seeds_and_sources_have_orders_of_their_own():
    def order(seed: int, epoch: int, name: str) -> list[int]:
        made = mixture([50, 50], [1, 1], seed)
        return [p.row for step in range(epoch * 5, epoch * 5 + 5) for p in made.batch(step, 20) if p.source == name]

    orders = [order(0, 0, "s0"), order(1, 0, "s0"), order(0, 1, "s0"), order(0, 0, "s1"), list(range(50))]
    assert len({tuple(o) for o in orders}) == 5


def test_a_mixture_that_cannot_be_made_says_why():
    with pytest.raises(DataError, match="at least one"):
        Mixture({})
    with pytest.raises(DataError, match="'s1' is empty"):
        mixture([1, 0])
    with pytest.raises(DataError, match="'s0' must be a positive number, got -1"):
        mixture([1, 1], [-1, 1])
    with pytest.raises(DataError, match=r"given for \['x'\], but the data sources are \['a'\]"):
        Mixture({"a": Numbers(1)}, {"x": 1.0})
    with pytest.raises(DataError, match="does not divide among 3 processes"):
        mixture([5]).batch(0, 4, 0, 3)
    with pytest.raises(DataError, match="fewer digits"):
        mixture([5, 5], [0.1234567, 0.7654321]).batch(0, 4)
