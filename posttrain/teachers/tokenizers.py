"""Whether a teacher reads the student's token ids and patches as the student means them."""

import hashlib
import json

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.errors import TeacherError
from posttrain.model.loading import Processor


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raises TeacherError, naming the first token that differs, unless both have the same ids for all tokens.

    Added tokens count too. The rows of the two heads may differ: padding beyond the last token is never compared.
    """
    ours, theirs = _by_id(student), _by_id(teacher)
    if ours == theirs:
        return
    first = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    raise TeacherError(
        f"teacher '{name}' has another tokenizer than the student: token {first} is {_said(theirs.get(first))} there "
        f"and {_said(ours.get(first))} here; choose a teacher with the student's tokenizer, or distil this one's "
        "answers, with a stage of algorithm 'answers'"
    )


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for equal tokens at equal ids."""
    return hashlib.blake2b(json.dumps(sorted(_by_id(tokenizer).items())).encode(), digest_size=16).hexdigest()


def image_misfit(student: Processor, teacher: Processor) -> str | None:
    """What the teacher would misread in patches that were cut for the student; None where it reads the same pixels."""
    if isinstance(student, PreTrainedTokenizerBase) or isinstance(teacher, PreTrainedTokenizerBase):
        return None
    ours, theirs = student.image_processor.to_dict(), teacher.image_processor.to_dict()  # pyright: ignore
    for key in ("patch_size", "temporal_patch_size", "merge_size"):
        if ours[key] != theirs[key]:
            return f"reads images with {key} {theirs[key]}, the student with {ours[key]}"
    for key in ("image_mean", "image_std"):
        if not np.allclose(ours[key], theirs[key], rtol=0, atol=1e-6):
            return f"normalises images by {key} {list(theirs[key])}, the student by {list(ours[key])}"
    return None


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    return processor if isinstance(processor, PreTrainedTokenizerBase) else processor.tokenizer  # pyright: ignore


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def _said(token: str | None) -> str:
    return "missing" if token is None else repr(token)
