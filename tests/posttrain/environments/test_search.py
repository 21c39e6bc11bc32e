"""The local search engines: the same index gives the same results, and copies of an image are found."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from posttrain.environments import ToolError, make_tool
from posttrain.environments.search import perceptual_hash, read_index
from posttrain.environments.tools import ToolContext
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example


def drawing(kind: str) -> Image.Image:
    image = Image.new("RGB", (200, 120), "white")
    pen = ImageDraw.Draw(image)
    if kind == "tower":
        pen.rectangle((90, 10, 110, 119), fill="grey")
    elif kind == "bridge":
        pen.arc((10, 20, 190, 180), 180, 360, fill="black", width=12)
    else:
        pen.polygon(((0, 119), (60, 30), (120, 119)), fill="brown")
    return image


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("index")
    for kind in ("tower", "bridge", "mountain"):
        drawing(kind).save(folder / f"{kind}.png")
    lines = [
        {"text": "The grey tower of Oldtown, built 1310", "image": "tower.png"},
        {"text": "A stone bridge over the river Slow", "image": "bridge.png"},
        {"text": "The brown mountain near Oldtown", "image": "mountain.png"},
        {"text": "Tea is drunk hot"},
    ]
    (folder / "index.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return str(folder / "index.jsonl")


def run(name: str, index: str, *images: Image.Image, arguments: dict[str, Any], **options: Any) -> Any:
    tool = make_tool({"name": name, "index": index, **options})
    assert tool.argument_problem(arguments) is None
    example = Example(id="1", task="t", messages=({"role": "user", "content": "?"},), images=images)
    return tool.call(arguments, ToolContext(example=example, images=images, num_prompt_images=len(images)))


def test_texts_are_found_by_their_words(index: str) -> None:
    assert run("search", index, arguments={"query": "bridge river"}) == "[1] A stone bridge over the river Slow"
    assert run("search", index, arguments={"query": "tower Oldtown"}, num_results=1).startswith("[1] The grey tower")
    for query in ("", "xylophone", "[" * 10_000):
        assert run("search", index, arguments={"query": query}) == "No results."


def test_results_may_show_their_images(index: str) -> None:
    text, image = run("search", index, arguments={"query": "tower"}, show_images=True, num_results=1)
    assert "tower" in text and image.tobytes() == drawing("tower").tobytes()


@pytest.mark.parametrize("kind", ["tower", "bridge", "mountain"])
def test_an_image_is_found_by_a_smaller_and_noisier_copy(index: str, kind: str) -> None:
    copy = drawing(kind).resize((90, 54))
    copy = Image.blend(copy, Image.effect_noise(copy.size, 60).convert("RGB"), 0.15)
    text, image = run("image_search", index, copy, arguments={"img_idx": 0}, num_results=1)
    assert kind in text and image.size == (200, 120)


def test_an_image_unlike_all_is_not_found(index: str) -> None:
    noise = Image.effect_noise((200, 120), 200).convert("RGB")
    assert run("image_search", index, noise, arguments={"img_idx": 0}) == "No results."
    with pytest.raises(ToolError, match="img_idx"):
        run("image_search", index, arguments={"img_idx": 0})


def test_the_hash_knows_brightness_from_shape() -> None:
    tower = drawing("tower")
    assert (perceptual_hash(tower) == perceptual_hash(tower.point(lambda value: value * 0.7))).all()
    assert (perceptual_hash(tower) != perceptual_hash(drawing("bridge"))).sum() > 12


def test_an_index_is_read_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "index.jsonl"
    file.write_text('{"text": "one"}\n')
    first = read_index(str(file))
    assert read_index(str(file)) is first
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert len(read_index(str(file)).entries) == 2


@pytest.mark.parametrize("line", ["nothing", "[]", '{"image": "a.png"}', '{"text": 3}'])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "index.jsonl").write_text(f'{{"text": "one"}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"index.jsonl:2: wanted"):
        make_tool({"name": "search", "index": str(tmp_path / "index.jsonl")})


def test_an_index_or_image_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        make_tool({"name": "search", "index": str(tmp_path / "none.jsonl")})
    (tmp_path / "index.jsonl").write_text('{"text": "one", "image": "../one.png"}\n')
    with pytest.raises(DataError, match="outside"):
        make_tool({"name": "image_search", "index": str(tmp_path / "index.jsonl")})
