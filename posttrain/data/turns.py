"""The assistant's turns of a conversation: what is read before each, what it says, and which stay in one sequence."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from posttrain.errors import CheckpointError, DataError
from posttrain.model import TokenSequence
from posttrain.records import Example, Message

Template = Callable[[Sequence[Message], bool], str]
"""(messages, with generation prompt) -> text."""
Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One assistant turn as text."""

    index: int
    """Of its message."""
    prompt: str
    """All that the model reads before it speaks."""
    said: str
    """All that it must say, the end-of-turn token included."""
    is_trained: bool
    """False for a turn of the weight 0, which is there to be read."""


def turns_of(example: Example, template: Template, turn_ends: tuple[str, ...]) -> list[Turn]:
    """Every assistant turn. Raises DataError where one cannot be rendered as the model would say it."""
    turns = []
    for k, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        prompt = template(example.messages[:k], True)
        through = template(example.messages[: k + 1], False)
        if not through.startswith(prompt):
            raise DataError(
                f"{example.id}: the chat template does not write turn {k + 1} after its own generation prompt "
                f"(which ends in {prompt[-40:]!r}); enable_thinking may not suit this data"
            )
        said = through[len(prompt) :].rstrip("\n")
        if not said.endswith(turn_ends):
            raise CheckpointError(
                f"the chat template ends a turn with {said[-20:]!r}, but generation stops at "
                f"{' or '.join(turn_ends)}: a model trained so would not stop"
            )
        _check_kept(message, prompt[-100:] + said, example)
        turns.append(Turn(index=k, prompt=prompt, said=said, is_trained=message.get("weight") != 0))
    if not any(turn.is_trained for turn in turns):
        raise DataError(f"{example.id}: has no assistant turn to train on")
    return turns


def stretches_of(turns: Sequence[Turn], encode: Encode) -> list[list[Turn]]:
    """Turns in sequence, split where the next prompt does not continue this turn, in text or in tokens."""
    stretches = [[turns[0]]]
    for before, after in pairwise(turns):
        if after.prompt.startswith(before.prompt + before.said):
            stretches[-1].append(after)
        else:
            stretches.append([after])
    return [piece for stretch in stretches for piece in _split_by_tokens(stretch, encode)]


def pieces_of(stretch: Sequence[Turn], encode: Encode) -> list[tuple[list[int], bool]]:
    """Token ids and whether they are trained, alternating: what is read before a turn, and the turn."""
    pieces, done = [], ""
    for turn in stretch:
        pieces.append((encode(turn.prompt[len(done) :]), False))
        pieces.append((encode(turn.said), turn.is_trained))
        done = turn.prompt + turn.said
    return pieces


def shared_prefix(sequences: Sequence[TokenSequence], image_token_id: int | None) -> int:
    """Leading tokens that all the sequences share, before anything trained, and never a part of an image.

    For a single sequence: all that comes before its first trained token, which sequences of other rows may share.
    """
    length = min(int(s.mask.argmax()) for s in sequences)
    first = sequences[0].token_ids[:length]
    for sequence in sequences[1:]:
        differs = np.flatnonzero(first != sequence.token_ids[: len(first)])
        first = first[: differs[0]] if len(differs) else first
    length = len(first)
    if length and any(s.token_ids[length] == image_token_id for s in sequences):
        while length and first[length - 1] == image_token_id:
            length -= 1
    return length


def _split_by_tokens(stretch: list[Turn], encode: Encode) -> list[list[Turn]]:
    # Said on its own, an answer that begins with a line break has other tokens than it has inside the next prompt,
    # where that line break melts into the one before it. Equal tokens of the longest prompt mean that every boundary
    # is one of tokens too.
    if len(stretch) > 1:
        pieces = [ids for ids, _ in pieces_of(stretch, encode)][:-1]
        if [i for ids in pieces for i in ids] != encode(stretch[-1].prompt):
            return [[turn] for turn in stretch]
    return [stretch]


def _check_kept(message: Message, rendered: str, example: Example) -> None:
    """Raises where the template leaves out words of a turn: some drop thoughts, or every content that is a list."""
    words = re.sub(r"\s", "", message["content"])
    if words not in re.sub(r"\s", "", rendered):
        raise DataError(
            f"{example.id}: the chat template leaves out words of the answer {message['content'][:60]!r} "
            "(thoughts, perhaps); mend the data or use another template"
        )
