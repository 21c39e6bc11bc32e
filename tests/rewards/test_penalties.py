"""The penalties on repetition and on length."""

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Completion, LengthPenalty, RepetitionPenalty
from posttrain.rewards.repetition import repeated_frac
from trl.rewards.other_rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

tokens = st.lists(st.integers(0, 3), max_size=60).map(tuple)


@given(tokens, st.integers(1, 5))
def test_the_repeated_share_is_one_minus_distinct_over_all_ngrams(ids: tuple[int, ...], n: int) -> None:
    ngrams = [ids[i : i + n] for i in range(len(ids) - n + 1)]
    expected = 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
    assert repeated_frac(ids, n) == pytest.approx(expected)


@given(tokens, st.integers(1, 4))
def test_repetition_without_allowance_is_trls(ids: tuple[int, ...], n: int) -> None:
    ours = RepetitionPenalty(n=n, allowed_frac=0)(Completion(text="x", token_ids=ids), {}).value
    (theirs,) = get_repetition_penalty_reward(n, -1.0)([list(ids)])
    assert ours == pytest.approx(theirs)


def test_the_allowance_costs_nothing_and_the_rest_is_stretched_to_one() -> None:
    ids = (1, 2, 3, 4, 5, 6, 7, 8, 9, 1)  # 1 of 10 unigrams is a repetition
    for allowed, value in [(0.0, -0.1), (0.1, 0.0), (0.05, -0.05 / 0.95)]:
        reward = RepetitionPenalty(n=1, allowed_frac=allowed)
        assert reward(Completion(text="x", token_ids=ids), {}).value == pytest.approx(value)


ENGLISH = (
    "The two angles add up to ninety degrees, so the other one is forty. Then we use the sine rule on the triangle. "
)
CHINESE = "这两个角加起来是九十度，所以另一个角是四十度。然后我们对这个三角形使用正弦定理，就可以得到边长了。"
CODE = "for row in table:\n        total += row.price * row.count\n        if total > limit:\n            break\n"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE])
def test_a_loop_is_found_in_any_kind_of_text_and_once_is_no_loop(text: str) -> None:
    assert RepetitionPenalty()(Completion(text=text), {}).value == 0.0
    value = RepetitionPenalty()(Completion(text=text * 20), {}).value
    assert value is not None and value < -0.8


@pytest.mark.parametrize(
    "text", ["哈" * 300, "ha" * 300, "no " * 100, "![]" * 100, "\n" * 200, " " * 2000, "= = " * 100, "🙂" * 100]
)
def test_loops_without_words_are_found(text: str) -> None:
    value = RepetitionPenalty()(Completion(text=text), {}).value
    assert value is not None and value < -0.5


def test_boxes_of_one_answer_do_not_count_as_repetition() -> None:
    draw = random.Random(0)
    boxes = [{"bbox_2d": [draw.randrange(1000) for _ in range(4)], "label": "person"} for _ in range(40)]
    assert RepetitionPenalty()(Completion(text=str(boxes)), {}).value == 0.0


def test_tokens_are_taken_where_there_are_any() -> None:
    loop = Completion(text=ENGLISH * 20, token_ids=tuple(range(500)))
    assert RepetitionPenalty()(loop, {}).value == 0.0
    by_text = RepetitionPenalty(unit="text")(loop, {}).value
    assert by_text is not None and by_text < -0.8


def test_real_solutions_are_not_punished(shared_data: Path) -> None:
    rows = (shared_data / "gsm8k" / "train_500.jsonl").read_text(encoding="utf-8").splitlines()
    values = [RepetitionPenalty()(Completion(text=json.loads(row)["answer"]), {}).value for row in rows]
    assert len(values) == 500 and set(values) == {0.0}


@pytest.mark.parametrize("piece", ["[", "ab ", "中文", "\n", " ", "a", "\u200f", "\ud800", "x" * 999 + " "])
def test_a_megabyte_takes_seconds_at_most(piece: str) -> None:
    started = time.process_time()
    score = RepetitionPenalty()(Completion(text=piece * (10**6 // len(piece))), {})
    assert time.process_time() - started < 30 and score.is_scored  # a quadratic scan takes hours


def test_penalties_check_their_options_and_have_no_perfect_answer() -> None:
    for options in ({"n": 0}, {"allowed_frac": 1.0}, {"allowed_frac": -0.1}):
        with pytest.raises(ValueError, match="must be"):
            RepetitionPenalty(**options)
    for options in ({"buffer_tokens": 0}, {"max_tokens": 10, "buffer_tokens": 11}):
        with pytest.raises(ValueError, match="buffer_tokens"):
            LengthPenalty(**options)
    assert RepetitionPenalty().perfect_answer({}) is None and LengthPenalty().perfect_answer({}) is None


@pytest.mark.parametrize(
    ("num_tokens", "value"), [(1, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (1000, -1)]
)
def test_the_penalty_on_length_is_dapos_and_trls(num_tokens: int, value: float) -> None:
    score = LengthPenalty(max_tokens=100, buffer_tokens=20)(Completion(text="x", token_ids=(7,) * num_tokens), {})
    assert score.value == pytest.approx(value) and score.parts == {"num_tokens": num_tokens}
    assert get_soft_overlong_punishment(100, 20)([[7] * num_tokens]) == pytest.approx([value])


def test_a_text_without_tokens_has_no_known_length() -> None:
    assert not LengthPenalty()(Completion(text="some text"), {}).is_scored
    assert LengthPenalty()(Completion(text=""), {}).value == 0.0
