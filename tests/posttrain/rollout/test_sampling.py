"""Drawing tokens: the laws of the distribution, the ban, the filters, and seeds."""

from itertools import islice

import pytest
import torch

from posttrain.rollout.engine import Sampling
from posttrain.rollout.sampling import draw_tokens, keep_likely, uniforms

LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()[None]


def draw(uniform: float, banned: tuple[int, ...] = (), **settings: float) -> tuple[int, float]:
    banned_V = torch.tensor([i in banned for i in range(4)])
    sampling = Sampling(max_new_tokens=1, **settings)  # type: ignore[arg-type]
    tokens, logprobs = draw_tokens(LOGITS, torch.tensor([uniform], dtype=torch.float64), sampling, banned_V)
    return int(tokens), float(logprobs.exp())


def test_a_uniform_number_is_turned_into_a_token_by_the_cumulative_distribution() -> None:
    assert [draw(u)[0] for u in (0.0, 0.49, 0.51, 0.74, 0.76, 0.88, 1 - 2**-40)] == [0, 0, 1, 1, 2, 3, 3]


def test_frequencies_of_many_draws_are_the_probabilities() -> None:
    numbers = torch.tensor(list(islice(uniforms(seed=0, index=0), 20_000)), dtype=torch.float64)
    tokens, _ = draw_tokens(LOGITS.expand(20_000, -1), numbers, Sampling(max_new_tokens=1))
    frequencies = tokens.bincount(minlength=4) / 20_000
    # Four standard errors of the largest binomial.
    assert torch.allclose(frequencies, LOGITS[0].exp(), atol=4 * (0.25 / 20_000) ** 0.5)


def test_banned_tokens_are_never_drawn_but_keep_their_mass_in_the_log_probability() -> None:
    assert [draw(u, banned=(0, 3))[0] for u in (0.0, 0.6, 0.7, 1 - 2**-40)] == [1, 1, 2, 2]
    assert draw(0.0, banned=(0, 3))[1] == pytest.approx(0.25)


def test_greedy_takes_the_likeliest_allowed_token_with_its_log_probability_at_temperature_one() -> None:
    assert draw(0.99, temperature=0.0) == (0, pytest.approx(0.5))
    assert draw(0.99, temperature=0.0, banned=(0,)) == (1, pytest.approx(0.25))


def test_temperature_divides_the_logits_of_the_draw_and_of_the_log_probability() -> None:
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125]) ** 2
    assert draw(0.0, temperature=0.5) == (0, pytest.approx(float(weights[0] / weights.sum())))


def test_top_k_keeps_the_k_likeliest() -> None:
    assert keep_likely(LOGITS, top_k=2, top_p=1.0).isfinite().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, 1), (0.5, 1), (0.6, 2), (0.75, 2), (0.8, 3)])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: int) -> None:
    assert int(keep_likely(LOGITS, top_k=0, top_p=top_p).isfinite().sum()) == kept


def first(seed: int, index: int = 0) -> list[float]:
    return list(islice(uniforms(seed=seed, index=index), 100))


def test_the_numbers_of_a_sample_depend_on_its_seed_and_index_alone() -> None:
    assert first(7) == first(7)
    assert len({number for seed in (7, 8) for index in (0, 1) for number in first(seed, index)}) == 400
    assert all(0 <= number < 1 for number in first(7))


def test_any_int_is_a_seed() -> None:
    drawn = [first(seed)[0] for seed in (-1, 0, 1, 1 << 63, (1 << 64) - 2)]
    assert len(set(drawn)) == 5
