"""Reading a run's folder."""

import json
from pathlib import Path

from posttrain.report.cards import chosen_rows
from posttrain.report.run_folder import Progress, read_run


def test_rows_that_a_resumed_run_wrote_again_replace_the_first_ones(run_folder: Path) -> None:
    path = run_folder / "stages" / "rl" / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": v}) + "\n" for s, v in ((1, 10), (2, 20), (3, 30), (2, 21))))
    stage = read_run(run_folder).stages[1]
    assert [(row["step"], row["loss"]) for row in stage.metrics] == [(1, 10), (2, 21)]


def test_trajectories_share_a_step_and_are_replaced_with_it(run_folder: Path) -> None:
    path = run_folder / "stages" / "rl" / "trajectories.jsonl"
    steps = [1, 1, 2, 2, 3, 2, 2]
    path.write_text("".join(json.dumps({"step": s, "completion": str(i)}) + "\n" for i, s in enumerate(steps)))
    stage = read_run(run_folder).stages[1]
    assert [row["completion"] for row in chosen_rows(stage, 99)] == ["0", "1", "5", "6"]


def test_chosen_trajectories_are_whole_steps_from_the_first_to_the_last(run_folder: Path) -> None:
    path = run_folder / "stages" / "rl" / "trajectories.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(10, 101) for _ in range(4)))
    steps = [row["step"] for row in chosen_rows(read_run(run_folder).stages[1], 16)]
    assert len(steps) == 16
    assert sorted(set(steps)) == [10, 40, 70, 100]


def test_a_limit_below_one_step_still_shows_the_last_step(run_folder: Path) -> None:
    path = run_folder / "stages" / "rl" / "trajectories.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2) for _ in range(4)))
    assert [row["step"] for row in chosen_rows(read_run(run_folder).stages[1], 3)] == [2, 2, 2]


def test_stages_come_in_the_recipe_s_order_whether_it_is_a_table_or_a_list(run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    for stages in ({"sft": {}, "rl": {}, "last": {}}, [{"name": "sft"}, {"name": "rl"}, {"name": "last"}]):
        manifest["recipe"]["stages"] = stages
        (run_folder / "manifest.json").write_text(json.dumps(manifest))
        run = read_run(run_folder)
        assert [s.name for s in run.stages] == ["sft", "rl", "last"]
        assert [s.progress for s in run.stages] == [Progress.FINISHED, Progress.FINISHED, Progress.NOT_STARTED]
