"""Data sets of answers: what is written, that interruptions leave no trace, and what bad input says."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from posttrain.rewards import JudgeServer, RewardTable, Score, TaskRewards, WeightedReward, make_reward
from rich.console import Console

from posttrain.answers import Answer, CollectSettings, Fate
from posttrain.answers.asking import Asking
from posttrain.answers.provenance import HOW_A_JUDGE_IS_ASKED, describe_rewards
from posttrain.data import Mixture, SceneSource, SceneSpec, SourceSpec, from_rows, open_source
from posttrain.errors import CheckpointError, ConfigError, DataError, EngineError, Interrupted, TeacherError
from posttrain.records import Example
from tests.waiting import PROCESS_S


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a data set by its name."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


# --- what is written ---


def test_rows_are_read_back_with_no_options_as_what_was_asked_and_answered(run, tools, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    source = from_rows([
        {"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "é \u2028 ? <b>"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "the answer that the row came with"},
        ], "task": "chat", "answer": "3", "tools": '[{"type": "function", "function": {"name": "add"}}]', "id": "mine"},
    ])  # fmt: skip
    made = run(tmp_path, sources={"chat": source})
    (before,), back = [source[0]], open_source(SourceSpec(path=str(made.path)))
    (after,) = [back[i] for i in range(len(back))]
    assert after.messages[:-1] == before.messages[:-1]
    assert after.messages[-1]["role"] == "assistant" and after.messages[-1]["content"].startswith("answer ")
    assert after.task == "chat" and {k: after.reference[k] for k in before.reference} == before.reference
    assert after.reference["made_by"] == {
        "teacher": "scripted", "identity": "weights-1", "thinking": "template",
        "prompt": before.id, "reward": None, "parts": {},
    }  # fmt: skip
    assert "chat_template_kwargs" not in after.reference


def test_the_answer_that_a_row_came_with_is_not_shown_to_the_teacher(run, tools, tmp_path):
    teacher = tools.ScriptedTeacher()
    run(tmp_path, teacher, sources={"a": from_rows([{"prompt": "p", "completion": "secret"}])})
    assert [m["content"] for m in teacher.asked[0].messages] == ["p"]


def noise(seed: int, size: tuple[int, int] = (70, 33)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def test_images_are_written_once_each_as_they_are_and_rows_name_them(run, tmp_path):
    shown = [[noise(1), noise(2)], [noise(2)], [noise(1)], []]
    marks = ["<image> or <image>?", "<image>?", "What is this? <image>", "no image"]
    source = from_rows([{"prompt": mark, "images": images} for mark, images in zip(marks, shown, strict=True)])
    made = run(tmp_path, sources={"a": source}, answers_per_prompt=2)
    assert len(list((tmp_path / "images").iterdir())) == 2 == manifest_of(tmp_path)["images"]
    back = open_source(SourceSpec(path=str(made.path)))
    assert len(back) == 8
    for i in range(8):
        before, after = source[i // 2], back[i]
        assert after.messages[:-1] == before.messages
        assert [np.asarray(x).tolist() for x in after.images] == [np.asarray(x).tolist() for x in before.images]
    assert all(name.startswith("images/") for row in rows_of(tmp_path) for name in row.get("images", []))


def test_images_of_prompts_that_gave_nothing_are_not_written(run, tools, tmp_path):
    source = from_rows([{"prompt": f"<image>{i}", "images": [noise(i)]} for i in range(4)])
    teacher = tools.ScriptedTeacher(
        lambda e, i, s: Answer(text="x", finished=e.messages[0]["content"][1]["text"] < "2")
    )
    run(tmp_path, teacher, sources={"a": source})
    assert len(rows_of(tmp_path)) == 2 == len(list((tmp_path / "images").iterdir()))


def say(example: Example, place: int, seed: int) -> Answer:
    """Five answers to each prompt: good, bad, unscored, cut off, the good one again."""
    texts = ["well 1.0", "badly 0.0", "who knows none", "well 1.0 and then", "well 1.0"]
    return Answer(text=texts[place], finished=place != 3)


def test_the_manifest_counts_every_prompt_and_answer_by_reason_task_and_thinking(run, tools, tmp_path):
    sources = {"sums": tools.sums(4), "other": tools.sums(2, task="other")}
    rewards = tools.make_table({"sums": tools.by_answer, "other": {"name": "exact_match", "weight": 0.5}})
    run(tmp_path, tools.ScriptedTeacher(say), sources=sources, rewards=rewards, answers_per_prompt=5, min_reward=0.5)
    manifest = manifest_of(tmp_path)
    assert manifest["by_task"]["sums"] == {
        "prompts": 4, "unreadable": 0, "without_answer": 0, "answers": 20, "kept": 4, "unfinished": 4,
        "cut_short": 0, "broken": 0, "empty": 0, "markup": 0, "thoughts": 0, "duplicate": 4, "unscored": 4,
        "below_min_reward": 4, "surplus": 0, "scored": 8, "judged": 8, "pass_rate": 0.5,
        "mean_reward": 0.5, "mean_reward_kept": 1.0, "mean_chars_kept": 8.0,
    }  # fmt: skip
    other = manifest["by_task"]["other"]
    assert (other["kept"], other["below_min_reward"], other["without_answer"], other["pass_rate"]) == (0, 6, 2, 0.0)
    for name, value in manifest["counts"].items():
        if isinstance(value, int):
            assert value == sum(group[name] for group in manifest["by_task"].values())
            assert value == sum(group[name] for group in manifest["by_thinking"].values())
    counts = manifest["counts"]
    assert counts["answers"] == sum(counts[fate.value] for fate in Fate) == 30
    assert manifest["teachers"] == {"default": {"name": "scripted", "identity": "weights-1"}}
    assert manifest["settings"]["min_reward"] == 0.5 and manifest["settings"]["seed"] == 5
    assert manifest["rewards"]["other"] == {
        "rewards": [{"name": "exact_match", "kind": "posttrain.rewards.exact.ExactMatch", "weight": 0.5, "gate": None,
                     "options": {"answer_key": "answer", "ignore_case": False}}],
        "aggregation": "weighted_sum", "answer": None, "clip": None, "error": "unscored",
    }  # fmt: skip
    assert manifest["rewards"]["sums"]["rewards"][0]["options"]["function"].endswith(".by_answer")
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "answers.jsonl").read_bytes()).hexdigest()
    assert not list(tmp_path.glob("journal*"))
    printed = run.printed.getvalue()
    assert "below min" in printed and "wrong thoughts" not in printed and "pass rate" in printed


def test_the_best_of_a_prompt_are_kept_with_their_rewards(run, tools, tmp_path):
    def say(example: Example, place: int, seed: int) -> Answer:
        return Answer(text=f"{place} {place / 4}", finished=True)

    rewards = tools.make_table({"default": tools.by_answer})
    teacher = tools.ScriptedTeacher(say)
    run(tmp_path, teacher, rewards=rewards, answers_per_prompt=4, keep_per_prompt=2, min_reward=0.25)
    rows = rows_of(tmp_path)
    assert [row["messages"][-1]["content"] for row in rows] == ["2 0.5", "3 0.75"] * 10
    assert [row["made_by"]["reward"] for row in rows] == [0.5, 0.75] * 10
    assert rows[0]["made_by"]["parts"] == {"by_answer": 0.5}
    assert manifest_of(tmp_path)["counts"]["surplus"] == 10


def test_rewards_that_count_tokens_get_those_of_the_student(run, tools, tmp_path):
    rewards = tools.make_table({"default": {"name": "length", "max_tokens": 30, "buffer_tokens": 10}})
    with pytest.raises(DataError, match="10 got no score"):
        run(tmp_path / "1", rewards=rewards, min_reward=-1.0)
    made = run(tmp_path / "2", rewards=rewards, min_reward=-1.0, encode=lambda text: list(text.encode()) + [0] * 10)
    assert made.counts["kept"] == 10 and made.counts["mean_reward"] == pytest.approx(-0.5), "25 tokens"


def test_mixed_thinking_asks_each_prompt_one_way_and_says_so_in_its_row(run, tools, tmp_path):
    class Teacher(tools.ScriptedTeacher):
        def answer(self, examples, *, n, sampling, thinking):
            assert all(e.reference["chat_template_kwargs"] == {"other": 1} for e in examples), "thinking alone says it"
            said = super().answer(examples, n=n, sampling=sampling, thinking=thinking)
            head = "<think>\nhm\n</think>\n\n" if thinking else ""
            return [[Answer(text=head + a.text, finished=True) for a in answers] for answers in said]

    settings = {"thinking": "mixed", "thinking_frac": 0.3, "batch_size": 50}
    told = {"other": 1, "enable_thinking": True}
    source = from_rows([{"prompt": f"{i}?", "chat_template_kwargs": told} for i in range(1000)])
    run(tmp_path, Teacher(), sources={"a": source}, **settings)
    rows = rows_of(tmp_path)
    thinks = ["<think>" in row["messages"][-1]["content"] for row in rows]
    assert thinks == [row["chat_template_kwargs"]["enable_thinking"] for row in rows]
    assert all(row["chat_template_kwargs"]["other"] == 1 for row in rows)
    assert thinks == [row["made_by"]["thinking"] == "on" for row in rows]
    assert abs(np.mean(thinks) - 0.3) < 0.05, "five standard errors"
    by_thinking = manifest_of(tmp_path)["by_thinking"]
    assert (by_thinking["on"]["kept"], by_thinking["off"]["kept"]) == (sum(thinks), 1000 - sum(thinks))
    assert "wrong thoughts" not in run.printed.getvalue()


def test_thinking_is_chosen_without_regard_to_the_order_of_sources():
    settings = CollectSettings(max_new_tokens=1, thinking="mixed")
    ways = [settings.thinks(place) for place in range(4000)]
    for step in (2, 3, 4):
        for first in range(step):
            assert abs(np.mean(ways[first::step]) - 0.5) < 0.07
    other = CollectSettings(max_new_tokens=1, thinking="mixed", seed=1)
    assert ways != [other.thinks(place) for place in range(4000)]


def test_a_number_of_prompts_is_drawn_in_the_shares_of_the_sources(run, tools, tmp_path):
    sources = {"few": tools.sums(5, task="few"), "many": tools.sums(50, task="many")}
    run(tmp_path, mixture=Mixture(sources, {"few": 1.0, "many": 3.0}), num_prompts=12, batch_size=5)
    prompts = [row["id"] for row in rows_of(tmp_path)]
    tasks = [row["task"] for row in rows_of(tmp_path)]
    assert (tasks.count("few"), tasks.count("many")) == (3, 9) and len(prompts) == 12
    assert len({(row["task"], row["id"]) for row in rows_of(tmp_path)}) == 12, "none twice"


def test_each_task_is_answered_by_its_own_teacher(run, tools, tmp_path):
    teachers = {"a": tools.ScriptedTeacher(name="first"), "default": tools.ScriptedTeacher(name="second")}
    run(tmp_path, teachers, sources={"a": tools.sums(3, task="a"), "b": tools.sums(3, task="b")}, batch_size=4)
    assert [(row["task"], row["made_by"]["teacher"]) for row in rows_of(tmp_path)] == (
        [("a", "first")] * 3 + [("b", "second")] * 3
    )
    with pytest.raises(DataError, match="of task 'b', which no teacher answers; teachers are given for: a"):
        run(tmp_path / "2", {"a": teachers["a"]}, sources={"b": tools.sums(1, task="b")})


def test_prompts_that_are_too_long_for_the_teacher_are_counted(run, tools, tmp_path):
    class Teacher(tools.ScriptedTeacher):
        def answer(self, examples, *, n, sampling, thinking):
            said = super().answer(examples, n=n, sampling=sampling, thinking=thinking)
            return [
                [] if example.id.endswith("[4]") else answers for example, answers in zip(examples, said, strict=True)
            ]

    made = run(tmp_path, Teacher(), answers_per_prompt=2)
    assert (made.counts["unreadable"], made.counts["without_answer"], made.counts["answers"]) == (1, 1, 18)
    assert "too long" in run.printed.getvalue()


# --- interruptions ---


def scenes_and_sums(tools: Any) -> dict[str, Any]:
    return {"scenes": SceneSource(SceneSpec(task="count", size=6)), "sums": tools.sums(5)}


@pytest.fixture
def whole(run: Any, tools: Any, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """The files of an uninterrupted run."""

    def make(**keys: Any) -> dict[str, bytes]:
        run(tmp_path / "whole", sources=scenes_and_sums(tools), rewards=tools.make_table({"arith": "math"}), **keys)
        return content_of(tmp_path / "whole")

    return make


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("torn", [b"", b'{"batch": 9, "ro', b'{"batch": 9}'])
def test_a_killed_run_goes_on_and_gives_the_very_same_data_set(run, tools, whole, tmp_path, call, torn):
    keys = {"answers_per_prompt": 2, "keep_per_prompt": 1}
    wanted, folder = whole(**keys), tmp_path / "killed"
    keys |= {"sources": scenes_and_sums(tools), "rewards": tools.make_table({"arith": "math"})}
    with pytest.raises(tools.MachineDied):
        run(folder, tools.ScriptedTeacher(fails={call: tools.MachineDied()}), **keys)
    with (folder / "journal-0.jsonl").open("ab") as file:
        file.write(torn)
    assert not (folder / "answers.jsonl").exists()
    teacher = tools.ScriptedTeacher()
    run(folder, teacher, **keys)
    assert content_of(folder) == wanted
    assert len(teacher.calls) == 4 - call, "finished batches are not asked again"
    assert len(rows_of(folder)) == 11


def test_a_run_that_is_killed_by_the_system_goes_on(run, tools, tmp_path):
    script = f"""
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("shared", {str(Path(__file__).with_name("conftest.py"))!r})
shared = importlib.util.module_from_spec(spec)
sys.modules["shared"] = shared
spec.loader.exec_module(shared)

def say(example, place, seed):
    if example.id == "rows[7]":
        os.kill(os.getpid(), signal.SIGKILL)
    return shared.digits(example, place, seed)

shared.Collecting()(Path({str(tmp_path / "killed")!r}), shared.ScriptedTeacher(say))
"""
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    teacher = tools.ScriptedTeacher()
    run(tmp_path / "killed", teacher)
    run(tmp_path / "whole")
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")
    assert len(teacher.calls) == 2


def test_a_batch_that_was_killed_while_it_was_written_leaves_no_image(run, tools, tmp_path):
    keys = {"sources": scenes_and_sums(tools)}
    with pytest.raises(tools.MachineDied):
        run(tmp_path, tools.ScriptedTeacher(fails={1: tools.MachineDied()}), **keys)
    (tmp_path / "images" / "0123.png").write_bytes(b"of a batch that was never finished")
    run(tmp_path, **keys)
    used = {name for row in rows_of(tmp_path) for name in row.get("images", [])}
    assert {f"images/{f.name}" for f in (tmp_path / "images").iterdir()} == used


def test_a_finished_data_set_is_not_made_again(run, tools, tmp_path):
    first = run(tmp_path)
    (tmp_path / "journal-0.jsonl").write_text("left by a process that died while it cleaned up")
    teacher = tools.ScriptedTeacher()
    assert run(tmp_path, teacher) == first and not teacher.calls


def test_several_processes_make_what_one_makes_also_where_another_number_began(run, tools, whole, tmp_path):
    wanted, folder = whole(), tmp_path / "shared"
    keys = {"sources": scenes_and_sums(tools), "rewards": tools.make_table({"arith": "math"})}
    with pytest.raises(tools.MachineDied):
        run(folder, tools.ScriptedTeacher(fails={0: tools.MachineDied()}), rank=1, world=3, **keys)
    with pytest.raises(
        CheckpointError, match="3 of 4 batches of answers are not in .*give all processes the same folder"
    ):
        run(folder, rank=2, world=3, **keys)
    meeting = threading.Barrier(2, timeout=PROCESS_S)
    teachers = [tools.ScriptedTeacher(), tools.ScriptedTeacher()]
    made: list[Any] = [None, None]

    def work(rank: int) -> None:
        made[rank] = run(
            folder, teachers[rank], rank=rank, world=2, wait=meeting.wait, console=Console(quiet=True), **keys
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1] and made[0] is not None
    assert content_of(folder) == wanted
    assert [len(t.calls) for t in teachers] == [1, 2], "batch 2 was finished by process 2 of 3"


@pytest.mark.parametrize(("kind", "text"), [(TeacherError, "teacher 'scripted' is down"), (EngineError, "vLLM failed")])
def test_a_teacher_that_dies_costs_its_batch_only(run, tools, tmp_path, kind, text):
    with pytest.raises(kind, match=f"{text}; what 6 of 10 prompts gave is kept: run the same command to go on"):
        run(tmp_path, tools.ScriptedTeacher(fails={2: kind(text)}))
    teacher = tools.ScriptedTeacher()
    run(tmp_path, teacher)
    assert len(teacher.asked) == 4 and len(rows_of(tmp_path)) == 10


def test_control_c_says_what_is_kept(run, tools, tmp_path):
    with pytest.raises(Interrupted, match="stopped; what 3 of 10 prompts gave is kept: run the same command"):
        run(tmp_path, tools.ScriptedTeacher(fails={1: KeyboardInterrupt()}))


def with_little_space(limit: int, work: Callable[[], Any]) -> None:
    """Files end at `limit` bytes meanwhile, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_where_it_stopped(run, tools, tmp_path):
    folder, teacher = tmp_path / "full", tools.ScriptedTeacher()

    def work() -> None:
        with pytest.raises(CheckpointError, match=r"journal-0.jsonl cannot be written \(File too large\).*free space"):
            run(folder, teacher)

    with_little_space(4000, work)
    assert 1 < len(teacher.calls) < 4, "full in the middle"
    again = tools.ScriptedTeacher()
    run(folder, again)
    run(tmp_path / "whole")
    assert content_of(folder) == content_of(tmp_path / "whole")
    assert len(again.calls) == 4 - len(teacher.calls) + 1


def test_a_disk_that_is_full_at_the_end_leaves_no_half_data_set(run, tools, tmp_path):
    folder = tmp_path / "full"
    with pytest.raises(tools.MachineDied):
        run(folder, tools.ScriptedTeacher(fails={3: tools.MachineDied()}))
    journal = folder / "journal-0.jsonl"
    journal.rename(folder / "journal-1.jsonl")  # of another process, so that little is left to write in this one's own
    settings = {"rank": 0, "world": 1}

    def work() -> None:
        with pytest.raises(CheckpointError, match="answers.jsonl cannot be written"):
            run(folder, **settings)

    with_little_space(2800, work)
    assert sorted(f.name for f in folder.iterdir()) == ["journal-0.jsonl", "journal-1.jsonl"]
    teacher = tools.ScriptedTeacher()
    run(folder, teacher, **settings)
    run(tmp_path / "whole")
    assert content_of(folder) == content_of(tmp_path / "whole") and not teacher.calls


# --- bad input ---


def test_other_settings_than_those_it_was_begun_with_are_named(run, tools, tmp_path):
    with pytest.raises(tools.MachineDied):
        run(tmp_path, tools.ScriptedTeacher(fails={1: tools.MachineDied()}), temperature=0.7)
    before = content_of(tmp_path)
    with pytest.raises(ConfigError, match=r"other settings \(settings.temperature was 0.7, is 0.9\); put them back"):
        run(tmp_path, temperature=0.9)
    with pytest.raises(ConfigError, match=r"teachers.default.identity was 'weights-1', is 'weights-2'"):
        run(tmp_path, tools.ScriptedTeacher(identity="weights-2"))
    with pytest.raises(ConfigError, match=r"\(rewards was None, is"):
        run(tmp_path, rewards=tools.make_table({"default": tools.by_answer}))
    assert content_of(tmp_path) == before
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"settings.seed was 5, is 6"):
        run(tmp_path, seed=6)


@pytest.mark.parametrize(
    ("said", "finished", "settings", "sentence"),
    [
        ("x", False, {}, "10 were cut off by the token limit; raise max_new_tokens, now 8"),
        (" ", True, {}, "10 were empty; look at the teacher's chat template"),
        ("<|im_end|>", True, {}, "10 held special tokens; take a teacher"),
        ("x", True, {"thinking": "on"}, "10 did not think as they were asked to; set thinking, now 'on'"),
        ("x 0.0", True, {"min_reward": 1.0}, "10 earned less than min_reward; lower min_reward, now 1.0"),
        ("x none", True, {"min_reward": 1.0}, "10 got no score; run `posttrain check`"),
        ("x 0.0", True, {"min_reward": 1.0, "answers_per_prompt": 3},
         "20 were said before, 10 earned less than min_reward; lower"),
    ],
)  # fmt: skip
def test_a_run_that_keeps_nothing_says_why_and_what_to_change(run, tools, tmp_path, said, finished, settings, sentence):
    teacher = tools.ScriptedTeacher(lambda *_: Answer(text=said, finished=finished))
    rewards = tools.make_table({"default": tools.by_answer}) if "min_reward" in settings else None
    with pytest.raises(DataError, match=f"answers: none of .0 answers to 10 prompts was kept: {sentence}"):
        run(tmp_path, teacher, rewards=rewards, **settings)
    assert content_of(tmp_path) == {}, "nothing stands in the way of other settings"
    assert "prompts lost" in run.printed.getvalue()


def test_a_run_whose_prompts_are_all_too_long_says_so(run, tools, tmp_path):
    class Teacher(tools.ScriptedTeacher):
        def answer(self, examples, **_):
            return [[] for _ in examples]

    with pytest.raises(DataError, match="none of the 10 prompts was asked, all being too long"):
        run(tmp_path, Teacher())


def test_rows_that_json_cannot_say_are_named_before_the_teacher_is_asked(run, tools, tmp_path):
    teacher = tools.ScriptedTeacher()
    bad = {"field": {1, 2}, "number": float("nan")}
    for key, value in bad.items():
        with pytest.raises(DataError, match=rf"rows\[0\]: its reference field '{key}' cannot be written as JSON"):
            run(tmp_path / key, teacher, sources={"a": from_rows([{"prompt": "p", key: value}])})

    class Source:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Example:
            return Example(id="mine:1", task="t", messages=({"role": "user", "content": "p"},), reference={"images": 1})

    with pytest.raises(DataError, match="mine:1: its reference field 'images' would be read as a part of the row"):
        run(tmp_path / "images", teacher, sources={"a": Source()})
    assert not teacher.calls


class Mendable:
    """A reward that is broken until it is mended; it fails from a call on, by raising or by returning nonsense."""

    def __init__(self, fails_from: int, nonsense: bool = False) -> None:
        self.fails_from, self.nonsense, self.calls = fails_from, nonsense, 0

    def __call__(self, completions: Any, **_: Any) -> Any:
        self.calls += 1
        if self.calls > self.fails_from:
            if self.nonsense:
                return "well done"
            raise RuntimeError("no such column")
        return [1.0 for _ in completions]


@pytest.mark.parametrize(
    ("kept", "nonsense", "kind", "sentence"),
    [
        (1, False, DataError, "none of the 3 answers of this batch has a score, because a reward fails: Mendable: "
         "RuntimeError: no such column; put it right; what 3 of 10 prompts gave is kept: run the same command to go"),
        (1, True, ConfigError, "'Mendable' must return a list of numbers, got 'well done'; what 3 of 10 prompts gave"),
        (0, False, DataError, "put it right; no batch was finished yet: run the same command to go on"),
    ],
)  # fmt: skip
def test_a_run_that_a_failing_reward_stopped_goes_on_with_the_mended_one(
    run, tools, tmp_path, kept, nonsense, kind, sentence
):
    broken = Mendable(kept, nonsense)
    folder, whole, settings = tmp_path / "broken", tmp_path / "whole", {"min_reward": 0.5}
    with pytest.raises(kind, match=re.escape(sentence)):
        run(folder, rewards=tools.make_table({"default": broken}), **settings)
    teacher = tools.ScriptedTeacher()
    run(folder, teacher, rewards=tools.make_table({"default": Mendable(99)}), **settings)
    assert len(teacher.asked) == 10 - 3 * kept, "only the batch that was not scored is asked again"
    run(whole, rewards=tools.make_table({"default": Mendable(99)}), **settings)
    assert content_of(folder) == content_of(whole)


def test_before_a_batch_is_finished_a_failing_reward_can_be_replaced_by_any_other(run, tools, tmp_path):
    with pytest.raises(DataError, match="because a reward fails"):
        run(tmp_path, rewards=tools.make_table({"default": Mendable(0)}), keep_per_prompt=1)
    made = run(tmp_path, rewards=tools.make_table({"default": "format"}), keep_per_prompt=1)
    assert made.counts["kept"] == 10 and manifest_of(tmp_path)["rewards"]["default"]["rewards"][0]["name"] == "format"


def test_a_reward_that_fails_where_scores_decide_nothing_costs_no_answer(run, tools, tmp_path):
    assert run(tmp_path, rewards=tools.make_table({"default": Mendable(0)})).counts["kept"] == 10


def test_a_judge_may_move_but_not_become_another(tools):
    def described(weight: float = 1.0, **options: Any) -> Any:
        judge = {"name": "judge_accuracy", "server": options}
        rule = {"name": "rule_then_judge", "rule": {"name": "math", "deadline_s": options.get("timeout_s", 5.0)}}
        return describe_rewards(tools.make_table({"t": [judge | {"weight": weight}, rule | {"judge": judge}]}))

    here = described(model="m", url="http://a:1")
    assert described(model="m", url="http://b:2", timeout_s=9.0, retries=1, cache="c.sqlite") == here
    assert described(model="n", url="http://a:1") != here != described(model="m", temperature=0.5)
    assert described(2.0, model="m") != here
    assert {field.name for field in fields(JudgeServer)} > HOW_A_JUDGE_IS_ASKED
    long, short = ({"name": "length", "max_tokens": n, "buffer_tokens": 9} for n in (99, 98))
    assert describe_rewards(tools.make_table({"t": long})) != describe_rewards(tools.make_table({"t": short}))


def test_how_rewards_become_a_score_is_a_part_of_what_made_the_answers(tools):
    reward = WeightedReward(make_reward("exact_match"))
    plain = RewardTable({"t": TaskRewards((reward,))})
    for other in (TaskRewards((reward,), answer="tagged"), TaskRewards((reward,), clip=(0, 0.5)),
                  TaskRewards((replace(reward, gate=True),), aggregation="gate_by_correctness"),
                  TaskRewards((reward,), error=0.0)):  # fmt: skip
        assert describe_rewards(RewardTable({"t": other})) != describe_rewards(plain)


def test_judges_that_see_are_shown_the_images_of_the_prompt(run, tools, tmp_path):
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Looks:
        def __call__(self, completion: Any, reference: Any) -> Score:
            seen.append(completion.images)
            return Score(value=1.0)

        def perfect_answer(self, reference: Any) -> None:
            return None

    source = from_rows([{"prompt": "<image>?", "images": [noise(1)]}])
    run(tmp_path, sources={"a": source}, rewards=tools.make_table({"default": Looks()}))
    assert [image.size for image in seen[0]] == [(70, 33)]


def test_a_reward_that_returns_no_scores_ends_the_stage_with_its_name(run, tools, tmp_path):
    def lazy(completions, **columns):
        return "well done"

    with pytest.raises(ConfigError, match="reward function 'lazy' must return a list of numbers, got 'well done'"):
        run(tmp_path, rewards=tools.make_table({"default": lazy}), min_reward=0.5)


def test_tasks_without_rewards_are_refused_where_a_reward_is_required_and_kept_where_none_is(run, tools, tmp_path):
    rewards, teacher = tools.make_table({"other": tools.by_answer}), tools.ScriptedTeacher()
    with pytest.raises(DataError, match=r"rows\[0\] is of task 'sums', which has no rewards to reach min_reward with"):
        run(tmp_path / "1", teacher, rewards=rewards, min_reward=0.5)
    assert not teacher.calls
    assert run(tmp_path / "2", teacher, rewards=rewards).counts["kept"] == 10
    with pytest.raises(ConfigError, match="answers: min_reward 0.5 needs rewards"):
        run(tmp_path / "3", min_reward=0.5)


def test_a_teacher_that_gives_another_number_of_answers_is_caught(run, tools, tmp_path):
    class Teacher(tools.ScriptedTeacher):
        def answer(self, examples, **_):
            return [[Answer(text="x", finished=True)] for _ in examples]

    with pytest.raises(TeacherError, match="was asked 3 prompts, 2 times each, and gave 1, 1, 1"):
        run(tmp_path, Teacher(), answers_per_prompt=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_prompts": 0}, "num_prompts must be at least 1"),
        ({"keep_per_prompt": 0}, "keep_per_prompt must be at least 1"),
        ({"thinking_frac": 1.5}, "thinking_frac is a share from 0 to 1, got 1.5"),
        ({"temperature": 0.0, "answers_per_prompt": 4}, "at temperature 0 all 4 answers"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CollectSettings(**{"max_new_tokens": 8, **settings})


def test_a_damaged_journal_is_named(run, tools, tmp_path):
    with pytest.raises(tools.MachineDied):
        run(tmp_path, tools.ScriptedTeacher(fails={2: tools.MachineDied()}))
    journal = tmp_path / "journal-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\xff\xfe\n" + lines[2])
    with pytest.raises(CheckpointError, match=f"journal-0.jsonl is damaged at byte {len(lines[0])}; delete it"):
        run(tmp_path)


def test_seeds_belong_to_batches_and_ways_of_thinking():
    settings = CollectSettings(max_new_tokens=8, seed=1, temperature=0.6, top_p=0.9, top_k=20)
    other = CollectSettings(max_new_tokens=8, seed=2)
    seeds = [
        s.sampling(batch, way).seed for s in (settings, other) for batch in range(4) for way in (True, False, None)
    ]
    assert len(set(seeds)) == 24
    assert settings.sampling(3, True) == settings.sampling(3, True)
    assert (settings.sampling(0, None).temperature, settings.sampling(0, None).top_k) == (0.6, 20)


# --- real data ---


def test_gsm8k_keeps_the_right_answers_and_those_alone(run, tools, shared_data, tmp_path):
    spec = SourceSpec(path=str(shared_data / "gsm8k/train_500.jsonl"), columns={"prompt": "question"}, task="gsm8k")
    source = open_source(spec)

    def say(example: Example, place: int, seed: int) -> Answer:
        solution = example.reference["answer"]
        number = solution.rpartition("#### ")[2].replace(",", "")
        wrong = f"It is plain that the answer is \\boxed{{{int(number) + 1}}}."
        cut = solution[: len(solution) // 2] + f"\n#### {number}"
        texts = [solution, wrong, cut, "", f"<think>\n{wrong}\n</think>\n\nSo it is \\boxed{{{number}}}."]
        return Answer(text=texts[place], finished=place != 2)

    made = run(
        tmp_path,
        tools.ScriptedTeacher(say),
        sources={"gsm8k": source},
        rewards=tools.make_table({"gsm8k": "math"}),
        answers_per_prompt=5,
        min_reward=1.0,
        batch_size=100,
    )
    counts = {fate.value: made.counts[fate.value] for fate in Fate if made.counts[fate.value]}
    assert counts == {"kept": 1000, "unfinished": 500, "empty": 500, "below_min_reward": 500}
    assert made.counts["pass_rate"] == pytest.approx(2 / 3) and made.counts["without_answer"] == 0
    back = open_source(SourceSpec(path=str(made.path)))
    for i in range(0, 1000, 2):
        solution = source[i // 2].reference["answer"]
        assert back[i].messages[-1]["content"] == solution == back[i].reference["answer"]
        assert back[i + 1].messages[-1]["content"].startswith("<think>")
        assert back[i].messages[:-1] == source[i // 2].messages


def test_equal_batches_give_equal_rows(tools, tmp_path):
    settings = CollectSettings(max_new_tokens=8, answers_per_prompt=3)
    source = tools.sums(4)
    examples = [(i, source[i]) for i in range(4)]
    first, second = (
        Asking(folder=tmp_path, teachers={"default": tools.ScriptedTeacher()}, settings=settings, rewards=None)
        for _ in range(2)
    )
    assert first.batch(1, examples) == second.batch(1, examples) != first.batch(2, examples)
