"""What a vLLM server says of a prompt's tokens, read with suspicion: numbers that are not sure are an error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.errors import TeacherError
from posttrain.model import TokenSequence
from posttrain.teachers.teacher import TopScores

_LEAST_TAIL = 1e-6
"""Probability. What k float32 numbers leave of 1 is rounding below this: a tail is never said to hold less."""
_TOO_SURE = 1e-4
"""Nats above 0 that rounding may give a log-probability."""
_TOO_MUCH = 1e-3
"""Probability above 1 that rounding may give the k likeliest tokens together."""
_NO_CHANCE = -9999.0
"""What vLLM writes for minus infinity, which JSON does not have."""


def check_tokens(read: Any, sequence: TokenSequence, *, who: str) -> None:
    """Raises TeacherError unless the server has read exactly the sequence's tokens, images expanded."""
    ours = sequence.token_ids.tolist()
    if read == ours:
        return
    if not isinstance(read, list):
        raise TeacherError(
            f"{who} does not say which tokens it has read: scores want vLLM 0.30 or later, which knows return_token_ids"
        )
    place = next((t for t, (a, b) in enumerate(zip(read, ours, strict=False)) if a != b), min(len(read), len(ours)))
    said = f"read {len(read)} tokens where the student has {len(ours)}, other ones from token {place} on"
    if sequence.images:
        raise TeacherError(
            f"{who} {said}: it must cut images as the student does; want the same patch size, limits of pixels that "
            "admit the student's, and --enable-scale-out"
        )
    raise TeacherError(f"{who} {said}: what stands between, or the server, changes prompts")


def top_scores_of(found: Any, sequence: TokenSequence, top_k: int, *, vocab_size: int, who: str) -> TopScores:
    """The `top_k` likeliest tokens by the server's own ranks, and the tail, log(1 - what they have together).

    The tail is at least log(1e-6) = -13.8 nats, and -inf where `top_k` is `vocab_size`, the rows of the student's head.
    Raises TeacherError for numbers that cannot be a distribution, and for tokens that the student does not have.
    """
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    for place, entry in _trained(found, sequence, who):
        try:
            row = _ranked(entry, int(sequence.token_ids[place]))
            chosen = [row[rank] for rank in range(1, top_k + 1)]
        except (KeyError, TypeError, ValueError):
            raise TeacherError(
                f"{who} gave token {place} no {top_k} likeliest tokens with ranks, as vLLM does: {_short(entry)}"
            ) from None
        ids.append([token for token, _ in chosen])
        logprobs.append([number for _, number in chosen])
    ids_NK = np.array(ids, dtype=np.int32).reshape(-1, top_k)
    logprobs_NK = _checked(logprobs, who).reshape(-1, top_k)
    if ids_NK.size and (ids_NK.min() < 0 or ids_NK.max() >= vocab_size):
        raise TeacherError(
            f"{who} counts token {ids_NK.max()} among its {top_k} likeliest, but the student's head has {vocab_size} "
            "rows: lower top_k, or choose a teacher whose head has as many"
        )
    total_N = np.exp(logprobs_NK).sum(axis=1)
    if (total_N > 1 + _TOO_MUCH).any():
        raise TeacherError(f"{who} gave {top_k} tokens a probability of {total_N.max():.3f} together: {_LOGITS}")
    whole = top_k == vocab_size
    tail_N = np.full(len(total_N), -np.inf) if whole else np.log(np.maximum(1 - total_N, _LEAST_TAIL))
    return TopScores(token_ids_NK=ids_NK, logprobs_NK=logprobs_NK.astype(np.float32), tail_N=tail_N.astype(np.float32))


def logprobs_of(found: Any, sequence: TokenSequence, *, who: str) -> np.ndarray:
    """[N] float32: of the trained tokens themselves. Raises TeacherError for numbers that are no log-probabilities."""
    numbers = []
    for place, entry in _trained(found, sequence, who):
        try:
            numbers.append(entry[str(sequence.token_ids[place])]["logprob"])
        except (KeyError, TypeError):
            raise TeacherError(f"{who} gave token {place} no log-probability: {_short(entry)}") from None
    return _checked(numbers, who).astype(np.float32)


_LOGITS = "these are no log-probabilities; start it with --logprobs-mode raw_logprobs"


def _trained(found: Any, sequence: TokenSequence, who: str) -> list[tuple[int, dict[str, Any]]]:
    """The places of the trained tokens, and the entry of each, in which the token itself must be."""
    if not isinstance(found, list) or len(found) != sequence.num_tokens:
        got = f"{len(found)} entries" if isinstance(found, list) else "nothing"
        raise TeacherError(f"{who} gave {got} for the {sequence.num_tokens} tokens of a prompt, want one for each")
    entries = []
    for place in np.flatnonzero(sequence.mask).tolist():
        entry = found[place]
        if not isinstance(entry, dict):
            raise TeacherError(f"{who} gave {_short(entry)} for token {place}, want its log-probabilities")
        if str(sequence.token_ids[place]) not in entry:
            raise TeacherError(
                f"{who} gave log-probabilities for token {place} without the token {sequence.token_ids[place]} that "
                "stands there: they belong to other places of the prompt"
            )
        entries.append((place, entry))
    return entries


def _ranked(entry: dict[str, Any], own: int) -> dict[int, tuple[int, float]]:
    """{rank: (token id, nats)}. The token that stands there is added to the likeliest, and may tie with one of them:
    that one has its rank then."""
    likeliest = {score["rank"]: (int(token), score["logprob"]) for token, score in entry.items() if int(token) != own}
    score = entry[str(own)]
    return {score["rank"]: (own, score["logprob"]), **likeliest}


def _checked(numbers: Sequence[Any], who: str) -> np.ndarray:
    """float64, none of them above 0."""
    try:
        values = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise TeacherError(f"{who} gave log-probabilities that are no numbers: {_short(numbers)}") from None
    if np.isnan(values).any() or (values <= _NO_CHANCE).any() or np.isposinf(values).any():
        raise TeacherError(
            f"{who} gave log-probabilities that are not finite: its weights are damaged, or values overflow; start it "
            "with --dtype bfloat16 or float32"
        )
    if (values > _TOO_SURE).any():
        raise TeacherError(f"{who} gave a log-probability of {values.max():.3f}, above 0: {_LOGITS}")
    return np.minimum(values, 0.0)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + " ..."
