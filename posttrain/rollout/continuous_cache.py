"""Keys and values in tables with room: those of prompts, which samples share, and those of the tokens each one says.

What joins is written where something else has left, or at the end; nothing that stays is copied, but when a table must
grow. Entries that nobody reads are finite all the same: a weight of zero times them is zero.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class PromptTable:
    """Keys and values of prompts, each at a place of its own.

    `keys` and `values` hold one [places, kv heads, length, D] for each layer; a prompt fills the first tokens of its
    place. There may be room behind the places in use, and behind the longest prompt.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.lengths_U = np.zeros(0, np.int64)
        """Tokens of the prompt at each place; 0 where the place is free."""

    def put(self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths_N: np.ndarray) -> np.ndarray:
        """The places [N] of new prompts, whose keys are [N, kv heads, L, D] for each layer."""
        if not self.lengths_U.any():
            self.keys, self.values, self.lengths_U = list(keys), list(values), lengths_N.copy()
            return np.arange(len(lengths_N))
        num_new, longest = len(lengths_N), int(lengths_N.max())
        places = np.flatnonzero(self.lengths_U == 0)[:num_new]
        places = np.append(places, len(self.lengths_U) + np.arange(num_new - len(places)))
        self._make_room(max(len(self.lengths_U), int(places[-1]) + 1), longest)
        index = torch.from_numpy(places).to(self.keys[0].device)
        for held, new in zip((*self.keys, *self.values), (*keys, *values), strict=True):
            held[:, :, :longest].index_copy_(0, index, new[:, :, :longest])
        self.lengths_U[places] = lengths_N
        return places

    def states(self, place: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values [kv heads, length, D] of the prompt at a place, for each layer: views."""
        length = int(self.lengths_U[place])
        return [k[place, :, :length] for k in self.keys], [v[place, :, :length] for v in self.values]

    def free(self, places: np.ndarray) -> None:
        """Gives places back. Free ones at the end are no longer read."""
        self.lengths_U[places] = 0
        used = np.flatnonzero(self.lengths_U)
        self.lengths_U = self.lengths_U[: used[-1] + 1 if len(used) else 0]

    @property
    def num_places(self) -> int:
        """Those that there is memory for."""
        return self.keys[0].shape[0]

    def select(self, places: np.ndarray) -> None:
        """Keeps these places alone, in this order: the n-th of them becomes place n."""
        index = torch.from_numpy(places).to(self.keys[0].device)
        for tensors in (self.keys, self.values):
            for layer, held in enumerate(tensors):
                tensors[layer] = held[index]
        self.lengths_U = self.lengths_U[places]

    def _make_room(self, num_places: int, length: int) -> None:
        self.lengths_U = np.append(self.lengths_U, np.zeros(num_places - len(self.lengths_U), np.int64))
        places, heads, room, _ = self.keys[0].shape
        if num_places <= places and length <= room:
            return
        # A quarter more places, an eighth more tokens: they come one by one, and each time everything is copied.
        places = max(places, num_places + num_places // 4 if num_places > places else 0)
        room = max(room, length + length // 8 if length > room else 0)
        for tensors in (self.keys, self.values):
            for layer, held in enumerate(tensors):
                tensors[layer] = held.new_zeros(places, heads, room, held.shape[-1])
                tensors[layer][: held.shape[0], :, : held.shape[2]] = held


class OwnTable:
    """The tokens that samples have said, with their keys and values: a row is a sample, a column a step.

    `keys` and `values` hold one [rows, kv heads, columns, D] for each layer. All rows write the same column at a time;
    a sample that joined late has nothing in the columns before. Columns are counted since the table was made.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """keys, values: of prompts, for the heads, width, dtype and device of each layer."""
        self.keys = [_zeros_like(held, 0, 0) for held in keys]
        self.values = [_zeros_like(held, 0, 0) for held in values]
        self.tokens = np.zeros((0, 0), np.int64)
        self.logprobs = np.zeros((0, 0), np.float32)
        self.num_rows, self.end = 0, 0
        self._first = 0
        """The column at the tensors' index 0."""

    def set_rows(self, num_rows: int) -> None:
        rows, columns = self.tokens.shape
        if num_rows > rows:
            self._resize(num_rows + (num_rows // 4 if rows else 0), columns, self._first)
        self.num_rows = num_rows

    def open_column(self, tokens_B: np.ndarray, logprobs_B: np.ndarray, first: int) -> None:
        """Begins a step, in which every row says one token. Columns before `first` are read no more."""
        rows, columns = self.tokens.shape
        if self.end - self._first == columns:
            kept = self.end - first
            self._resize(rows, kept + max(32, kept // 2), first)
        place = self.end - self._first
        self.tokens[: self.num_rows, place] = tokens_B
        self.logprobs[: self.num_rows, place] = logprobs_B
        self.end += 1

    def write(self, layer: int, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Puts [B, kv heads, 1, D] in the open column; gives back [B, kv heads, end - first, D], columns from `first`.

        Views: nothing is copied.
        """
        place = self.end - self._first
        keys, values = self.keys[layer][: self.num_rows], self.values[layer][: self.num_rows]
        keys[:, :, place - 1 : place] = key
        values[:, :, place - 1 : place] = value
        return keys[:, :, first - self._first : place], values[:, :, first - self._first : place]

    def said(self, row: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities of a row, from column `first` on."""
        columns = slice(first - self._first, self.end - self._first)
        return self.tokens[row, columns], self.logprobs[row, columns]

    def states(self, row: int, first: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values [kv heads, columns, D] of a row from column `first` on, for each layer: views."""
        part = slice(first - self._first, self.end - self._first)
        return [k[row, :, part] for k in self.keys], [v[row, :, part] for v in self.values]

    def select(self, rows: np.ndarray) -> None:
        """Keeps these rows alone, in this order."""
        index = torch.from_numpy(rows).to(self.keys[0].device)
        for tensors in (self.keys, self.values):
            for layer, held in enumerate(tensors):
                tensors[layer] = held[index]
        self.tokens, self.logprobs, self.num_rows = self.tokens[rows], self.logprobs[rows], len(rows)

    def _resize(self, rows: int, columns: int, first: int) -> None:
        """Column `first` comes to lie at index 0."""
        kept = (slice(self.num_rows), slice(self.end - first))
        dropped = (slice(self.num_rows), slice(first - self._first, self.end - self._first))
        for tensors in (self.keys, self.values):
            for layer, held in enumerate(tensors):
                tensors[layer] = _zeros_like(held, rows, columns)
                tensors[layer].transpose(1, 2)[kept] = held.transpose(1, 2)[dropped]
        tokens, logprobs = np.zeros((rows, columns), np.int64), np.zeros((rows, columns), np.float32)
        tokens[kept], logprobs[kept] = self.tokens[dropped], self.logprobs[dropped]
        self.tokens, self.logprobs, self._first = tokens, logprobs, first


def _zeros_like(held: Tensor, rows: int, columns: int) -> Tensor:
    return held.new_zeros(rows, held.shape[1], columns, held.shape[3])
