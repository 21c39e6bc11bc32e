"""Where the time of a stage's steps went, by hand."""

import pytest

from posttrain.report.time_table import time_table

STEP = {
    "time/rollout_s": 4.0,
    "time/environment_s": 1.0,
    "time/reward_s": 0.5,
    "time/train_s": 3.0,
    "time/batch_s": 7.0,
}


def test_parts_are_shares_of_the_steps_and_what_is_left_is_named() -> None:
    table = time_table([{"step": 0} | STEP, {"step": 1} | STEP | {"time/rollout_s": 5.0, "time/batch_s": 8.0}])
    assert table is not None and not table.overlap and not table.has_busy
    assert (table.num_steps, table.seconds) == (2, 21.0)  # 7 + 3 and 8 + 3
    found = {part.title: (part.seconds, part.a_step) for part in table.parts}
    assert found == {
        "Generation": (9.0, 4.5),
        "Environments and tools": (2.0, 1.0),
        "Rewards": (1.0, 0.5),
        "Training": (6.0, 3.0),
        "Everything else": (3.0, 1.5),
    }
    assert sum(part.share for part in table.parts) == pytest.approx(100)
    assert len({part.colour for part in table.parts}) == 5


def test_a_step_that_was_measured_as_a_whole_is_not_added_up() -> None:
    table = time_table([{"step": 0, "time/step_s": 20.0} | STEP])
    assert table is not None and table.seconds == 20.0
    assert table.parts[-1].title == "Everything else" and table.parts[-1].seconds == 11.5


def test_seconds_of_workers_stand_beside_the_part_that_they_belong_to() -> None:
    busy = {"time/environment_busy_s": 12.0, "time/judge_busy_s": 2.0}
    table = time_table([{"step": 0} | STEP | busy])
    assert table is not None and table.has_busy
    found = {part.title: (part.seconds, part.busy) for part in table.parts}
    assert found["Environments and tools"] == (1.0, 12.0)
    assert found["judge"] == (None, 2.0)  # it ran while others did, and nobody waited for it
    assert found["Generation"] == (4.0, None)
    assert not table.overlap


def test_parts_that_ran_at_the_same_time_are_said_to() -> None:
    table = time_table([{"step": 0} | STEP | {"time/environment_s": 5.0}])
    assert table is not None and table.overlap
    assert "Everything else" not in [part.title for part in table.parts]


def test_steps_without_rollouts_have_no_table() -> None:
    assert time_table([{"step": 0, "time/batch_s": 1.0, "time/train_s": 2.0}]) is None
    assert time_table([]) is None
    assert time_table([{"step": 0, "time/rollout_s": None}]) is None
    assert time_table([{"step": 0, "time/rollout_s": 0.0}]) is None
