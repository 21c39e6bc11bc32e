"""Functions become tools with the schema of transformers; arguments are checked before a call."""

from typing import Any, Literal

import pytest
from PIL import Image
from transformers.utils import get_json_schema

from posttrain.environments import Tool, ToolContext, ToolError, tool_from_function
from posttrain.errors import ConfigError
from posttrain.records import Example


def weather(city: str, days: int = 3, unit: Literal["C", "F"] = "C", at: list[float] | None = None) -> str:
    """Forecast for a city.

    Over several days.

    Args:
        city: Its name
        days: How many days,
            from today
        unit: Of the temperature
        at: Latitude and longitude
    """
    return f"{city} {days} {unit} {at}"


def test_the_schema_is_that_of_transformers() -> None:
    made, theirs = tool_from_function(weather).schema, get_json_schema(weather)
    theirs["function"].pop("return", None)
    assert made == theirs
    assert made["function"]["parameters"]["required"] == ["city"]


def test_methods_and_context_are_not_arguments() -> None:
    class Shop:
        def price(self, item: str, context: ToolContext) -> float:
            """Price of an item.

            Args:
                item: Its name
            """
            return len(item) + len(context.images)

    tool = tool_from_function(Shop().price)
    assert tool.name == "price"
    assert list(tool.parameters["properties"]) == ["item"]
    context = ToolContext(example=_example(), images=(), num_prompt_images=0)
    assert tool.call({"item": "tea"}, context) == 3
    assert tool.argument_problem({"item": "tea", "context": 1}) == "price takes no argument 'context'; known are: item"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"city": "Rome"}, None),
        ({"city": "Rome", "days": 2, "unit": "F", "at": [1, 2.5]}, None),
        ({"city": "Rome", "at": None}, None),
        ({"city": "Rome", "days": 2.0}, None),  # JSON has one kind of number
        ({}, "weather lacks its argument 'city'"),
        ({"town": "Rome"}, "weather takes no argument 'town'; known are: city, days, unit, at"),
        ({"city": "Rome", "day": 2}, "weather takes no argument 'day'; did you mean 'days'?"),
        ({"city": 3}, "weather: 'city' must be string, got 3"),
        ({"city": "Rome", "days": "2"}, "weather: 'days' must be integer, got '2'"),
        ({"city": "Rome", "days": 2.5}, "weather: 'days' must be integer, got 2.5"),
        ({"city": "Rome", "days": True}, "weather: 'days' must be integer, got True"),
        ({"city": "Rome", "unit": "K"}, "weather: 'unit' must be one of 'C', 'F', got 'K'"),
        ({"city": "Rome", "at": [1, "x"]}, "weather: 'at' must be array or null, got [1, 'x']"),
        ({"city": "Rome", "days": "9" * 500}, f"weather: 'days' must be integer, got '{'9' * 76}..."),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], problem: str | None) -> None:
    assert tool_from_function(weather).argument_problem(arguments) == problem


def test_an_item_of_a_list_is_named() -> None:
    schema = {
        "type": "object",
        "properties": {"box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}},
    }
    tool = Tool(name="look", description="", parameters=schema, function=print)
    assert tool.argument_problem({"box": [1, 2, "3", 4]}) == "look: 'box[2]' must be number, got '3'"
    assert tool.argument_problem({"box": [1, 2, 3]}) == "look: 'box' must have at least 4 items, got 3"
    assert tool.argument_problem({"box": [1] * 5}) == "look: 'box' must have at most 4 items, got 5"
    assert tool.argument_problem({"box": [1, False, 3, 4]}) == "look: 'box[1]' must be number, got False"


def test_further_arguments_can_be_allowed() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}}
    tool = Tool(name="look", description="", parameters=schema, function=print)
    assert tool.argument_problem({"x": 1}) is None
    assert tool.argument_problem({"x": "1"}) == "look: 'x' must be integer, got '1'"


def no_docstring(x: int) -> int:
    return x


def undescribed(x: int) -> int:
    """Says nothing of x."""
    return x


def untyped(x) -> int:  # pyright: ignore[reportMissingParameterType]
    """D.

    Args:
        x: d
    """
    return x


def any_number(*x: int) -> int:
    """D."""
    return sum(x)


def takes_image(picture: Image.Image) -> int:
    """D.

    Args:
        picture: d
    """
    return picture.width


def takes_class(row: Example) -> int:
    """D.

    Args:
        row: d
    """
    return len(row.images)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_docstring, "no docstring"),
        (undescribed, "argument 'x'"),
        (untyped, "no type hint"),
        (any_number, "cannot be given by name"),
        (takes_image, "take img_idx"),
        (takes_class, "wanted int, float"),
        (print, "cannot be given by name"),
    ],
)
def test_a_function_that_is_no_tool_says_why(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tool_from_function(function)


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no JSON schema"):
        Tool(name="x", description="", parameters={"properties": {"a": {"type": "numbr"}}}, function=print)
    with pytest.raises(ConfigError, match="needs a name"):
        Tool(name="", description="", parameters={}, function=print)


@pytest.mark.parametrize("img_idx", [2, -1, 10**30, 2.0, 1.5, float("nan"), True, "0", None, [0]])
def test_an_image_that_is_not_there_is_named(img_idx: Any) -> None:
    images = (Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9)))
    context = ToolContext(example=_example(), images=images, num_prompt_images=1)
    assert context.image(1) is images[1]
    with pytest.raises(ToolError, match="img_idx"):
        context.image(img_idx)


def test_without_images_there_is_none_to_name() -> None:
    with pytest.raises(ToolError, match="has no images"):
        ToolContext(example=_example(), images=(), num_prompt_images=0).image(0)


def _example() -> Example:
    return Example(id="1", task="t", messages=({"role": "user", "content": "?"},))
