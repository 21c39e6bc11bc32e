"""Reading one field of an example's reference, with an error that says what the row holds instead."""

from collections.abc import Mapping
from typing import Any

from .score import BadReferenceError


def reference_field(reference: Mapping[str, Any], key: str) -> Any:
    """`reference[key]`. Raises `BadReferenceError` where the field is missing or None."""
    value = reference.get(key)
    if value is None:
        present = ", ".join(sorted(name for name, field in reference.items() if field is not None)) or "nothing"
        raise BadReferenceError(f"the reference has no {key!r} (it holds: {present})")
    return value


def reference_text(reference: Mapping[str, Any], key: str) -> str:
    """`reference[key]` as stripped text; numbers are written out. Raises `BadReferenceError` for anything else."""
    return as_text(reference_field(reference, key), key)


def reference_texts(reference: Mapping[str, Any], key: str) -> list[str]:
    """`reference[key]`, a text, a number or a list of such, as stripped texts. Raises `BadReferenceError` otherwise."""
    value = reference_field(reference, key)
    if not isinstance(value, list | tuple):
        return [as_text(value, key)]
    if not value:
        raise BadReferenceError(f"{key!r} is an empty list")
    return [as_text(item, key) for item in value]


def as_text(value: Any, key: str) -> str:
    """A reference value as stripped text. Raises `BadReferenceError` unless it is non-empty text or a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadReferenceError(f"{key!r} must be text or a number, got {value!r:.80}")
    text = str(value).strip()
    if not text:
        raise BadReferenceError(f"{key!r} is empty")
    return text
