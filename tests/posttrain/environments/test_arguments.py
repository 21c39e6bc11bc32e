"""Arguments of calls arrive as the function's hints say: tuples of their length, whole numbers as such."""

from typing import Any, Literal

import pytest
from PIL import Image

from posttrain.environments import (
    Observation,
    Tool,
    ToolContext,
    ToolEnvironment,
    ToolError,
    parse_reply,
    tool_from_function,
)
from posttrain.environments.arguments import fitted
from posttrain.errors import ConfigError
from posttrain.records import Example

EXAMPLE = Example(id="1", task="t", messages=({"role": "user", "content": "?"},))
CONTEXT = ToolContext(example=EXAMPLE, images=(Image.new("RGB", (8, 8)),), num_prompt_images=1)


def draw(n: int, pair: tuple[int, int], path: tuple[float, ...] = (), box: tuple[int, int] | None = None) -> Any:
    """Draw.

    Args:
        n: how many
        pair: two
        path: any number
        box: two, or none
    """
    return n, pair, path, box


@pytest.mark.parametrize(
    ("value", "hint", "made"),
    [
        (1.0, int, 1),
        (1e30, int, int(1e30)),
        (1.5, int, 1.5),
        (1.0, float, 1.0),
        (10**400, float, 10**400),
        (1.0, int | None, 1),
        (1.0, int | float, 1.0),
        (1.0, Any, 1.0),
        (True, int, True),
        (1.0, Literal[1, 2], 1.0),
        (None, tuple[int, int] | None, None),
        ([1, 2.0], tuple[int, int] | None, (1, 2)),
        ([1.0, 2], tuple[int, ...], (1, 2)),
        ([], tuple[int, ...], ()),
        ([1, "a"], tuple, (1, "a")),
        ([1.0], list[int], [1]),
        ([1.0], list, [1.0]),
        ({"a": [1.0, 2]}, dict[str, tuple[int, int]], {"a": (1, 2)}),
        ("text", list[int] | str, "text"),
    ],
)
def test_a_value_becomes_what_its_hint_says(value: Any, hint: Any, made: Any) -> None:
    found = fitted(value, hint)
    assert found == made and type(found) is type(made)


@pytest.mark.parametrize("pair", [[1], [1, 2, 3, 4], []])
def test_a_tuple_has_its_length(pair: list[int]) -> None:
    problem = tool_from_function(draw).argument_problem({"n": 1, "pair": pair})
    bound = "least" if len(pair) < 2 else "most"
    assert problem == f"draw: 'pair' must have at {bound} 2 items, got {len(pair)}"


def test_the_schema_says_the_length_of_tuples() -> None:
    properties = tool_from_function(draw).parameters["properties"]
    assert (properties["pair"]["minItems"], properties["pair"]["maxItems"]) == (2, 2)
    assert (properties["box"]["minItems"], properties["box"]["maxItems"]) == (2, 2)
    assert properties["path"]["type"] == "array" and "maxItems" not in properties["path"]


def test_the_function_gets_tuples_and_whole_numbers() -> None:
    tool = tool_from_function(draw)
    arguments = {"n": 1.0, "pair": [1, 2.0], "path": [0.5, 1], "box": [3, 4]}
    assert tool.argument_problem(arguments) is None
    n, pair, path, box = tool.call(arguments, CONTEXT)
    assert (n, pair, path, box) == (1, (1, 2), (0.5, 1), (3, 4))
    assert type(n) is int and type(pair[1]) is int
    assert tool.argument_problem({"n": 1, "pair": [1, 2], "box": [3]}) is not None


def test_a_schema_of_ones_own_says_which_numbers_are_whole() -> None:
    item = {"type": "array", "items": {"type": "integer"}}
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}, "x": {"type": "number"}, "path": item}}
    tool = Tool(name="see", description="", parameters=parameters, function=lambda **given: given)
    made = tool.call({"n": 2.0, "x": 2.0, "path": [1.0]}, CONTEXT)
    assert [type(value) for value in (made["n"], made["x"], made["path"][0])] == [int, float, int]


def test_an_image_may_be_named_by_a_whole_float() -> None:
    assert CONTEXT.image(0.0) is CONTEXT.images[0]
    environment = ToolEnvironment(tools=["image_zoom_in_tool"])
    picture = Image.new("RGB", (64, 64))
    shown = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    environment.start(Example(id="1", task="t", messages=(shown,), images=(picture,)))
    written = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 9e2, 900], "label": "x", "img_idx": 0.0}}'
    seen = environment.step(parse_reply(f"<tool_call>\n{written}\n</tool_call>"))
    assert isinstance(seen, Observation) and seen.calls[0].error == ""


def test_a_generator_is_no_tool() -> None:
    def lines() -> Any:
        """Lines."""
        yield "one"

    async def later() -> Any:
        """Lines."""
        yield "one"

    for function in (lines, later):
        with pytest.raises(ConfigError, match="is a generator, whose items nobody reads; let it return a list"):
            tool_from_function(function)


@pytest.mark.parametrize("side", [5e-324, 1e-320, 1.1e-308, 1e-300])
def test_a_box_of_hardly_any_height_is_a_sentence(side: float) -> None:
    tool = ToolEnvironment(tools=["image_zoom_in_tool"])._tools["image_zoom_in_tool"]
    with pytest.raises(ToolError, match="bbox_2d"):
        tool.call({"bbox_2d": [0, 0, 1000, side], "label": "", "img_idx": 0}, CONTEXT)
