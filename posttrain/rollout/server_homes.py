"""Where prompts are known: later turns and other samples of a conversation find their prefix and images there."""

import hashlib

import numpy as np

from posttrain.rollout.server_member import Member


class Homes:
    """Which server knows a prompt: all samples and all later turns of a conversation begin with its first prompt."""

    def __init__(self) -> None:
        self._servers: dict[tuple[int, bytes], Member] = {}
        self._lengths: set[int] = set()

    def of(self, token_ids: np.ndarray) -> Member | None:
        for length in sorted(self._lengths, reverse=True):
            if length <= len(token_ids) and (home := self._servers.get(_key(token_ids, length))) is not None:
                return home
        return None

    def learn(self, token_ids: np.ndarray, server: Member) -> None:
        self._lengths.add(len(token_ids))
        self._servers[_key(token_ids, len(token_ids))] = server


def _key(token_ids: np.ndarray, length: int) -> tuple[int, bytes]:
    return length, hashlib.blake2b(np.ascontiguousarray(token_ids[:length]).tobytes(), digest_size=12).digest()
