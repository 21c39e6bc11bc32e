"""Options of registered classes: a value checked against its annotation, and the line that documents a field."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any, get_args, get_origin


def checked_value(value: Any, hint: Any, what: str) -> Any:
    """The value, where it has the annotated type: "5" is no number, 1 is no bool, 5 is a float, a list is a tuple.

    Raises ValueError, naming `what`.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(value, list) and tuple in (get_origin(hint), *map(get_origin, get_args(hint))):
        value = tuple(value)  # YAML writes tuples as lists
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ValueError(f"{what} got {value!r:.80}, wanted {wanted}") from None


def field_docs(cls: Any) -> dict[str, str]:
    """The line under each field, read from the source; empty where there is no source (a class typed at a prompt)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs: dict[str, str] = {}
    for above, below in pairwise(body):
        match above, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = inspect.cleandoc(doc)
    return docs
