"""Environments and tools are made from names, mappings, paths, classes and factories; what is wrong is named."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.environments import (
    Done,
    Environment,
    Opening,
    Reply,
    Tool,
    ToolContext,
    ToolEnvironment,
    available_environments,
    available_tools,
    describe_environment,
    describe_tool,
    make_environment_factory,
    make_tool,
    register_environment,
    register_tool,
)
from posttrain.errors import ConfigError
from posttrain.records import Example

EXAMPLE = Example(id="1", task="t", messages=({"role": "user", "content": "?"},))


class Guess:
    """An environment as a user writes it."""

    def __init__(self, *, low: int = 1, high: int = 10, name: str | None = None) -> None:
        self.low, self.high, self.name = low, high, name
        self.closed = False

    def validate(self, example: Example) -> None: ...

    def start(self, example: Example) -> Opening:
        return Opening(messages=example.messages)

    async def step(self, reply: Reply) -> Done:
        return Done()

    async def close(self) -> None:
        self.closed = True


class Lacking:
    def start(self, example: Example) -> Opening:
        return Opening(messages=example.messages)


def guess_between(low: int, high: int) -> Guess:
    return Guess(low=low, high=high)


def double(x: int) -> int:
    """Twice a number.

    Args:
        x: The number
    """
    return 2 * x


def test_what_is_registered() -> None:
    assert {"tools", "trl"} <= set(available_environments())
    assert {"image_enhance", "image_rotate", "image_zoom_in_tool", "python", "select_frames"} <= set(available_tools())


def test_every_option_of_what_is_registered_has_a_line_that_explains_it() -> None:
    options = [option for name in ("tools", "trl") for option in describe_environment(name)]
    options += [option for name in available_tools() for option in describe_tool(name)]
    assert len(options) > 15
    assert [option.name for option in options if not option.doc] == []


def test_options_are_described() -> None:
    tools, *others = describe_environment("tools")
    assert (tools.name, tools.required) == ("tools", True)
    assert {option.name: option.default for option in others}["overview"] == 1
    assert describe_tool("image_rotate") == []


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "tools", "tools": ["image_zoom_in_tool", {"name": "select_frames", "max_frames": 2}], "overview": 4},
        {"name": "tools", "tools": (double,)},
        Guess,
        lambda: Guess(high=3),
    ],
)
def test_a_factory_makes_a_new_environment_each_time(spec: Any) -> None:
    factory = make_environment_factory(spec)
    first, second = factory(), factory()
    assert first is not second and isinstance(first, Environment)


def test_a_module_and_its_class_or_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_environments.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    made = make_environment_factory({"name": "my_environments:Guess", "high": 3})()
    assert vars(made) | {"closed": False} == {"low": 1, "high": 3, "name": None, "closed": False}
    assert vars(make_environment_factory({"name": "my_environments:guess_between", "low": 4, "high": 5})())["low"] == 4
    assert make_tool("my_environments:double").name == "double"
    with pytest.raises(ConfigError, match="no 'Gues'; did you mean 'Guess'"):
        make_environment_factory("my_environments:Gues")
    with pytest.raises(ConfigError, match="no module 'your_environments'"):
        make_environment_factory("your_environments:Guess")
    del sys.modules["my_environments"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tool", "there is no environment 'tool'; did you mean 'tools'?"),
        ("tools", "needs the option tools"),
        ({"tools": ["python"]}, "needs a 'name'"),
        ({"name": "tools", "tools": [], "overveiw": 2}, "no option 'overveiw'; did you mean 'overview'?"),
        ({"name": "tools", "tools": [], "overview": "2"}, "option 'overview' got '2', wanted a valid integer"),
        ({"name": "tools", "tools": [], "tool_timeout_s": True}, "wanted a valid number"),
        ({"name": "tools", "tools": ["image_zoom"]}, "did you mean 'image_zoom_in_tool'"),
        ({"name": "tools", "tools": [{"name": "image_zoom_in_tool", "min_pixel": 1}]}, "did you mean 'min_pixels'"),
        ({"name": "tools", "tools": [{"name": "image_rotate", "angle": 1}]}, "takes no options, got angle"),
        ({"name": "tools", "tools": [{"name": "image_zoom_in_tool", "crop_size": [64]}]}, "option 'crop_size'"),
        (Lacking, "Lacking lacks validate, step, close"),
        (lambda: 3, "must make an object with validate, start, step and close, got 3"),
        (Guess(), "give its class"),
        (3, "give its class"),
        (":x", "no 'module:name'"),
    ],
)
def test_what_makes_no_environment_is_named(spec: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        make_environment_factory(spec)


def test_lists_from_yaml_stand_for_tuples() -> None:
    for size in ([64, 32], (64, 32)):
        tool = make_tool({"name": "image_zoom_in_tool", "crop_size": size})
        context = ToolContext(example=EXAMPLE, images=(Image.new("RGB", (99, 99)),), num_prompt_images=1)
        crop = tool.call({"bbox_2d": [0, 0, 1000, 1000], "label": "", "img_idx": 0}, context)
        assert crop.size == (64, 32)


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.environments.registry._registered", dict(available_environments()))
    monkeypatch.setattr("posttrain.environments.tool_registry._registered", dict(available_tools()))
    register_environment("guess")(Guess)
    register_environment("guess")(Guess)  # a module that is imported again
    assert vars(make_environment_factory({"name": "guess", "high": 7})())["high"] == 7
    with pytest.raises(ConfigError, match="already"):
        register_environment("guess")(guess_between)
    with pytest.raises(ConfigError, match="lower-case"):
        register_environment("My Guess")
    with pytest.raises(ConfigError, match="lacks"):
        register_environment("lacking")(Lacking)
    register_tool("double")(double)
    assert isinstance(make_tool("double"), Tool)
    with pytest.raises(ConfigError, match="already"):
        register_tool("double")(guess_between)
    with pytest.raises(ConfigError, match="makes no tool"):
        register_tool("guess")(Guess)


def test_tools_may_be_finished_ones() -> None:
    tool = make_tool(double)
    assert make_tool(tool) is tool
    with pytest.raises(ConfigError, match="is no tool"):
        make_tool(object())  # pyright: ignore[reportArgumentType]
    assert ToolEnvironment(tools=[tool]).start(EXAMPLE).tools[0] == tool.schema


def test_the_page_names_every_environment_tool_and_option() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/environments.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    described = {name: describe_environment(name) for name in available_environments()}
    described |= {name: describe_tool(name) for name in available_tools()}
    assert set(described) <= set(rows)
    assert [(n, o.name) for n, options in described.items() for o in options if f"`{o.name}`" not in rows[n]] == []
