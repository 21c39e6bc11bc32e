"""Two mathematical answers brought into one notation: one unit, one order of parts, what algebra can read."""

from .math_names import as_tuples
from .math_rewrites import as_union, spread
from .math_shapes import align
from .quantities import without_units


def comparable(gold: str, given: str) -> tuple[str, str] | None:
    """The two answers as algebra compares them; None where they are of different kinds, and so not equal."""
    numbers = without_units(gold, given)
    if numbers is None:
        return None
    gold, given = (spread(number) for number in numbers)
    unions = as_union(gold), as_union(given)
    gold, given = unions[0] or gold, unions[1] or given
    named = as_tuples(gold, given)
    if named is None:
        return None
    gold, given = named
    aligned = align(gold, given)
    return None if aligned is None else (gold, aligned)
