"""What rewards see of a trajectory, and what a group with missing verdicts comes to under each aggregation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from posttrain.algorithms import AdvantageKind
from posttrain.rewards import (
    Completion,
    JudgeProcess,
    RewardTable,
    Score,
    TaskRewards,
    ToolCall,
    WeightedReward,
    make_table,
)

from posttrain.records import Example, Group, Status, Trajectory, Turn
from posttrain.rollout.scoring import advantages_of, completion_of, deviations, is_thin, over_batch, score


def picture(side: int) -> Image.Image:
    return Image.new("RGB", (side, side))


EXAMPLE = Example(
    id="r:1",
    task="zoom",
    messages=(
        {"role": "user", "content": "First question"},
        {"role": "assistant", "content": "First answer"},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}],
        },
    ),
    images=(picture(20),),
    reference={"answer": "dog", "num_tool_calls": 2},
)


def said(text: str = "", **more: Any) -> Trajectory:
    masked = {"token_ids": np.arange(6), "mask": np.array([0, 0, 1, 1, 0, 1], bool)}
    return Trajectory(example=EXAMPLE, **masked, logprobs=np.zeros(6, np.float32), prompt_length=2, text=text, **more)


CALL = '<tool_call>{"name": "zoom"}</tool_call>'
TURNS = (
    Turn(
        start=2,
        end=3,
        text=f"<think>small</think>{CALL}{CALL}",
        calls=(
            ToolCall(name="zoom", arguments={"bbox_2d": [0, 0, 9, 9]}, text="a crop"),
            ToolCall(name="fly", text="Tool Execution Error: there is no tool 'fly'", error="there is no tool 'fly'"),
        ),
        observation=(
            {"role": "tool", "content": [{"type": "text", "text": "a crop"}, {"type": "image"}]},
            {"role": "tool", "content": "Tool Execution Error: there is no tool 'fly'"},
        ),
        images=(picture(30),),
    ),
    Turn(
        start=3,
        end=4,
        text=f"Once more.{CALL}",
        calls=(ToolCall(name="zoom", arguments={"bbox_2d": [0, 0, 5, 5]}, text="a crop"),),
        observation=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Here it is."}]},),
        images=(picture(40),),
    ),
    Turn(start=5, end=6, text="<answer>dog</answer>"),
)
EPISODE = said("".join(turn.text for turn in TURNS), turns=TURNS)


def test_of_an_answer_rewards_see_the_text_the_last_question_and_the_row_s_images() -> None:
    seen = completion_of(said("dog", status=Status.TRUNCATED))
    assert seen == Completion(
        text="dog", prompt="What is it?", truncated=True, token_ids=(2, 3, 5), images=EXAMPLE.images
    )
    assert seen.response == "dog"


def test_of_an_episode_rewards_see_what_the_environment_counted_and_answered() -> None:
    seen = completion_of(EPISODE)
    assert (seen.num_tool_calls, len(seen.tool_calls), seen.num_turns) == (2, 3, 3)
    assert [call.error for call in seen.tool_calls] == ["", "there is no tool 'fly'", ""]
    assert [image.size[0] for image in seen.images] == [20, 30, 40]  # pyright: ignore[reportAttributeAccessIssue]
    assert [(turn.role, turn.num_images) for turn in seen.turns] == [
        ("assistant", 0),
        ("tool", 1),
        ("tool", 0),
        ("assistant", 0),
        ("user", 1),
        ("assistant", 0),
    ]
    assert [turn.text for turn in seen.turns][-3:] == [f"Once more.{CALL}", "Here it is.", "<answer>dog</answer>"]
    assert seen.response == "<answer>dog</answer>" and seen.prompt == "What is it?"


def test_what_the_environment_opened_with_takes_the_place_of_the_row_s_messages() -> None:
    opening = ({"role": "system", "content": "You zoom."}, {"role": "user", "content": "Look at this small picture."})
    seen = completion_of(replace(EPISODE, opening=opening, opening_images=(picture(10),)))
    assert seen.prompt == "Look at this small picture."
    assert [image.size[0] for image in seen.images] == [10, 30, 40]  # pyright: ignore[reportAttributeAccessIssue]
    assert completion_of(replace(EPISODE, opening=opening)).images == seen.images[1:], "it may show no image at all"


def test_the_three_rewards_of_an_agent_read_a_trajectory() -> None:
    table = make_table({"zoom": ["exact_match", "tool_count", {"name": "tool_call_format", "weight": 0.1}]})
    (found,) = score([EPISODE], table)
    assert found.parts["exact_match"] == 1.0 and found.parts["tool_call_format"] == 0.0, "a call without arguments"
    assert found.parts["tool_count"] == 0.5, "two of two useful calls, and one that failed"
    judge = JudgeProcess(images=True)
    (question,) = judge.ask_about(completion_of(EPISODE), EXAMPLE.reference)  # pyright: ignore[reportGeneralTypeIssues]
    ((_, turns),) = question.judged
    assert len(question.images) == 3 and turns.count("(image 2)") == turns.count("(image 3)") == 1
    assert "Turn 3, tool:\n| Tool Execution Error: there is no tool 'fly'" in turns


# --- missing verdicts ---


@dataclass(frozen=True)
class Says:
    """Gives the number at a place of the text; unscored for `none`."""

    place: int

    def __call__(self, completion: Completion, reference: Any) -> Score:
        word = completion.text.split()[self.place]
        return Score.unscored("no verdict") if word == "none" else Score(value=float(word))

    def perfect_answer(self, reference: Any) -> None:
        return None


def rules(aggregation: Any, **more: Any) -> TaskRewards:
    first = WeightedReward(Says(0), 1.0, "a", gate=aggregation == "gate_by_correctness")
    return TaskRewards((first, WeightedReward(Says(1), 0.5, "b")), aggregation=aggregation, **more)


AGGREGATIONS = ("weighted_sum", "gate_by_correctness", "normalise_then_sum")
KINDS = tuple(AdvantageKind)


def compared(words: Sequence[str], task: TaskRewards, kind: AdvantageKind) -> list[float]:
    table = RewardTable({"zoom": task})
    return advantages_of(score([said(word) for word in words], table), task, kind)


verdicts = st.tuples(st.sampled_from(("0", "0.5", "1")), st.sampled_from(("-1", "0", "1"))).map(" ".join)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["none 1", "1 none", "none none"])
@settings(max_examples=20)
@given(words=st.lists(verdicts, min_size=1, max_size=6), place=st.integers(0, 6))
def test_a_member_without_a_verdict_gets_nothing_and_changes_nothing_for_the_others(
    aggregation: str, kind: AdvantageKind, missing: str, words: list[str], place: int
) -> None:
    task = rules(aggregation)
    place = min(place, len(words))
    with_it = compared([*words[:place], missing, *words[place:]], task, kind)
    assert with_it.pop(place) == 0.0
    assert with_it == pytest.approx(compared(words, task, kind), abs=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_verdict_is_not_a_zero(aggregation: str, kind: AdvantageKind) -> None:
    """Two right answers and one wrong one: were the missing one a 0, the right ones would look better."""
    words = ["1 1", "1 1", "0 0"]
    as_zero = compared([*words, "0 0"], rules(aggregation), kind)
    left_out = compared([*words, "none 0"], rules(aggregation), kind)
    assert left_out[0] > 0 and as_zero[0] != pytest.approx(left_out[0], abs=1e-3)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_what_an_error_is_worth_takes_part_in_the_comparison_as_a_whole(aggregation: str) -> None:
    task = rules(aggregation, error=-0.75)
    found = compared(["1 1", "0 0", "1 none"], task, AdvantageKind.GRPO)
    assert found[2] < found[1] < found[0], "what the first reward said does not make up for it"


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_group_with_one_verdict_says_nothing_and_is_thin(aggregation: str) -> None:
    task = rules(aggregation)
    table = RewardTable({"zoom": task})
    words = ["1 1", "none 0", "0 none"]
    assert compared(words, task, AdvantageKind.GRPO) == [0.0, 0.0, 0.0]
    group = [said(word) for word in words]
    scored = [replace(t, score=s) for t, s in zip(group, score(group, table), strict=True)]
    assert is_thin(Group(example=EXAMPLE, trajectories=scored), table)
    assert not is_thin(Group(example=EXAMPLE, trajectories=[scored[0], scored[0]]), table)


def test_the_deviation_of_a_batch_counts_no_unscored_member() -> None:
    task = rules("normalise_then_sum")
    table = RewardTable({"zoom": task})

    def group(*words: str) -> Group:
        scores = score([said(word) for word in words], table)
        parts = zip(words, scores, advantages_of(scores, task, AdvantageKind.GRPO), strict=True)
        made = [replace(said(word), score=found, advantage=advantage) for word, found, advantage in parts]
        return Group(example=EXAMPLE, trajectories=made)

    full, holed = group("1 1", "0 0", "1 0"), group("1 1", "none 0", "0 0", "1 0", "1 none")
    assert deviations([full], table, world=1) == pytest.approx(deviations([holed], table, world=1))
    scaled = over_batch(holed, table, deviations([holed], table, world=1))
    kept = [t.advantage for t in scaled.trajectories if t.score is not None and t.score.is_scored]
    assert float(np.std(kept, ddof=1)) == pytest.approx(1.0, abs=1e-3)
    assert [t.advantage for t in scaled.trajectories][1] == 0.0
