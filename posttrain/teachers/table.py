"""The table task -> teacher: who scores which sequence, and what a packed row is compared with."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from posttrain.algorithms import Average
from posttrain.errors import ConfigError, DataError, TeacherError
from posttrain.model import PackedRow, TokenSequence
from posttrain.model.matching import DenseReference, TopReference
from posttrain.rewards.registry import nearest
from posttrain.teachers.cache import CachedTeacher
from posttrain.teachers.dense import DenseTeacher
from posttrain.teachers.teacher import Teacher, TopScores

TEACHER_IDS = "teacher_ids"
"""Table [N, K] int32: the teacher's likeliest tokens in place of each trained token."""
TEACHER_LOGPROBS = "teacher_logprobs"
"""Table [N, K + 1] float32 nats: theirs, and the tail's in the last column."""
DEFAULT_TASK = "default"
"""The route of tasks that have none of their own."""

_log = logging.getLogger(__name__)


class TeacherTable:
    """The teachers of a stage, by task. A sequence's `lane` is its teacher's place in `teachers`."""

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        routes: Mapping[str, str],
        *,
        top_k: int | None,
        use_scores: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        """routes: task -> name of a teacher; left empty, the only teacher there is serves every task.
        vocab_size: rows of the student's head; no teacher may score a token beyond them.

        top_k: of scores that are asked ahead, which servers and caches always are. use_scores: ask local teachers ahead
        too, so that they need not be in memory while the student trains.
        Raises ConfigError for a route to a teacher that is not there, naming the nearest, or where routes are missing.
        """
        if not teachers:
            raise ConfigError("distillation needs a teacher: add one to 'teachers'")
        for task, name in routes.items():
            if name not in teachers:
                raise ConfigError(
                    f"task '{task}' is given to teacher '{name}', which is not there{nearest(name, teachers)}"
                )
        if len(teachers) > 1 and not routes:
            raise ConfigError(f"there are {len(teachers)} teachers ({', '.join(teachers)}): say which task has which")
        if use_scores and top_k is None:
            raise ConfigError("scores that are asked ahead are a teacher's likeliest tokens: set top_k, such as 64")
        self.teachers = dict(teachers)
        self._routes, self._top_k, self._use_scores = dict(routes), top_k, use_scores
        self._vocab_size = vocab_size
        self._names = list(teachers)

    @property
    def overlaps(self) -> bool:
        """True where asking leaves this process's devices alone: then it may be done in a thread."""
        return not any(isinstance(_asked(teacher), DenseTeacher) for teacher in self.teachers.values())

    def teacher_of(self, task: str) -> Teacher:
        """Raises DataError, naming the nearest, for a task that has no teacher."""
        return self.teachers[self._name_for(task)]

    def annotate(
        self, tasks: Sequence[str], sequences: Sequence[TokenSequence]
    ) -> tuple[list[TokenSequence | None], Mapping[str, Average]]:
        """The sequences with their lanes, and with their scores where their teacher gives these ahead.

        None stands for a sequence that is longer than its teacher's context, which is warned of. Sequences that train
        nothing come back untouched. Each teacher is asked once. Raises what `teacher_of` and the teachers raise.
        """
        annotated: list[TokenSequence | None] = list(sequences)
        ahead: dict[str, list[int]] = {}
        dropped = 0
        for place, (task, sequence) in enumerate(zip(tasks, sequences, strict=True)):
            if not sequence.num_trained:
                continue
            name = self._name_for(task)
            teacher = self.teachers[name]
            if sequence.num_tokens > teacher.context:
                _log.warning(
                    "dropped: a sequence of task '%s' has %d tokens, teacher '%s' reads %d; lower max_length, or "
                    "choose a teacher with a longer context",
                    task,
                    sequence.num_tokens,
                    name,
                    teacher.context,
                )
                annotated[place] = None
                dropped += 1
                continue
            annotated[place] = replace(sequence, lane=self._names.index(name))
            if self._use_scores or not isinstance(teacher, DenseTeacher):
                ahead.setdefault(name, []).append(place)
        for name, places in ahead.items():
            scores = self._scores(name, [sequences[place] for place in places])
            for place, found in zip(places, scores, strict=True):
                annotated[place] = _with_scores(sequences[place], found, self._names.index(name))
        return annotated, {"teacher/dropped_frac": Average(total=float(dropped), count=float(len(sequences)))}

    def reference(self, row: PackedRow) -> DenseReference | TopReference:
        """What the row's teacher says of its trained tokens: the scores that it brings, or the whole distribution."""
        if TEACHER_IDS in row.tables:
            logprobs = row.tables[TEACHER_LOGPROBS]
            return TopReference(
                token_ids_TK=row.tables[TEACHER_IDS], logprobs_TK=logprobs[:, :-1], tail_T=logprobs[:, -1]
            )
        teacher = self.teachers[self._names[row.lane]]
        if not isinstance(teacher, DenseTeacher):
            raise TeacherError(f"teacher '{teacher.name}' gives scores ahead, and these sequences were never annotated")
        return teacher.dense(row)

    def logprobs(self, tasks: Sequence[str], sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """For each sequence [N] float32: its teacher's log-probabilities of the trained tokens themselves, in nats.

        Raises TeacherError for a sequence that is longer than its teacher's context.
        """
        found = [np.empty(0, dtype=np.float32)] * len(sequences)
        by_name: dict[str, list[int]] = {}
        for place, (task, sequence) in enumerate(zip(tasks, sequences, strict=True)):
            if sequence.num_trained:
                by_name.setdefault(self._name_for(task), []).append(place)
        for name, places in by_name.items():
            answers = self.teachers[name].logprobs([sequences[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    @property
    def identities(self) -> dict[str, str]:
        """Whose scores these are, by the teacher's name."""
        return {name: teacher.identity for name, teacher in self.teachers.items()}

    def flush(self) -> None:
        """Writes scores that are only in memory yet, for a checkpoint."""
        for teacher in self.teachers.values():
            if isinstance(teacher, CachedTeacher):
                teacher.flush()

    def close(self) -> None:
        """Closes every teacher, also after one of them failed to."""
        failures: list[TeacherError] = []
        for teacher in self.teachers.values():
            try:
                teacher.close()
            except TeacherError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _name_for(self, task: str) -> str:
        if not self._routes and len(self._names) == 1:
            return self._names[0]
        name = self._routes.get(task) or self._routes.get(DEFAULT_TASK)
        if name is None:
            raise DataError(
                f"task '{task}' is routed to no teacher, and there is no route '{DEFAULT_TASK}'"
                f"{nearest(task, self._routes)}"
            )
        return name

    def _scores(self, name: str, sequences: Sequence[TokenSequence]) -> list[TopScores]:
        if self._top_k is None:
            raise ConfigError(
                f"teacher '{name}' gives its likeliest tokens, not whole distributions: set top_k, such as 64"
            )
        found = self.teachers[name].top_scores(sequences, self._top_k)
        most = max((int(scores.token_ids_NK.max(initial=0)) for scores in found), default=0)
        if self._vocab_size is not None and most >= self._vocab_size:
            raise TeacherError(
                f"teacher '{name}' scores token {most}, the student's head has {self._vocab_size} rows; choose a "
                "teacher with the student's tokenizer"
            )
        return found


def _asked(teacher: Teacher) -> Teacher:
    """Who answers in the end."""
    return _asked(teacher.teacher) if isinstance(teacher, CachedTeacher) else teacher


def _with_scores(sequence: TokenSequence, scores: TopScores, lane: int) -> TokenSequence:
    logprobs = np.concatenate([scores.logprobs_NK, scores.tail_N[:, None]], axis=1)
    tables = {**sequence.tables, TEACHER_IDS: scores.token_ids_NK, TEACHER_LOGPROBS: logprobs}
    return replace(sequence, lane=lane, tables=tables)
