"""The page: what it shows of a run, what it refuses to do with hostile text, and how large it may grow."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import posttrain.report
from posttrain.errors import ConfigError
from posttrain.report import write_report
from posttrain.report.card_tokens import card_tokens

from .conftest import EPISODE, GROUND

HOSTILE = "</div></script><script>alert(1)</script><img src=x onerror=alert(2)> \"' onmouseover='alert(3)' {{ 7*7 }}"


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self._texts: list[str] = []
        self.feed(html)
        self.text = " ".join(self._texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing that is open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self._texts.append(data)

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def page(folder: Path) -> Elements:
    elements = Elements(write_report(folder).read_text(encoding="utf-8"))
    assert elements.open == []
    return elements


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_small_run_shows_its_stages_metrics_and_trajectory(run_folder: Path) -> None:
    elements = page(run_folder)
    words = " ".join(elements.text.split())
    assert "small" in words and "2 of 2" in words and "2 min 05 s" in words
    assert "ground/iou ↑ 0.400 0.710 +0.310" in words
    assert "text/loss ↓ 2.00 0.500 −1.50" in words
    assert "format ↑ 1.00 0.500 −0.500" in words
    assert "1 of 1 recorded" in words and "train.jsonl:17" in words
    assert "tokens coloured by gate weight" in words
    assert "unfinished" not in words and "remark" not in words
    [card] = elements.with_class("card")
    assert (card["data-stage"], card["data-task"], card["data-reward"]) == ("rl", "ground", "0.75")


def test_boxes_are_drawn_where_their_thousandths_lie_in_the_picture(run_folder: Path) -> None:
    rects = [a for tag, a in page(run_folder).tags if tag == "rect"]
    drawn = {a["class"]: [float(a[k] or 0) for k in ("x", "y", "width", "height")] for a in rects}
    assert drawn["predicted"] == [6.4, 12.8, 25.6, 25.6]  # 64 pixels: (100, 200, 500, 600) / 1000 * 64
    assert drawn["reference"] == [7.04, 12.8, 26.24, 26.88]


def test_every_logged_metric_is_drawn_once_and_unknown_keys_too(run_folder: Path) -> None:
    charts = [json.loads(a["data-hover"] or "") for a in page(run_folder).with_class("chart") if "data-hover" in a]
    labels = [row[0] for chart in charts for row in chart["rows"]]
    assert sorted(labels) == ["gate/positive_mean", "loss", "loss", "reward", "x"]


def test_tokens_carry_a_mark_for_each_number_that_was_recorded(run_folder: Path) -> None:
    elements = page(run_folder)
    tokens = [a for tag, a in elements.tags if tag == "i" and "gate" in (a.get("title") or "")]
    # Gates 1 and 0.25: none, and 0.75 of seven rounded up. -2.5 of -5 nats: half. Advantage -0.5 of 2: a quarter.
    assert [a["class"] for a in tokens] == ["n2", "g6 l4 n2"]
    assert tokens[1]["title"] == "gate 0.250, logprob −2.50"
    [section] = [a for tag, a in elements.tags if tag == "section" and a.get("id") == "trajectories"]
    assert section["data-shade"] == "gate"  # coloured without the script, too


@pytest.mark.parametrize(
    ("token", "advantage", "marks"),
    [
        ({"gap": 0.001}, None, ""),
        ({"gap": 0.1}, None, "p5"),  # two of three decades
        ({"gap": 50.0}, None, "p7"),
        ({"gap": 0.0}, None, ""),
        ({"advantage": -9.0}, 1.0, "n7"),  # the token's own comes first
        ({}, 0.5, "a2"),
        ({"gate": 0.999}, None, ""),
        ({"logprob": None}, None, ""),
    ],
)
def test_marks_of_tokens(token: dict[str, float], advantage: float | None, marks: str) -> None:
    assert card_tokens([{"text": "x"} | token], advantage)[0].marks == marks


def test_an_episode_shows_its_turns_calls_and_errors(run_folder: Path) -> None:
    add_episode(run_folder)
    elements = page(run_folder)
    words = " ".join(elements.text.split())
    assert "3 turns 2 calls 1 failed truncated" in words
    assert "image_zoom_in_tool bbox_2d [100, 200, 500, 600] tool" in words
    assert "1 cut from image 0 : sign environment: 0.250 s policy, turn 2" in words
    assert words.count("there is no tool 'image_zoom'") == 1  # the answer tells it already
    assert "truncated: over 3 turns" in words
    [crop] = elements.with_class("crop")
    assert [float(crop[k] or 0) for k in ("x", "y", "width", "height")] == [6.4, 12.8, 25.6, 25.6]
    assert crop["data-crop"] == "1" and crop["class"] == "crop c0"
    episode = next(a for a in elements.with_class("card") if a["data-task"] == "zoom")
    assert (episode["data-calls"], episode["data-failed"], episode["data-reward"]) == ("2", "1", "")


def test_two_crops_of_one_place_keep_both_their_badges(run_folder: Path) -> None:
    boxes = [{**EPISODE["boxes"][0], "made": made} for made in (1, 2)]
    add_episode(run_folder, boxes=boxes, images=["images/scene.png", "images/crop.png", "images/crop.png"])
    badges = [a for a in page(run_folder).with_class("badge") if "style" in a]
    assert [a["style"] for a in badges] == ["--x:10.0%;--y:20.0%;--shift:0", "--x:10.0%;--y:20.0%;--shift:1"]


def test_a_crop_that_was_not_kept_says_so(run_folder: Path) -> None:
    add_episode(run_folder, images=["images/scene.png", None])
    elements = page(run_folder)
    assert "was not recorded" in elements.text
    assert elements.with_class("crop") and not elements.with_class("crops")


@pytest.mark.parametrize(
    "changed",
    [
        {"turns": 5},
        {"turns": [5, {"calls": 3, "observation": [4, {"images": [-1, 99, "a", True]}], "tokens": [1]}]},
        {"turns": [{"calls": [{"arguments": [1], "error": 3, "name": None}, 7]}]},
        {"boxes": [{"kind": "crop", "bbox_2d": [0, 0, 9, 9], "made": made} for made in ("1", 99, -1, None, True)]},
        {"boxes": [{"kind": "crop", "bbox_2d": [0, 0, 9, 9], "made": 0, "image": 1}]},
        {"images": {"a": 1}},
    ],
)
def test_oddly_typed_episodes_do_not_stop_the_page(run_folder: Path, changed: dict[str, object]) -> None:
    add_episode(run_folder, **changed)
    elements = page(run_folder)
    assert len(elements.with_class("card")) == 2
    ids = {a["id"] for _, a in elements.tags if "id" in a}
    links = [a["href"] or "" for tag, a in elements.tags if tag == "a"]
    assert [link for link in links if link[1:] not in ids] == []


def test_only_so_many_tokens_of_a_page_are_coloured(run_folder: Path) -> None:
    row = GROUND | {"tokens": [{"text": "word ", "logprob": -1.0, "gate": 0.5, "gap": 0.1}] * 1_000}
    path = run_folder / "stages" / "rl" / "trajectories.jsonl"
    path.write_text("".join(json.dumps(row | {"step": s, "example": f"e{s}"}) + "\n" for s in range(96)))
    report = write_report(run_folder)
    elements = Elements(report.read_text())
    assert sum(tag == "i" and "logprob" in (a.get("title") or "") for tag, a in elements.tags) == 20_000
    assert elements.text.count("tokens are not coloured: there are too many for this page") == 76
    assert report.stat().st_size < 3_500_000


def test_a_long_episode_shows_its_first_turns(run_folder: Path) -> None:
    add_episode(run_folder, turns=[{"text": f"turn {n}"} for n in range(50)])
    words = " ".join(page(run_folder).text.split())
    assert "turn 39" in words and "turn 40 " not in words.split("policy, turn 40")[1]
    assert "10 more turns are not shown" in words and "50 turns" in words


def test_a_policy_that_spams_calls_does_not_fill_the_page(run_folder: Path) -> None:
    calls = [{"name": "t", "arguments": {"n": n}, "error": ""} for n in range(500)]
    answers = [{"role": "tool", "text": "x" * 5_000, "images": []} for _ in calls]
    size = write_report(run_folder).stat().st_size
    add_episode(run_folder, turns=[{"text": "spam", "calls": calls, "observation": answers}] * 30)
    report = write_report(run_folder)
    words = " ".join(Elements(report.read_text()).text.split())
    assert "30 turns 15000 calls" in words
    assert words.count("440 more calls are not shown") == 1 and words.count("500 more calls are not shown") == 29
    assert report.stat().st_size - size < 100_000


def test_texts_can_be_read_on_what_lies_behind_them() -> None:
    """WCAG 2.2: a contrast of 4.5 to 1 for text (1.4.3), of 3 to 1 for signs (1.4.11)."""
    style = (Path(posttrain.report.__file__).parent / "style.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("@media (prefers", 1))
    for palette in (light, light | dark):
        for text, behind in (
            ("ink", "card"),
            ("ink", "well"),
            ("soft", "card"),
            ("soft", "page"),
            ("accent", "card"),
            ("bad", "bad-tint"),
            ("bad", "card"),
            ("warn", "warn-tint"),
            *(("on-series", f"s{k}") for k in range(8)),
        ):
            ratio = contrast(palette[text], palette[behind])
            assert ratio >= (3.0 if text == "on-series" else 4.5), (text, behind, ratio)


def contrast(first: str, second: str) -> float:
    """Relative luminances as WCAG defines them."""

    def luminance(colour: str) -> float:
        channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def add_episode(folder: Path, **changed: object) -> None:
    stage = folder / "stages" / "rl"
    Image.new("RGB", (48, 48), "olive").save(stage / "images" / "crop.png")
    append(stage / "trajectories.jsonl", json.dumps({**EPISODE, **changed}) + "\n")


def test_the_page_needs_nothing_from_outside(run_folder: Path) -> None:
    elements = page(run_folder)
    assert "link" not in {tag for tag, _ in elements.tags}
    for _, attributes in elements.tags:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    html = (run_folder / "report.html").read_text()
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "url(" not in html and "@import" not in html


def test_hostile_text_stays_text_wherever_a_run_can_put_it(run_folder: Path) -> None:
    add_episode(run_folder)
    harmless = page(run_folder)
    for name in ("manifest.json", "summary.json", "stages/rl/result.json"):
        path = run_folder / name
        path.write_text(json.dumps(_poisoned(json.loads(path.read_text()))))
    for name in ("trajectories", "metrics", "histograms"):
        path = run_folder / "stages" / "rl" / f"{name}.jsonl"
        rows = [_poisoned(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elements = page(run_folder)
    assert "img" not in {tag for tag, _ in elements.tags}
    assert sum(tag == "script" for tag, _ in elements.tags) == sum(tag == "script" for tag, _ in harmless.tags) == 1
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in elements.text and "<script>alert(1)</script>" in elements.text


def _poisoned(value: object) -> object:
    """Every text, and every key that is not one of the format's own, carries the hostile text."""
    if isinstance(value, str):
        return value if value.startswith("images/") else value + HOSTILE
    if isinstance(value, list):
        return [_poisoned(v) for v in value]
    if isinstance(value, dict):
        own = {key: _poisoned(v) for key, v in value.items()}
        free = {key + HOSTILE: v for key, v in value.items() if isinstance(v, int | float)}
        return own | free
    return value


def test_the_policy_of_the_page_allows_only_its_own_script(run_folder: Path) -> None:
    html = write_report(run_folder).read_text(encoding="utf-8")
    script = html.split("<script>")[1].split("</script>")[0]
    allowed = re.search(r"script-src 'sha256-([^']+)'", html)
    assert allowed and allowed[1] == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in html


def test_a_run_that_was_killed_is_shown_and_its_broken_line_is_named(run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()
    (run_folder / "stages" / "rl" / "result.json").unlink()
    append(run_folder / "stages" / "rl" / "metrics.jsonl", '{"step": 5, "lo')
    append(run_folder / "stages" / "rl" / "trajectories.jsonl", '{"step": 5, "exa')
    words = " ".join(page(run_folder).text.split())
    assert "1 of 2" in words and "unfinished" in words and "4 steps · 1 min 20 s" in words
    assert "stages/rl/metrics.jsonl: the last line (5) is not whole" in words
    assert "stages/rl/trajectories.jsonl: the last line (2) is not whole" in words


def test_a_stage_that_has_not_started_is_named_from_the_recipe(run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    manifest["recipe"]["stages"]["distil"] = {"algorithm": "distillation"}
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    words = " ".join(page(run_folder).text.split())
    assert "distil distillation not started" in words and "2 of 3" in words


def test_a_run_that_has_only_begun_still_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "new"}')
    words = " ".join(page(tmp_path).text.split())
    assert "No stage has been evaluated yet." in words and "recorded no trajectories" in words


@pytest.mark.parametrize(
    ("name", "text", "remark"),
    [
        ("manifest.json", "{", "manifest.json could not be read"),
        ("summary.json", "[1]", "summary.json holds a list where an object was expected"),
        ("stages/rl/result.json", "", "stages/rl/result.json could not be read"),
        ("stages/rl/metrics.jsonl", 'x\n[]\n{"step": "1"}\n{"step": 1, "loss": 1}\n', "3 unreadable line(s) skipped"),
        ("stages/rl/metrics.jsonl", '{"step": 1, "loss": NaN}\n', "loss was not finite at 1 step(s), the first is 1"),
        ("stages/rl/metrics.jsonl", '{"step": 1, "loss": ' + "[" * 100_000, "is not whole"),
        ("stages/rl/histograms.jsonl", '{"step": 1, "edges": [0, 1], "counts": [1, 2]}\n', "1 histogram(s) skipped"),
        ("stages/rl/histograms.jsonl", '{"step": 1, "edges": [1, 1], "counts": [1]}\n', "1 histogram(s) skipped"),
        ("stages/rl/trajectories.jsonl", '{"step": 1, "images": ["images/no.png"]}\n', "file is missing"),
        ("stages/rl/trajectories.jsonl", '{"step": 1, "images": ["../../manifest.json"]}\n', "cannot be read"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(run_folder: Path, name: str, text: str, remark: str) -> None:
    (run_folder / name).write_text(text)
    words = " ".join(page(run_folder).text.split())
    assert remark in words
    assert "+0.310" in words  # the evaluation is still there, from the stage's result or the run's summary


@pytest.mark.parametrize("way", ["relative", "absolute", "link"])
def test_a_picture_outside_the_run_is_not_read(run_folder: Path, tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    stage = run_folder / "stages" / "rl"
    name = {"relative": "../../../secret.png", "absolute": str(secret), "link": "images/link.png"}[way]
    (stage / "images" / "link.png").symlink_to(secret)
    (stage / "trajectories.jsonl").write_text(json.dumps({"step": 1, "images": [name]}) + "\n")
    elements = page(run_folder)
    assert "lies outside the run's folder" in elements.text
    assert "image" not in {tag for tag, _ in elements.tags}


def test_oddly_typed_trajectories_do_not_stop_the_page(run_folder: Path) -> None:
    odd = {
        "step": 1,
        "messages": [1, {"role": 2}],
        "parts": [],
        "boxes": [5, {"bbox_2d": [1, 2, 3]}, {"bbox_2d": [None, "a", 2, 3]}, {"bbox_2d": [1e400, 10**400, 2, 3]}],
        "images": ["images/scene.png", 3],
        "tokens": [{"text": None}, {"logprob": "x"}],
        "reward": "high",
        "completion": "lone surrogate \ud800 and \x00",
    }
    (run_folder / "stages" / "rl" / "trajectories.jsonl").write_text(json.dumps(odd) + "\n")
    elements = page(run_folder)
    assert "unscored" in elements.text
    assert "rect" not in {tag for tag, _ in elements.tags}


def test_an_image_shared_by_many_trajectories_is_stored_once(run_folder: Path) -> None:
    path = run_folder / "stages" / "rl" / "trajectories.jsonl"
    path.write_text(path.read_text() * 8)
    elements = page(run_folder)
    assert len(elements.with_class("card")) == 8
    assert sum(tag == "image" for tag, _ in elements.tags) == 1


def test_small_pictures_keep_their_pixels(run_folder: Path) -> None:
    elements = page(run_folder)
    [href] = [a["href"] or "" for tag, a in elements.tags if tag == "image"]
    stored = Image.open(io.BytesIO(base64.b64decode(href.split(",")[1])))
    assert stored.size == (64, 64) and stored.convert("RGB").getpixel((5, 5)) == (0, 0, 128)
    assert elements.with_class("crisp")


def test_a_big_run_stays_small(run_folder: Path) -> None:
    stage = run_folder / "stages" / "rl"
    noise = np.random.default_rng(0)
    for index in range(12):  # noise does not compress: the worst a photograph can be
        pixels = noise.integers(0, 255, (600, 600, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stage / "images" / f"{index}.png", compress_level=1)
    row = json.loads((stage / "trajectories.jsonl").read_text())
    row |= {"completion": "word " * 2_000, "tokens": [{"text": "word ", "logprob": -1.0}] * 2_000}
    with (stage / "trajectories.jsonl").open("w") as file:
        for step in range(150):
            file.write(json.dumps(row | {"step": step, "images": [f"images/{step % 12}.png"]}) + "\n")
    metrics = [{"step": s} | {f"reward/{k}": float(noise.normal()) for k in range(12)} for s in range(2_000)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    report = write_report(run_folder)
    assert report.stat().st_size < 3_500_000
    words = " ".join(Elements(report.read_text()).text.split())
    assert "96 of 150 recorded" in words and "more characters)" in words


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path)


def test_an_older_report_survives_a_failed_one(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = write_report(run_folder)
    before = report.read_bytes()

    def full_disk(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(run_folder)
    assert report.read_bytes() == before
    assert [p.name for p in run_folder.iterdir() if "partial" in p.name] == []
