"""A small run's folder, as the trainer leaves it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

GROUND = {
    "step": 4,
    "example": "train.jsonl:17",
    "task": "ground",
    "messages": [{"role": "user", "text": "<image>Locate the red square.", "images": [0]}],
    "images": ["images/scene.png"],
    "completion": '[{"bbox_2d": [100, 200, 500, 600], "label": "red square"}]',
    "status": "finished",
    "reward": 0.75,
    "parts": {"iou": 0.75, "format": 1.0},
    "reason": "",
    "advantage": -0.5,
    "reference": {"bbox_2d": [110, 200, 520, 620]},
    "boxes": [
        {"bbox_2d": [100, 200, 500, 600], "label": "red square", "kind": "predicted", "image": 0},
        {"bbox_2d": [110, 200, 520, 620], "label": "", "kind": "reference", "image": 0},
    ],
    "tokens": [{"text": "[{", "logprob": -0.01, "gate": 1.0}, {"text": "100", "logprob": -2.5, "gate": 0.25}],
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Two finished stages: sft without trajectories, rl with everything."""
    folder = tmp_path / "small"
    results = [
        {
            "name": "sft",
            "algorithm": "sft",
            "seconds": 30.0,
            "steps": 3,
            "before": {"ground/iou": 0.1, "text/loss": 2.0},
            "after": {"ground/iou": 0.4, "text/loss": 0.5},
        },
        {
            "name": "rl",
            "algorithm": "sapo",
            "seconds": 90.0,
            "steps": 4,
            "before": {"ground/iou": 0.4, "format": 1.0},
            "after": {"ground/iou": 0.71, "format": 0.5},
        },
    ]
    for result in results:
        stage = folder / "stages" / result["name"]
        write_lines(stage / "metrics.jsonl", [{"step": s, "loss": 1 / s} for s in range(1, result["steps"] + 1)])
        (stage / "result.json").write_text(json.dumps(result))
    rl = folder / "stages" / "rl"
    write_lines(
        rl / "metrics.jsonl",
        [
            {
                "step": s,
                "time": 20.0 * s,
                "loss": 0.01 * s,
                "reward": 0.2 * s,
                "gate/positive_mean": 1 - 0.01 * s,
                "x": s,
            }
            for s in range(1, 5)
        ],
    )
    histogram = {"name": "gate/positive", "edges": [0.0, 0.5, 1.0], "counts": [1, 99]}
    write_lines(rl / "histograms.jsonl", [{"step": 1, **histogram}, {"step": 4, **histogram}])
    write_lines(rl / "trajectories.jsonl", [GROUND])
    (rl / "images").mkdir()
    Image.new("RGB", (64, 64), "navy").save(rl / "images" / "scene.png")
    manifest = {
        "name": "small",
        "created": "2025-01-01T00:00:00+00:00",
        "versions": {"posttrain": "0.1.0"},
        "seed": 17,
        "command": "posttrain run small.yaml",
        "recipe": {"stages": {"sft": {"algorithm": "sft"}, "rl": {"algorithm": "sapo"}}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text(json.dumps({"seconds": 125.0, "stages": results, "report": "report.html"}))
    return folder
