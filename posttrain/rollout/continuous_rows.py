"""Samples that decode together over one table of prompts: who sits in which row, from which prompt, and since when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.rollout.continuous_cache import OwnTable, PromptTable
from posttrain.rollout.continuous_kept import Past
from posttrain.rollout.continuous_passes import Prefill, Prompt
from posttrain.rollout.shared_prefix import Seats, shared_prefix_attention

_IDLE_ROWS_FRAC = 0.125
"""Rows of samples that have ended are dropped once they are this part of all: each costs a whole row of the
forward pass, dropping them a copy of what the others have said."""
_IDLE_PLACES_FRAC = 0.25
"""So are the prompts that nobody reads: they cost attention alone, dropping them a copy of all other prompts."""
_ROOM_FRAC = 0.5
"""Memory for prompts is given back once more than this part of it is empty."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One sample to draw."""

    key: int
    index: int
    """Which of its request's samples it is."""
    prompt: Prompt
    limit: int
    """Tokens at most."""
    uniforms: Iterator[float]
    """Numbers in [0, 1), one for each token, and as many more as are asked for."""
    version: int
    """Of the weights that began it."""
    may_go_on: bool
    """See `Request`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ended:
    """A sample that has all its tokens."""

    task: Task
    token_ids: np.ndarray
    logprobs: np.ndarray
    says_so: bool
    """It ended itself."""
    past: Past | None
    """What was forwarded for it, all but its last token; where it may go on."""


_STATE = np.dtype(
    [
        ("alive", np.bool_),
        ("place", np.int64),  # of the row's prompt; -1 between being opened and filled
        ("start", np.int64),  # the row's first column
        ("shift", np.int64),  # rotary position minus column
        ("limit", np.int64),
        ("token", np.int64),  # drawn last
        ("logprob", np.float32),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What rows hold, or are to hold."""

    prompts: int
    longest: int
    """Tokens of the longest prompt."""
    samples: int
    limit: int
    """The highest of the samples' limits."""

    @property
    def tokens(self) -> int:
        return self.prompts * self.longest + self.samples * self.limit

    def with_sample(self, prompt_length: int, limit: int) -> "Load":
        """prompt_length: 0 where the sample's prompt is there already."""
        return Load(
            prompts=self.prompts + (prompt_length > 0),
            longest=max(self.longest, prompt_length),
            samples=self.samples + 1,
            limit=max(self.limit, limit),
        )


class Rows:
    """A row is a sample. Rows whose sample has ended stay until others take them over, or too many are idle.

    A row's first token is drawn from its prompt; from then on every step writes the token drawn last in a new column
    of `OwnTable`, reads prompt and columns, and draws the next one. So its tokens are those in its columns and the one
    that is still to be written.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.table = PromptTable()
        self._own: OwnTable | None = None
        self._places: dict[object, int] = {}
        """Of the prompts in the table, by key."""
        self._hidden_H: dict[object, Tensor] = {}
        """Last hidden states of these prompts: what first tokens are drawn from."""
        self._draws: list[Iterator[float]] = []
        """What the tokens of each row are drawn with."""
        self.num_alive = 0
        self._state_B = np.zeros(0, _STATE)
        self._seats: Seats | None = None
        self._bias_UL: Tensor | None = None
        self._bias_BT: Tensor | None = None
        """See `shared_prefix_attention`."""
        self._first = 0
        """No row that is alive reads a column before."""
        self._longest = 0
        """Tokens of the longest prompt."""
        self._starts: Tensor | None = None
        """First columns of the rows, on the device; None where all are `_first`."""

    @property
    def num_rows(self) -> int:
        return len(self.tasks)

    @property
    def tokens_B(self) -> np.ndarray:
        """Drawn last, still to be forwarded."""
        return self._state_B["token"]

    def draw(self, rows: np.ndarray | slice, tokens_N: np.ndarray, logprobs_N: np.ndarray) -> None:
        """Notes the tokens drawn for these rows."""
        self._state_B["token"][rows], self._state_B["logprob"][rows] = tokens_N, logprobs_N

    def holds(self, prompt: Prompt) -> bool:
        return prompt.key in self._places

    def load(self) -> Load:
        limits = self._state_B["limit"][self._state_B["alive"]]
        return Load(
            prompts=len(self._places),
            longest=int(self.table.lengths_U.max(initial=0)),
            samples=len(limits),
            limit=int(limits.max(initial=0)),
        )

    def open(self, num: int) -> np.ndarray:
        """Rows for `num` samples: those of ended ones, whose prompts go where nobody else reads them, then new ones."""
        idle = np.flatnonzero(~self._state_B["alive"])[:num]
        self._state_B["place"][idle] = -1
        self._forget_prompts()
        rows = np.append(idle, self.num_rows + np.arange(num - len(idle)))
        self._state_B = np.append(self._state_B, np.zeros(num - len(idle), _STATE))
        return rows

    def put(self, prompts: Sequence[Prompt], prefill: Prefill) -> None:
        """Takes over prompts that have been forwarded."""
        places = self.table.put(prefill.keys, prefill.values, prefill.lengths_U)
        if self._own is None:
            self._own = OwnTable(prefill.keys, prefill.values)
        for place, prompt, hidden_H in zip(places.tolist(), prompts, prefill.hidden_UH, strict=True):
            self._places[prompt.key], self._hidden_H[prompt.key] = place, hidden_H

    def fill(self, rows: np.ndarray, tasks: Sequence[Task]) -> None:
        """Seats samples, whose prompts are in the table, in rows that were opened for them."""
        assert self._own is not None
        grown = len(self._state_B) - self.num_rows
        self.tasks += [tasks[0]] * grown
        self._draws += [tasks[0].uniforms] * grown
        for row, task in zip(rows.tolist(), tasks, strict=True):
            self.tasks[row], self._draws[row] = task, task.uniforms
        self._own.set_rows(self.num_rows)
        self._state_B["place"][rows] = [self._places[task.prompt.key] for task in tasks]
        self._state_B["start"][rows] = self._own.end
        self._state_B["shift"][rows] = [task.prompt.following - self._own.end for task in tasks]
        self._state_B["limit"][rows] = [task.limit for task in tasks]
        self._state_B["alive"][rows] = True
        self.num_alive += len(rows)
        self._replan()

    def hidden_of(self, prompts: Sequence[Prompt]) -> Tensor:
        """[U, H] last hidden states of prompts in the table."""
        return torch.stack([self._hidden_H[prompt.key] for prompt in prompts])

    def uniforms(self) -> np.ndarray:
        """[B] float64: what the next token of each row is drawn with."""
        return np.fromiter(map(next, self._draws), np.float64, self.num_rows)

    def open_column(self) -> None:
        """Begins a step: the tokens drawn last are about to be forwarded."""
        assert self._own is not None
        self._own.open_column(self._state_B["token"], self._state_B["logprob"], self._first)
        if self._starts is not None:
            columns_T = torch.arange(self._first, self._own.end, device=self._starts.device)
            self._bias_BT = _bias(columns_T < self._starts[:, None], self.table.keys[0].dtype)

    def positions(self) -> np.ndarray:
        """[B] rotary positions of the tokens in the open column."""
        assert self._own is not None
        return self._state_B["shift"] + (self._own.end - 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Decoding`."""
        assert self._own is not None and self._seats is not None
        own_key, own_value = self._own.write(layer, key, value, self._first)
        used = (slice(self._seats.num_prompts), slice(None), slice(self._longest))
        return shared_prefix_attention(
            query,
            own_key,
            own_value,
            self.table.keys[layer][used],
            self.table.values[layer][used],
            self._seats,
            bias_BT=self._bias_BT,
            bias_UL=self._bias_UL,
        )

    def end(self, is_end_V: np.ndarray) -> list[Ended]:
        """Those samples that the token drawn last has ended."""
        assert self._own is not None
        state_B = self._state_B
        says_so_B = is_end_V[state_B["token"]]
        said_B = self._own.end - state_B["start"] + 1
        ended_B = state_B["alive"] & (says_so_B | (said_B >= state_B["limit"]))
        ended = []
        for row in np.flatnonzero(ended_B).tolist():
            tokens, logprobs = np.empty(said_B[row], np.int64), np.empty(said_B[row], np.float32)
            tokens[:-1], logprobs[:-1] = self._own.said(row, int(state_B["start"][row]))
            tokens[-1], logprobs[-1] = state_B["token"][row], state_B["logprob"][row]
            task, says_so = self.tasks[row], bool(says_so_B[row])
            past = self._past(row, tokens) if task.may_go_on else None
            ended.append(Ended(task=task, token_ids=tokens, logprobs=logprobs, says_so=says_so, past=past))
        state_B["alive"][ended_B] = False
        self.num_alive -= len(ended)
        return ended

    def sweep(self) -> None:
        """Drops idle rows, and prompts that nobody reads, where they are too many. Some sample must be alive."""
        if self.num_rows - self.num_alive < _IDLE_ROWS_FRAC * self.num_rows:
            return
        assert self._own is not None
        kept = np.flatnonzero(self._state_B["alive"])
        self.tasks = [self.tasks[row] for row in kept.tolist()]
        self._draws = [self._draws[row] for row in kept.tolist()]
        self._own.select(kept)
        self._state_B = self._state_B[kept]
        self._forget_prompts()
        places = np.flatnonzero(self.table.lengths_U)
        most = max((1 - _IDLE_PLACES_FRAC) * len(self.table.lengths_U), (1 - _ROOM_FRAC) * self.table.num_places)
        if len(places) < most:
            self.table.select(places)
            self._state_B["place"] = places.searchsorted(self._state_B["place"])
            self._places = {key: int(places.searchsorted(place)) for key, place in self._places.items()}
        self._replan()

    def _past(self, row: int, tokens: np.ndarray) -> Past:
        assert self._own is not None
        prompt = self.tasks[row].prompt
        read = self.table.states(int(self._state_B["place"][row]))
        said = self._own.states(row, int(self._state_B["start"][row]))
        keys, values = (
            [torch.cat(two, dim=1) for two in zip(*both, strict=True)] for both in zip(read, said, strict=True)
        )
        return Past(
            token_ids=np.append(prompt.token_ids, tokens[:-1]),
            image_keys=tuple(image.key for image in prompt.images),
            keys=keys,
            values=values,
        )

    def _forget_prompts(self) -> None:
        read = set(self._state_B["place"].tolist())
        gone = [key for key, place in self._places.items() if place not in read]
        if gone:
            self.table.free(np.array([self._places.pop(key) for key in gone]))
            for key in gone:
                del self._hidden_H[key]

    def _replan(self) -> None:
        """What attention reads, as long as no row joins or goes."""
        lengths_U = self.table.lengths_U
        device = self.table.keys[0].device
        self._seats = Seats.of(self._state_B["place"], len(lengths_U), device)
        self._first = int(self._state_B["start"][self._state_B["alive"]].min())
        self._starts = self._bias_BT = self._bias_UL = None
        if (self._state_B["start"] > self._first).any():
            self._starts = torch.from_numpy(self._state_B["start"].copy()).to(device)
        self._longest = int(lengths_U.max())
        if (lengths_U < self._longest).any():
            hidden_UL = torch.from_numpy(np.arange(self._longest) >= lengths_U[:, None]).to(device)
            self._bias_UL = _bias(hidden_UL, self.table.keys[0].dtype)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where True, 0 elsewhere."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
