"""Reading clocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, ClockReward, Completion
from posttrain.rewards.clock_times import DAY_S, circular_distance, stated_time, write_time


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("3:15", "3:15"),
        ("03:15", "3:15"),
        ("3:15:20", "3:15:20"),
        ("15:15", "15:15"),
        ("3:15 PM", "15:15"),
        ("3.15 p.m.", "15:15"),
        ("12:30 a.m.", "0:30"),
        ("12 pm", "12:00"),
        ("15h15", "15:15"),
        ("３：１５", "3:15"),
        ("٣:١٥", "3:15"),
        ("\u200f3:15\u200f", "3:15"),
        ("**3:15**", "3:15"),
        ("24:00", "0:00"),
        ("The clock shows 3:15.", "3:15"),
        ("3:15, that is quarter past three", "3:15"),
        ("3:15 in the afternoon", "15:15"),
        ("3 o'clock", "3:00"),
        ("three o’clock", "3:00"),
        ("Quarter past three", "3:15"),
        ("a quarter to four", "3:45"),
        ("half past twelve", "12:30"),
        ("ten to one", "0:50"),
        ("10 minutes past 4", "4:10"),
        ("twenty-five to nine", "8:35"),
        ("twenty to twenty", "19:40"),
        ("three fifteen", "3:15"),
        ("three oh five", "3:05"),
        ("twelve forty-five", "12:45"),
        ("noon", "12:00"),
        ("ten past midnight", "0:10"),
        ("三点一刻", "3:15"),
        ("3点15分", "3:15"),
        ("三点半", "3:30"),
        ("差五分四点", "3:55"),
        ("4点差5分", "3:55"),
        ("十二点零五分三十秒", "12:05:30"),
        ("下午三点", "15:00"),
    ],
)
def test_times_are_read(text: str, time: str) -> None:
    seconds = stated_time(text)
    assert seconds is not None and write_time(seconds) == time


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "3",
            "three",
            "315",
            "25:70",
            "24:10",
            "12:60",
            "3:15:60",
            "13 pm",
            "99 o'clock",
            "3:5",
            "3:155",
            "1:2:3",
        ),
        *("1:3 pm", "123点", "三四五点", "half three", "70 past 3", "3:15" * 300),
        *("3:15 or 3:20", "3:15-3:20", "3:15, 9:15", "10:10, not 2:50", "not 3:15", "it isn't 3:15", "after 3:15"),
        *("between 3:15 and 3:20", "三点或四点", "不是三点"),
    ],
)
def test_several_hedged_and_impossible_times_are_none(text: str) -> None:
    assert stated_time(text) is None


@given(st.integers(0, DAY_S - 1))
def test_written_times_are_read_back(seconds: int) -> None:
    assert stated_time(write_time(seconds)) == seconds


@given(st.text(alphabet="0123456789: apm.'ofquartehl点分半差一十零三past to\n", max_size=60) | st.text(max_size=60))
def test_reading_times_never_raises(text: str) -> None:
    seconds = stated_time(text)
    assert seconds is None or 0 <= seconds < DAY_S


@given(st.integers(0, DAY_S - 1), st.integers(0, DAY_S - 1), st.sampled_from([DAY_S, DAY_S // 2]))
def test_distance_on_a_dial_is_symmetric_and_at_most_half_way_round(first: int, second: int, period_s: int) -> None:
    distance = circular_distance(first, second, period_s)
    assert distance == circular_distance(second, first, period_s) <= period_s / 2
    assert circular_distance(first, first + period_s, period_s) == 0


@pytest.mark.parametrize(
    ("options", "answer", "text", "value"),
    [
        ({}, "3:15", "The answer is 3:15.", 1),
        ({}, "3:15", "quarter past three", 1),
        ({}, "3:15", "15:15", 1),
        ({}, "3:15 pm", "3:15", 1),
        ({"hours": 24}, "3:15 pm", "3:15", 0),
        ({"hours": 24}, "3:15 pm", "15:15", 1),
        ({}, "3:15", "3:16", 0),
        ({"tolerance_min": 1.0}, "3:15", "3:16", 1),
        ({"tolerance_min": 1.0}, "3:15", "3:16:01", 0),
        ({"tolerance_min": 2.0}, "11:59", "12:01", 1),
        ({"tolerance_min": 2.0, "hours": 24}, "23:59", "0:01", 1),
        ({}, "3:15:20", "3:15", 0),
        ({"seconds": False}, "3:15:20", "3:15", 1),
        ({"zero_min": 10.0}, "3:15", "3:20", 0.5),
        ({"zero_min": 10.0}, "12:01", "11:56", 0.5),
        ({"zero_min": 10.0, "tolerance_min": 2.0}, "3:15", "3:21", 0.5),
        ({"zero_min": 10.0}, "3:15", "3:25", 0),
        ({}, "3:15", "<think>3:15</think>3:20", 0),
        ({}, "3:15", "<answer>3:20</answer><answer>3:15</answer>", 1),
        ({}, "3:15", "3:15 or 3:20", 0),
        ({}, "3:15", "", 0),
    ],
)
def test_clock(options: dict, answer: str, text: str, value: float) -> None:
    reward, reference = ClockReward(**options), {"answer": answer}
    assert reward(Completion(text=text), reference).value == pytest.approx(value)
    assert reward(Completion(text=reward.perfect_answer(reference)), reference).value == 1.0


def test_swapped_hands_are_far_away() -> None:
    score = ClockReward()(Completion(text="3:10"), {"answer": "2:15"})
    assert score.parts == {"minutes_away": 55.0, "exact": 0.0}


@pytest.mark.parametrize("answer", [None, "", 3, "noonish", "25:00", "3:15 or 3:20"])
def test_references_that_state_no_time_are_errors_of_the_data(answer: object) -> None:
    with pytest.raises(BadReferenceError):
        ClockReward().perfect_answer({"answer": answer})


@pytest.mark.parametrize("options", [{"tolerance_min": -1.0}, {"zero_min": float("nan")}])
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match="minutes"):
        ClockReward(**options)
