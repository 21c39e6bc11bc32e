"""A scripted solver keeps the protocol of environments: deadlines, scores, limits; failures stay where they are."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.answers import Answer, SolverAnswers
from posttrain.environments import Done, Observation, Opening, Reply
from posttrain.errors import DataError
from posttrain.records import Example, Status
from posttrain.rollout.engine import Sampling
from posttrain.rollout.episode import Limits
from posttrain.rollout.rolling_batch import TaskEnvironment
from tests.waiting import GROWING_S, HANG_S, PATIENCE_S, comes_true

Step = Callable[[Example, Reply], Observation | Done]


@dataclass
class Room:
    """Answers as it is told to, and notes what it is asked."""

    act: Step
    log: list[str] = field(default_factory=list)
    example: Any = None

    def validate(self, example: Example) -> None: ...

    def start(self, example: Example) -> Opening:
        self.example = example
        return Opening(messages=example.messages)

    def step(self, reply: Reply) -> Observation | Done:
        try:
            return self.act(self.example, reply)
        finally:
            self.log.append("stepped")

    def close(self) -> None:
        self.log.append("closed")


def look(*_: Any) -> Observation:
    image = Image.new("RGB", (8, 8))
    return Observation(messages=({"role": "user", "content": [{"type": "image"}]},), images=(image,))


def played(make: Callable[[], Any], solver: Any = None, timeout_s: float = HANG_S, **limits: int) -> SolverAnswers:
    task = TaskEnvironment(make=make, limits=Limits(**limits), timeout_s=timeout_s)
    solver = solver or (lambda example, *_: example.reference["answer"])
    return SolverAnswers(name="oracle", identity="1", solver=solver, environments={"default": task})


def answers(solver: SolverAnswers, source: Any) -> list[Answer]:
    given = solver.answer(
        [source[i] for i in range(len(source))], n=1, sampling=Sampling(max_new_tokens=8), thinking=None
    )
    return [answer for (answer,) in given]


def test_a_stage_keeps_what_its_environment_pays(run: Any, tools: Any, tmp_path: Path) -> None:
    class Judging(Room):
        async def score(self) -> float:
            self.log.append("scored")
            return 1.0 if self.example.reference["answer"] in "123" else 0.25

    rooms: list[Judging] = []

    def make() -> Judging:
        rooms.append(Judging(lambda *_: Done()))
        return rooms[-1]

    table = tools.make_table({"default": "environment_score"})
    made = run(tmp_path, played(make), rewards=table, min_reward=1.0)
    assert (made.counts["kept"], made.counts["below_min_reward"]) == (3, 7)
    assert all(room.log == ["stepped", "scored", "closed"] for room in rooms)


def test_what_start_makes_in_its_event_loop_lives_on_in_step_and_close(tools: Any) -> None:
    class Client:
        """Its task answers what is asked, for as long as its loop runs."""

        def __init__(self) -> None:
            self.asked: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()
            self.task = asyncio.create_task(self.serve())

        async def serve(self) -> None:
            while True:
                (await self.asked.get()).set_result("served")

    class Connected(Room):
        async def start(self, example: Example) -> Opening:  # type: ignore[override]
            self.client = Client()
            return super().start(example)

        async def step(self, reply: Reply) -> Done:  # type: ignore[override]
            answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            await self.client.asked.put(answer)
            self.log.append(await asyncio.wait_for(answer, PATIENCE_S))
            return Done()

        async def close(self) -> None:  # type: ignore[override]
            self.client.task.cancel()
            self.log.append("closed")

    room = Connected(lambda *_: Done())
    (answer,) = answers(played(lambda: room), tools.sums(1))
    assert answer.finished and room.log == ["served", "closed"]


def test_an_environment_that_raises_costs_its_own_episode_alone(run: Any, tools: Any, tmp_path: Path) -> None:
    def act(example: Example, reply: Reply) -> Done:
        if example.reference["answer"] == "2":
            raise RuntimeError("no simulator")
        return Done()

    made = run(tmp_path, played(lambda: Room(act)))
    assert (made.counts["kept"], made.counts["broken"], made.counts["unfinished"]) == (9, 1, 0)
    assert "broken" in run.printed.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Room(lambda *_: 1 / 0), "the environment failed: ZeroDivisionError: division by zero"),  # type: ignore
        (lambda: Room(lambda *_: "yes"), "the environment answered str, wanted an Observation or Done"),  # type: ignore
    ],
)
def test_a_broken_episode_says_what_broke_it_and_is_closed(tools: Any, make: Any, reason: str) -> None:
    room = make()
    (answer,) = answers(played(lambda: room), tools.sums(1))
    assert answer.episode is not None and answer.episode.status is Status.ERROR and not answer.finished
    assert answer.episode.error == reason and room.log == ["stepped", "closed"]


def test_an_environment_that_hangs_is_left_behind_and_closed_when_it_comes_back(tools: Any) -> None:
    rooms: list[Room] = []
    is_stepping, leave = threading.Event(), threading.Event()

    def act(example: Example, reply: Reply) -> Done:
        if example.reference["answer"] == "1":
            is_stepping.set()
            leave.wait(HANG_S)
        return Done()

    def make() -> Room:
        rooms.append(Room(act))
        return rooms[-1]

    for seconds in GROWING_S:
        rooms.clear()
        is_stepping.clear()
        hung, other = answers(played(make, timeout_s=seconds), tools.sums(2))
        assert hung.episode is not None and hung.episode.error == f"the environment gave no answer within {seconds:g} s"
        if is_stepping.is_set() and other.finished:
            break
    assert other.finished and rooms[0].log == [], "nobody waits for it"
    leave.set()
    assert comes_true(lambda: "closed" in rooms[0].log)
    assert rooms[0].log == ["stepped", "closed"], "never while it is still at work"


def test_an_episode_is_cut_short_where_its_images_or_its_turns_are_used_up(tools: Any) -> None:
    (seen,) = answers(played(lambda: Room(look), max_images=2, max_turns=9), tools.sums(1))
    (told,) = answers(played(lambda: Room(look), max_images=9, max_turns=2), tools.sums(1))
    for answer, num_turns, num_images, reason in (
        (seen, 3, 2, "asked for more than 2 images"),
        (told, 2, 1, "had not ended after turn 2, which is the last allowed"),
    ):
        episode = answer.episode
        assert episode is not None and episode.status is Status.TRUNCATED and episode.error == reason
        assert len(episode.turns) == num_turns and sum(len(turn.images) for turn in episode.turns) == num_images
        assert not episode.turns[-1].observation, "it ends with what was said"


def test_a_row_that_a_solver_did_not_think_of_costs_its_own_episode_alone(tools: Any) -> None:
    def solver(example: Example, *_: Any) -> str:
        return {"1": "one"}[example.reference["answer"]]

    first, second = answers(played(lambda: Room(lambda *_: Done()), solver), tools.sums(2))
    assert first.finished and second.episode is not None
    assert second.episode.error == "the solver failed: KeyError: '2'"


def test_a_stage_whose_environment_always_breaks_stops_at_its_first_batch_and_says_why(
    run: Any, tools: Any, tmp_path: Path
) -> None:
    def act(example: Example, reply: Reply) -> Done:
        rooms.append(example.id)
        raise RuntimeError("no simulator")

    rooms: list[str] = []
    sentence = "all 3 episodes of this batch broke down; the first: the environment failed: RuntimeError: no simulator"
    with pytest.raises(DataError, match=sentence):
        run(tmp_path, played(lambda: Room(act)))
    assert len(rooms) == 3
    made = run(tmp_path, played(lambda: Room(lambda *_: Done())))
    assert made.counts["kept"] == 10, "put right, it is asked again"


def test_where_nothing_is_kept_the_first_failure_is_named(run: Any, tools: Any, tmp_path: Path) -> None:
    def act(example: Example, reply: Reply) -> Observation | Done:
        if example.reference["answer"] != "1":
            raise RuntimeError("no simulator")
        return look()

    with pytest.raises(DataError) as caught:
        run(tmp_path, played(lambda: Room(act)))
    assert "9 broke down (the first: the environment failed: RuntimeError: no simulator)" in str(caught.value)
    assert "1 were cut short by a limit of their episode (the first had not ended after turn 6" in str(caught.value)
    assert "max_new_tokens" not in str(caught.value) and "put the environment right" in str(caught.value)
