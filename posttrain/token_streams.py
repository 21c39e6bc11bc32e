"""What training knew of each token of a step's trajectories, kept while it trains, for the report's colours."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from posttrain.model import PackedRow, TokenSequence
from posttrain.objectives import ADVANTAGES, OLD_LOGPROBS, ROLLOUT_LOGPROBS
from posttrain.records import Trajectory
from posttrain.report import TokenStreams


class StepStreams:
    """Takes in what an objective says of the tokens of each packed row; gives it out by trajectory.

    A trajectory is known by its array of tokens, which its sequence shares.
    """

    def __init__(self) -> None:
        self._of: dict[int, dict[str, np.ndarray]] = {}

    def add(self, sequences: Sequence[TokenSequence], row: PackedRow, named: Mapping[str, Tensor]) -> None:
        """sequences: those that were packed. named: [T] of the row's trained tokens, keys of `TokenStreams`."""
        index_T = row.sequence_index_T.cpu().numpy()
        values = {name: tensor.detach().float().cpu().numpy() for name, tensor in named.items()}
        for place, i in enumerate(row.sequence_ids):
            sequence = sequences[i]
            own = self._of.setdefault(id(sequence.token_ids), _trainers_own(sequence))
            for name, values_T in values.items():
                own[name] = _spread(sequence, values_T[index_T == place])

    def of(self, trajectories: Sequence[Trajectory]) -> list[TokenStreams | None]:
        """Streams of each; None for one that was not trained on."""
        return [
            TokenStreams(**found) if (found := self._of.get(id(trajectory.token_ids))) is not None else None
            for trajectory in trajectories
        ]


def _trainers_own(sequence: TokenSequence) -> dict[str, np.ndarray]:
    """What the sequence brought along; the trainer's log-probabilities only where they were reckoned anew."""
    streams = sequence.streams
    found = {"advantages_T": streams[ADVANTAGES]} if ADVANTAGES in streams else {}
    old = streams.get(OLD_LOGPROBS)
    if old is not None and old is not streams.get(ROLLOUT_LOGPROBS):
        found["trainer_logprobs_T"] = old
    return found


def _spread(sequence: TokenSequence, values: np.ndarray) -> np.ndarray:
    """[tokens] with the values at the trained ones."""
    spread = np.zeros(sequence.num_tokens, dtype=np.float32)
    spread[sequence.mask] = values
    return spread
