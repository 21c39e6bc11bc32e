"""What the report colours tokens by is what training knew of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.model import Budget, TokenSequence, pack

from posttrain.objectives import ADVANTAGES, OLD_LOGPROBS, ROLLOUT_LOGPROBS
from posttrain.pipeline import run_recipe
from posttrain.records import Example, Trajectory
from posttrain.token_streams import StepStreams

from .conftest import sapo_stage


def sequence(length: int, trained: int, *, anew: bool) -> TokenSequence:
    ids = np.arange(20, 20 + length, dtype=np.int64)
    mask = np.arange(length) >= length - trained
    rollout = np.where(mask, -1.0, 0.0).astype(np.float32)
    old = np.where(mask, -1.25, 0.0).astype(np.float32) if anew else rollout
    advantages = np.full(length, 0.5, dtype=np.float32)
    streams = {ADVANTAGES: advantages, ROLLOUT_LOGPROBS: rollout, OLD_LOGPROBS: old}
    return TokenSequence(token_ids=ids, mask=mask, streams=streams)


def trajectory(ids: np.ndarray) -> Trajectory:
    zeros = np.zeros(len(ids), dtype=np.float32)
    example = Example(id="1", task="t", messages=())
    return Trajectory(example=example, token_ids=ids, mask=zeros > 1, logprobs=zeros, prompt_length=1)


@pytest.fixture(scope="module")
def facts(tiny_text: Path, accelerator: Any) -> Any:
    from posttrain.config import ModelSection
    from posttrain.loaded import load

    return load(ModelSection(path=str(tiny_text), dtype="float32"), tiny_text, accelerator).facts


def test_numbers_of_a_packed_row_come_back_to_their_own_tokens(facts: Any) -> None:
    given = [sequence(6, 2, anew=True), sequence(9, 5, anew=False), sequence(4, 1, anew=True)]
    (row,) = pack(given, facts, Budget(tokens=1000))
    streams = StepStreams()
    streams.add(given, row, {"gates_T": row.targets_T.float()})  # each token's own id: easily recognised
    found = streams.of([*(trajectory(s.token_ids) for s in given), trajectory(given[0].token_ids.copy())])
    assert found[3] is None, "one that was not trained on"
    for s, known in zip(given, found, strict=False):
        assert known is not None and known.gates_T is not None and known.advantages_T is not None
        assert known.gates_T[s.mask].tolist() == s.token_ids[s.mask].tolist() and not known.gates_T[~s.mask].any()
    assert found[0] is not None and found[0].trainer_logprobs_T is not None
    assert found[1] is not None and found[1].trainer_logprobs_T is None, "the engine's own would make a gap of 0"


def tokens_of(stage: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (stage / "trajectories.jsonl").read_text().splitlines()]
    return [token for row in rows for token in row.get("tokens", ())]


def test_a_run_records_gate_advantage_and_gap_of_its_tokens(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    stage = sapo_stage(steps=2, mini_batches=1, importance_cap=2.0, record_trajectories=8, checkpoint_every=0)
    run_recipe(make_recipe(tmp_path, {"sapo": stage}))
    tokens = [token for token in tokens_of(tmp_path / "stages" / "sapo") if "gate" in token]
    assert tokens
    assert all(token["gate"] == pytest.approx(1.0, abs=1e-3) for token in tokens), "on policy, the gate is open"
    assert all(token["gap"] < 1e-3 for token in tokens) and any(token["advantage"] for token in tokens)


def test_a_teachers_divergence_is_recorded_too(tmp_path: Path, make_recipe: Callable[..., Any], tiny_vl: Path) -> None:
    torch.manual_seed(0)
    stage = sapo_stage(steps=1, distill_coefficient=0.5, record_trajectories=8, checkpoint_every=0)
    run_recipe(make_recipe(tmp_path, {"sapo": stage}, teachers={"same": {"path": str(tiny_vl)}}))
    tokens = [token for token in tokens_of(tmp_path / "stages" / "sapo") if "teacher" in token]
    assert tokens and all(abs(token["teacher"]) < 1e-3 for token in tokens), "the teacher is the student itself"
