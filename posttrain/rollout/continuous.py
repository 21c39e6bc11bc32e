"""Continuous batching: samples join a running batch when they come, take tokens together, and leave when they end.

A step is one forward pass over one more token of all samples; before it, what waits and fits is prefilled together.
Prompts with several samples and prompts with one are kept apart: the former's attention is a product of several rows,
which would be empty for the latter.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from posttrain.errors import EngineError
from posttrain.model.policy import FeatureCache
from posttrain.rollout.continuous_kept import KeptPasts, Past
from posttrain.rollout.continuous_passes import ForwardPasses, Prompt
from posttrain.rollout.continuous_rows import Load, Rows, Task
from posttrain.rollout.engine import Answer, Request, Sample, Sampling
from posttrain.rollout.sampling import draw_tokens, uniforms

_STEPS_PER_POLL = 4
"""Entering eval mode costs the time of a small part of a step, and those who ask meanwhile are prefilled together; an
answer waits for three steps at most."""
_COMPANY_FRAC = 0.125
"""Where room is short, samples join once so many of those that run have gone: a prefill costs about a step."""

_FEATURE_BYTES = 1 << 28


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """Samples that start from one prompt."""

    prompt: Prompt
    tasks: deque[Task] = field(default_factory=deque)


class ContinuousStream:
    """See `Stream`. max_batch_tokens: keys and values held at a time, in tokens: every prompt as long as the longest
    beside it, and for every sample as many as the one with the highest limit may say. One sample may exceed it. Where
    there is room, turns that may be gone on with are kept."""

    def __init__(
        self,
        passes: ForwardPasses,
        sampling: Sampling,
        *,
        max_batch_tokens: int,
        banned_V: torch.Tensor,
    ) -> None:
        self._passes, self._sampling, self._banned_V = passes, sampling, banned_V
        self._max_batch_tokens = max_batch_tokens
        self._is_end_V = np.zeros(passes.facts.vocab_size, np.bool_)
        self._is_end_V[list(passes.facts.eos_token_ids)] = True
        self._waiting: dict[object, _Waiting] = {}
        self._groups, self._singles = Rows(), Rows()
        self._features = FeatureCache(_FEATURE_BYTES)
        """Of the images of earlier prompts: a trajectory's next turn has them all again."""
        self._kept = KeptPasts()
        self._is_closed = False

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        """Raises ValueError where image tokens and patches differ; what else is in the stream goes on."""
        if self._is_closed:
            raise EngineError("the stream is closed: open another one")
        if max_new_tokens < 1:
            raise ValueError(f"an answer has room for {max_new_tokens} tokens, wanted at least 1")
        prompt = Prompt.of(request.token_ids, request.images, self._passes.facts)
        waiting = self._waiting.setdefault(prompt.key, _Waiting(prompt=prompt))
        for index in range(request.n):
            waiting.tasks.append(
                Task(
                    key=key,
                    index=index,
                    prompt=waiting.prompt,
                    limit=max_new_tokens,
                    uniforms=uniforms(seed=seed, index=index),
                    version=self._passes.weights_version,
                    may_go_on=request.may_go_on and request.n == 1,
                )
            )

    def forget(self, key: int) -> None:
        self._kept.take(key)

    def poll(self, timeout_s: float) -> list[Answer]:
        """A few steps. The work is done here: there is nothing to wait for, and `timeout_s` is not read."""
        if not self.num_running:
            return []
        answers: list[Answer] = []
        try:
            with self._passes.inference():
                for _ in range(_STEPS_PER_POLL):
                    answers += self._join()
                    answers += self._step()
                self._sweep()
                self._kept.shrink(self._max_batch_tokens - sum(load.tokens for load in self._loads().values()))
        except BaseException:
            self._drop()  # a step that broke off leaves rows without tokens
            raise
        return answers

    @property
    def num_running(self) -> int:
        return self._num_waiting + self._groups.num_alive + self._singles.num_alive

    def close(self) -> None:
        self._is_closed = True
        self._drop()
        self._features.clear()

    @property
    def _num_waiting(self) -> int:
        return sum(len(waiting.tasks) for waiting in self._waiting.values())

    def _sweep(self) -> list[Rows]:
        """Gives back memory, all of it where nothing runs; returns what does."""
        self._groups, self._singles = (rows if rows.num_alive else Rows() for rows in (self._groups, self._singles))
        running = [rows for rows in (self._groups, self._singles) if rows.num_alive]
        for rows in running:
            rows.sweep()
        return running

    def _drop(self) -> None:
        self._waiting.clear()
        self._kept.clear()
        self._groups, self._singles = Rows(), Rows()

    def _join(self) -> list[Answer]:
        """Prefills what waits and fits, all of it together, and draws the first tokens."""
        if not self._waiting:
            return []
        joining, room = self._admitted()
        opened = {rows: rows.open(len(tasks)) for rows, tasks in joining.items()}
        missing = {
            rows: list({t.prompt.key: t.prompt for t in tasks if not rows.holds(t.prompt)}.values())
            for rows, tasks in joining.items()
        }
        missing = {rows: wanted for rows, wanted in missing.items() if wanted}
        asked_by = {task.prompt.key: task.key for tasks in joining.values() for task in tasks}
        pasts = {p.key: self._past_of(p, asked_by[p.key]) for wanted in missing.values() for p in wanted}
        self._kept.shrink(room)
        for has_past in (False, True):  # together, the few new tokens of some would be padded to whole prompts
            parts = {
                rows: [p for p in wanted if (pasts[p.key] is not None) == has_past] for rows, wanted in missing.items()
            }
            self._prefill({rows: wanted for rows, wanted in parts.items() if wanted}, pasts)
        answers: list[Answer] = []
        for rows, tasks in joining.items():
            rows.fill(opened[rows], tasks)
            starts = {task.prompt.key: task.prompt for task in tasks}
            place_of = {key: place for place, key in enumerate(starts)}
            logits_UV = self._passes.logits(rows.hidden_of(list(starts.values())))
            prompt_N = torch.tensor([place_of[task.prompt.key] for task in tasks], device=self._passes.device)
            first_N = np.array([next(task.uniforms) for task in tasks])
            rows.draw(opened[rows], *self._draw(logits_UV[prompt_N], first_N))
            answers += self._ended(rows)
        return answers

    def _past_of(self, prompt: Prompt, key: int) -> Past | None:
        past = self._kept.take(key)
        shared = past and past.shared_with(
            prompt.token_ids, [image.key for image in prompt.images], prompt.image_starts
        )
        return shared if shared else None

    def _prefill(self, missing: Mapping[Rows, Sequence[Prompt]], pasts: Mapping[object, Past | None]) -> None:
        if not missing:
            return
        prompts = [prompt for wanted in missing.values() for prompt in wanted]
        found = [past for prompt in prompts if (past := pasts[prompt.key]) is not None]
        prefill = self._passes.prefill(prompts, self._features, found)
        start = 0
        for rows, wanted in missing.items():
            rows.put(wanted, prefill.part(start, start + len(wanted)))
            start += len(wanted)

    def _step(self) -> list[Answer]:
        """One more token for every sample."""
        parts = self._sweep()
        if not parts:
            return []
        for rows in parts:
            rows.open_column()
        positions_B = _joined([rows.positions() for rows in parts])
        hidden_BH = self._passes.decode(_joined([rows.tokens_B for rows in parts]), positions_B, parts)
        uniforms_B = _joined([rows.uniforms() for rows in parts])
        tokens_B, logprobs_B = self._draw(self._passes.logits(hidden_BH), uniforms_B)
        answers: list[Answer] = []
        start = 0
        for rows in parts:
            drawn = slice(start, start + rows.num_rows)
            rows.draw(slice(None), tokens_B[drawn], logprobs_B[drawn])
            answers += self._ended(rows)
            start = drawn.stop
        return answers

    def _draw(self, logits_NV: torch.Tensor, uniforms_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = torch.from_numpy(uniforms_N).to(logits_NV.device)
        tokens_N, logprobs_N = draw_tokens(logits_NV, numbers, self._sampling, self._banned_V)
        return tokens_N.cpu().numpy(), logprobs_N.cpu().numpy()

    def _ended(self, rows: Rows) -> list[Answer]:
        answers: list[Answer] = []
        for ended in rows.end(self._is_end_V):
            if ended.past is not None:
                self._kept.put(ended.task.key, ended.past)
            sample = Sample(
                token_ids=ended.token_ids,
                logprobs=ended.logprobs,
                stop="end" if ended.says_so else "length",
                weights_version=ended.task.version,
            )
            answers.append(Answer(key=ended.task.key, index=ended.task.index, sample=sample))
        return answers

    def _loads(self) -> dict[Rows, Load]:
        return {rows: rows.load() for rows in (self._groups, self._singles)}

    def _admitted(self) -> tuple[dict[Rows, list[Task]], int]:
        """Takes from what waits, in order, as much as fits; nothing where it is better to wait for more room. Also the
        tokens that there is room for beside what runs then: what is kept has no claim to it."""
        loads = self._loads()
        num_running, num_taken = sum(load.samples for load in loads.values()), 0
        admitted: dict[Rows, list[Task]] = {}
        for waiting in self._waiting.values():
            rows = self._rows_for(waiting)
            is_new = not rows.holds(waiting.prompt)
            others = sum(load.tokens for other, load in loads.items() if other is not rows)
            fitting: list[Task] = []
            for task in waiting.tasks:
                load = loads[rows].with_sample(len(task.prompt.token_ids) if is_new else 0, task.limit)
                if load.tokens + others > self._max_batch_tokens and (num_running or num_taken):
                    break
                loads[rows], is_new = load, False
                fitting.append(task)
                num_taken += 1
            if fitting:
                admitted.setdefault(rows, []).extend(fitting)
            if len(fitting) < len(waiting.tasks):
                break
        if num_taken < min(self._num_waiting, _COMPANY_FRAC * num_running):
            return {}, self._max_batch_tokens
        for task in (task for tasks in admitted.values() for task in tasks):
            waiting = self._waiting[task.prompt.key]
            waiting.tasks.popleft()
            if not waiting.tasks:
                del self._waiting[task.prompt.key]
        return admitted, self._max_batch_tokens - sum(load.tokens for load in loads.values())

    def _rows_for(self, waiting: _Waiting) -> Rows:
        for rows in (self._groups, self._singles):
            if rows.holds(waiting.prompt):
                return rows
        return self._groups if len(waiting.tasks) > 1 else self._singles


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
