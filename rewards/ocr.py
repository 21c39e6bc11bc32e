"""The `ocr` reward: how near is a transcription to what is written in the image?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .extraction import whole_answer
from .references import reference_texts
from .registry import register
from .score import BadReferenceError, Completion, Score
from .text_similarity import MAX_CHARS, edit_likeness
from .words import squeezed


@register("ocr")
@dataclass(frozen=True, slots=True, kw_only=True)
class OCRReward:
    r"""1 - normalised edit distance (NED) to the nearest reference, or ANLS.

    NED is the Levenshtein distance divided by the length of the longer text, after NFKC and with whitespace squeezed,
    upper and lower case apart. ANLS (Biten et al. 2019, arXiv 1905.13648) ignores case, and gives 0 from a NED of
    `threshold` up: a document question is answered or it is not. Line breaks between Chinese characters do not count.
    The answer is the last `<answer>`, else the last `\boxed{...}`, else what follows the thoughts; a code fence around
    all of it is opened.
    """

    answer_key: str = "answer"
    """The reference field: a text, or a list of which the nearest counts."""
    measure: Literal["ned", "anls"] = "ned"
    """ned for transcription, anls for questions about documents."""
    threshold: float = 0.5
    """ANLS alone: the NED from which an answer earns 0."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        golds = self._golds(reference)
        answer = whole_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason="the thought was never closed")
        if len(answer) > MAX_CHARS:
            return Score(value=0.0, reason=f"an answer of {len(answer):,} characters is not read")
        said = self._normal(_unfenced(answer))
        similarity = max(edit_likeness(said, gold) for gold in golds)
        value = similarity if self.measure == "ned" or 1 - similarity < self.threshold else 0.0
        return Score(value=value, parts={"ned": 1 - similarity, "exact": float(said in golds)})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The (first) reference in an `<answer>` tag. Raises `BadReferenceError` where there is none."""
        self._golds(reference)
        return f"<answer>{reference_texts(reference, self.answer_key)[0]}</answer>"

    def _golds(self, reference: Mapping[str, Any]) -> list[str]:
        golds = [self._normal(text) for text in reference_texts(reference, self.answer_key)]
        if max(map(len, golds)) > MAX_CHARS:
            raise BadReferenceError(f"{self.answer_key!r} is longer than {MAX_CHARS:,} characters")
        return golds

    def _normal(self, text: str) -> str:
        text = squeezed(text)
        return text.lower() if self.measure == "anls" else text


def _unfenced(answer: str) -> str:
    """What stands in a code fence that is all of the answer; else the answer."""
    answer = answer.strip()
    first_line, newline, rest = answer.partition("\n")
    if not (newline and first_line.startswith("```") and rest.endswith("```") and answer.count("```") == 2):
        return answer
    return rest.removesuffix("```")
