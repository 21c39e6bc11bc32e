"""Laws of the filter: which answers to one prompt are kept, and why the others are not."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Score

from posttrain.answers import Answer, Fate, Tally, faults, filter_answers


def said(text: str, finished: bool = True) -> Answer:
    return Answer(text=text, finished=finished)


def score(value: float | None) -> Score:
    return Score.unscored("no verdict") if value is None else Score(value=value)


TEXTS = st.sampled_from(["a", "b", " a ", "c d", "", " \n", "<think>\nx\n</think>\n\na", "<|im_end|>", "<image>", "e"])
REWARDS = st.sampled_from([None, 0.0, 0.25, 0.5, 1.0])
ROWS = st.lists(st.tuples(TEXTS, st.booleans(), REWARDS), max_size=8)
LIMITS = st.one_of(st.none(), st.integers(1, 4))
LEAST = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


def of_text(rows: list[tuple[str, bool, float | None]]) -> tuple[list[Answer], list[Score | None]]:
    """Answers, and scores that are equal for equal texts, as a verifier's are."""
    value = {text.strip(): reward for text, _, reward in rows}
    answers = [said(text, finished) for text, finished, _ in rows]
    return answers, [score(value[a.text.strip()]) for a in answers]


@given(ROWS, LEAST, LIMITS, st.sampled_from([True, False, None]))
def test_what_is_kept_is_finished_distinct_good_enough_and_no_worse_than_what_is_surplus(rows, least, limit, thinking):
    answers, scores = of_text(rows)
    fates = filter_answers(answers, scores, thinking=thinking, min_reward=least, keep=limit, seed=3)
    assert len(fates) == len(answers)
    kept = [i for i, fate in enumerate(fates) if fate is Fate.KEPT]
    surplus = [i for i, fate in enumerate(fates) if fate is Fate.SURPLUS]
    assert all(answers[i].finished and answers[i].text.strip() for i in kept)
    assert len({answers[i].text.strip() for i in kept}) == len(kept)
    if limit is not None:
        assert len(kept) <= limit and (len(kept) == limit or not surplus)
    values = [s.value for s in scores]
    if least is not None:
        assert all(values[i] is not None and values[i] >= least for i in kept)
    ranks = [-1.0 if values[i] is None else values[i] for i in range(len(answers))]
    assert not (kept and surplus) or min(ranks[i] for i in kept) >= max(ranks[i] for i in surplus)


@given(ROWS, LEAST, LIMITS, st.randoms(use_true_random=False))
def test_the_order_in_which_answers_came_does_not_decide_which_texts_are_kept(rows, least, limit, shuffle):
    def kept(rows: list[tuple[str, bool, float | None]]) -> Counter[str]:
        fates = filter_answers(*of_text(rows), min_reward=least, keep=limit)
        return Counter(text.strip() for (text, _, _), fate in zip(rows, fates, strict=True) if fate is Fate.KEPT)

    rows = [(text, True, {t.strip(): r for t, _, r in rows}[text.strip()]) for text, _, _ in rows]
    mixed = list(rows)
    shuffle.shuffle(mixed)
    assert kept(rows) == kept(mixed)


@given(ROWS, LIMITS)
def test_a_higher_bar_keeps_a_part_of_what_a_lower_one_keeps(rows, limit):
    answers, scores = of_text(rows)
    kept: list[set[int]] = []
    for least in (0.0, 0.25, 0.5, 1.0):
        fates = filter_answers(answers, scores, min_reward=least, keep=limit)
        kept.append({i for i, fate in enumerate(fates) if fate is Fate.KEPT})
    assert kept[3] <= kept[2] <= kept[1] <= kept[0]


@given(ROWS, LEAST, LIMITS)
def test_filtering_what_was_kept_keeps_all_of_it(rows, least, limit):
    answers, scores = of_text(rows)
    fates = filter_answers(answers, scores, min_reward=least, keep=limit)
    kept = [i for i, fate in enumerate(fates) if fate is Fate.KEPT]
    again = filter_answers([answers[i] for i in kept], [scores[i] for i in kept], min_reward=least, keep=limit)
    assert again == [Fate.KEPT] * len(kept)


def test_each_reason_by_hand():
    cases = [
        (said("3", finished=False), 1.0, Fate.UNFINISHED),
        (said(" \n"), 1.0, Fate.EMPTY),
        (said("3<|im_start|>user"), 1.0, Fate.MARKUP),
        (said("look: <image>"), 1.0, Fate.MARKUP),
        (said("3"), 1.0, Fate.KEPT),
        (said("3\n"), 1.0, Fate.DUPLICATE),
        (said("4"), 0.0, Fate.BELOW),
        (said("5"), None, Fate.UNSCORED),
        (said("three"), 1.0, Fate.SURPLUS),
    ]
    answers = [answer for answer, _, _ in cases]
    scores = [score(value) for _, value, _ in cases]
    seed = next(s for s in range(50) if filter_answers(answers, scores, min_reward=0.5, keep=1, seed=s)[4] is Fate.KEPT)
    fates = filter_answers(answers, scores, min_reward=0.5, keep=1, seed=seed)
    assert fates == [fate for _, _, fate in cases]


WELL = "<think>\nhm\n</think>\n\n3"


@pytest.mark.parametrize(
    ("text", "asked_to", "not_to", "left_free"),
    [
        (WELL, Fate.KEPT, Fate.THOUGHTS, Fate.KEPT),
        ("3", Fate.THOUGHTS, Fate.KEPT, Fate.KEPT),
        ("<think>\nhm\n</think>\n\n", Fate.EMPTY, Fate.THOUGHTS, Fate.EMPTY),
        ("<think>\nhm", Fate.THOUGHTS, Fate.THOUGHTS, Fate.THOUGHTS),
        ("hm\n</think>\n\n3", Fate.THOUGHTS, Fate.THOUGHTS, Fate.THOUGHTS),
        ("</think>3<think>", Fate.THOUGHTS, Fate.THOUGHTS, Fate.THOUGHTS),
        (WELL + WELL, Fate.THOUGHTS, Fate.THOUGHTS, Fate.THOUGHTS),
        ("First: " + WELL, Fate.THOUGHTS, Fate.THOUGHTS, Fate.THOUGHTS),
    ],
)
def test_thoughts_must_be_whole_and_fit_what_was_asked_for(text, asked_to, not_to, left_free):
    wanted = {True: asked_to, False: not_to, None: left_free}
    assert {way: filter_answers([said(text)], thinking=way)[0] for way in wanted} == wanted


def test_without_rewards_every_sound_answer_is_kept_and_with_a_bar_none_without_a_score():
    answers = [said("a"), said("b")]
    assert filter_answers(answers) == [Fate.KEPT] * 2
    assert filter_answers(answers, min_reward=0.0) == [Fate.UNSCORED] * 2
    assert filter_answers(answers, [None, score(0.0)], min_reward=0.0) == [Fate.UNSCORED, Fate.KEPT]


def test_unscored_answers_rank_behind_scored_ones_where_there_is_no_bar():
    answers, scores = [said("a"), said("b"), said("c")], [score(None), score(-2.0), score(None)]
    for seed in range(8):
        assert filter_answers(answers, scores, keep=1, seed=seed)[1] is Fate.KEPT


def test_a_sum_of_weights_that_rounding_leaves_below_the_bar_reaches_it():
    assert sum((0.7, 0.2, 0.1)) < 1
    assert filter_answers([said("a")], [score(sum((0.7, 0.2, 0.1)))], min_reward=1.0) == [Fate.KEPT]


def test_the_seed_decides_among_equals_and_gives_each_a_chance():
    answers, scores = [said(text) for text in "abcd"], [score(1.0)] * 4
    chosen = Counter(filter_answers(answers, scores, keep=1, seed=seed).index(Fate.KEPT) for seed in range(400))
    assert set(chosen) == {0, 1, 2, 3} and min(chosen.values()) > 60, chosen
    assert filter_answers(answers, scores, keep=1, seed=7) == filter_answers(answers, scores, keep=1, seed=7)


def test_only_sound_answers_are_left_to_score():
    answers = [said("a"), said("a"), said(""), said("b", finished=False), said("c")]
    assert faults(answers) == [None, Fate.DUPLICATE, Fate.EMPTY, Fate.UNFINISHED, None]


def test_a_wrong_number_of_scores_is_refused():
    with pytest.raises(ValueError, match="got 1 scores for 2 answers"):
        filter_answers([said("a"), said("b")], [score(1.0)])


def test_every_fate_has_its_count():
    tallies = [Tally(**{fate.value: random.Random(fate.value).randint(1, 9)}) for fate in Fate]
    assert all(tally.count(fate) > 0 for tally, fate in zip(tallies, Fate, strict=True))
    assert sum(tallies, Tally()).reasons.keys() == set(Fate) - {Fate.KEPT}
