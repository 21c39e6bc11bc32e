"""One batch of prompts: asked, scored, filtered, and turned into the rows that are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.answers.filtering import Fate, faults, filter_answers
from posttrain.answers.rows import as_asked, check_writable, row_of, shown_images, store_image
from posttrain.answers.settings import CollectSettings
from posttrain.answers.source import AnswerSource
from posttrain.answers.tally import Group, Tally, merge
from posttrain.errors import ConfigError, DataError, TeacherError
from posttrain.records import Example
from posttrain.rewards import BadRewardError, Completion, RewardTable, Score
from posttrain.rewards.table import DEFAULT_TASK
from posttrain.rollout.scoring import completion_of, last_user_text
from posttrain.teachers.answer import Answer

_WAYS = {True: "on", False: "off", None: "template"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    example: Example
    teacher: AnswerSource
    thinking: bool | None

    @property
    def group(self) -> Group:
        return self.example.task, _WAYS[self.thinking]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Turns batches of prompts into rows; equal batches give equal rows."""

    folder: Path
    """Where images are stored."""
    teachers: Mapping[str, AnswerSource]
    """Task -> who answers it."""
    settings: CollectSettings
    rewards: RewardTable | None
    encode: Callable[[str], Sequence[int]] | None = None
    """Tokens of a text, for rewards that count them."""

    def batch(
        self, index: int, examples: Sequence[tuple[int, Example]]
    ) -> tuple[list[dict[str, Any]], dict[Group, Tally]]:
        """The rows to keep and the counts of batch `index`; `examples` are given with their place in the whole order.

        Raises DataError, before anybody is asked, for a row that cannot be written or whose task has no teacher or no
        rewards; TeacherError where a teacher does not give the answers that it was asked for.
        """
        prompts = [self._prompt(place, example) for place, example in examples]
        answers = self._answers(index, prompts)
        scores = self._scores(prompts, answers)
        rows: list[dict[str, Any]] = []
        tallies: list[dict[Group, Tally]] = []
        for prompt, said, earned in zip(prompts, answers, scores, strict=True):
            fates = filter_answers(
                said,
                earned,
                thinking=prompt.thinking,
                min_reward=self.settings.min_reward,
                keep=self.settings.keep_per_prompt,
                seed=self.settings.seed,
            )
            rows += self._rows(prompt, said, earned, fates)
            tallies.append({prompt.group: self._tally(said, earned, fates)})
        return rows, merge(tallies)

    def _prompt(self, place: int, example: Example) -> _Prompt:
        thinking = self.settings.thinks(place)
        asked = as_asked(example, thinking)
        check_writable(asked)
        if self.settings.min_reward is not None and self.rewards and not self.rewards.serves(asked.task):
            raise DataError(
                f"{asked.id} is of task '{asked.task}', which has no rewards to reach min_reward with; rewards are "
                f"given for: {', '.join(self.rewards.tasks)}"
            )
        teacher = self.teachers.get(asked.task) or self.teachers.get(DEFAULT_TASK)
        if teacher is None:
            raise DataError(
                f"{asked.id} is of task '{asked.task}', which no teacher answers; teachers are given for: "
                f"{', '.join(self.teachers)}"
            )
        return _Prompt(example=asked, teacher=teacher, thinking=thinking)

    def _answers(self, index: int, prompts: Sequence[_Prompt]) -> list[list[Answer]]:
        """Each teacher is asked once for each way of thinking."""
        n = self.settings.answers_per_prompt
        answers: list[list[Answer]] = [[] for _ in prompts]
        calls: dict[tuple[str, bool | None], list[int]] = {}
        for place, prompt in enumerate(prompts):
            calls.setdefault((prompt.teacher.name, prompt.thinking), []).append(place)
        for (name, thinking), places in calls.items():
            said = prompts[places[0]].teacher.answer(
                [prompts[place].example for place in places],
                n=n,
                sampling=self.settings.sampling(index, thinking),
                thinking=thinking,
            )
            if len(said) != len(places) or any(len(given) not in (0, n) for given in said):
                got = ", ".join(str(len(given)) for given in said)
                raise TeacherError(f"teacher '{name}' was asked {len(places)} prompts, {n} times each, and gave {got}")
            for place, given in zip(places, said, strict=True):
                answers[place] = given
        return answers

    def _scores(self, prompts: Sequence[_Prompt], answers: Sequence[Sequence[Answer]]) -> list[list[Score | None]]:
        """Scores of the answers that are sound; nobody scores the others.

        Raises ConfigError, naming the reward, where one returns what is no score, and DataError where none of the
        answers that are to be chosen from has one because a reward fails: such a batch is asked again.
        """
        scores: list[list[Score | None]] = [[None] * len(said) for said in answers]
        if self.rewards is None:
            return scores
        places: list[tuple[int, int]] = []
        items: list[tuple[str, Completion, Mapping[str, Any]]] = []
        for i, (prompt, said) in enumerate(zip(prompts, answers, strict=True)):
            example = prompt.example
            if not self.rewards.serves(example.task):
                continue
            for j, fault in enumerate(faults(said, thinking=prompt.thinking)):
                if fault is None:
                    places.append((i, j))
                    items.append((example.task, self._completion(example, said[j]), example.reference))
        try:
            found = self.rewards.score_batch(items)
        except BadRewardError as error:
            raise ConfigError(str(error)) from error
        if self._chooses and found and all(score.error and score.value is None for score in found):
            raise DataError(
                f"none of the {len(found)} answers of this batch has a score, because a reward fails: "
                f"{found[0].reason}; put it right"
            )
        for (i, j), score in zip(places, found, strict=True):
            scores[i][j] = score
        return scores

    @property
    def _chooses(self) -> bool:
        """True where scores decide what is kept."""
        return self.settings.min_reward is not None or self.settings.keep_per_prompt is not None

    def _completion(self, example: Example, answer: Answer) -> Completion:
        token_ids = tuple(self.encode(answer.text)) if self.encode is not None else ()
        if answer.episode is not None:
            return replace(completion_of(answer.episode), token_ids=token_ids)
        return Completion(
            text=answer.text, prompt=last_user_text(example), token_ids=token_ids, images=tuple(example.images)
        )

    def _rows(
        self, prompt: _Prompt, said: Sequence[Answer], scores: Sequence[Score | None], fates: Sequence[Fate]
    ) -> list[dict[str, Any]]:
        kept = [place for place, fate in enumerate(fates) if fate is Fate.KEPT]
        images = {i: [store_image(self.folder, x) for x in shown_images(prompt.example, said[i])] for i in kept}
        made_by = {"teacher": prompt.teacher.name, "identity": prompt.teacher.identity, "thinking": prompt.group[1]}
        return [
            row_of(prompt.example, said[i], scores[i], thinking=prompt.thinking, images=images[i], made_by=made_by)
            for i in kept
        ]

    def _tally(self, said: Sequence[Answer], scores: Sequence[Score | None], fates: Sequence[Fate]) -> Tally:
        earned = [(score.value, fate) for score, fate in zip(scores, fates, strict=True) if score is not None]
        rewards = [(value, fate) for value, fate in earned if value is not None]
        kept = [value for value, fate in rewards if fate is Fate.KEPT]
        return Tally(
            prompts=1,
            unreadable=int(not said),
            without_answer=int(Fate.KEPT not in fates),
            answers=len(said),
            **{fate.value: fates.count(fate) for fate in Fate},
            scored=len(rewards),
            judged=len(rewards) if self.settings.min_reward is not None else 0,
            scored_kept=len(kept),
            reward_sum=sum(value for value, _ in rewards),
            reward_sum_kept=sum(kept),
            chars_kept=sum(len(answer.text) for answer, fate in zip(said, fates, strict=True) if fate is Fate.KEPT),
            first_cut=_first_error(said, fates, Fate.CUT_SHORT),
            first_break=_first_error(said, fates, Fate.BROKEN),
        )


def _first_error(said: Sequence[Answer], fates: Sequence[Fate], fate: Fate) -> str:
    """What the first episode of that fate says of its end; empty where there is none."""
    errors = (answer.episode.error for answer, its in zip(said, fates, strict=True) if its is fate and answer.episode)
    return next(errors, "")
