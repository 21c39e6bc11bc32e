"""The page in a real browser: what its script does, where boxes are drawn, and that no window is too narrow for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from posttrain.rewards import Score, ToolCall

from posttrain.records import Example, Status, Trajectory, Turn
from posttrain.report import TokenStreams, TrajectoryRecorder, write_report

from .conftest import Browser

ZOOM = "image_zoom_in_tool"
FIRST_BOX, SECOND_BOX = [300, 200, 700, 600], [100, 500, 600, 900]
OUT_OF_RANGE = "img_idx 3 is out of range: 2 images have been shown"
WORDS = ["I", "look", "closer", ".", "That", "failed", ".", "Now", "I", "see", ":", "seven", "."]


def scene(colour: str) -> Image.Image:
    return Image.new("RGB", (400, 300), colour)


def two_crops_and_an_error() -> Trajectory:
    """Cuts image 1 from image 0, asks for an image that there is not, cuts image 2 from image 1, answers."""
    asked = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What does the sign say?"}]},)
    picture = ({"role": "tool", "content": [{"type": "image"}]},)
    wrong = {"bbox_2d": SECOND_BOX, "label": "digit", "img_idx": 3}
    turns = (
        Turn(
            start=4,
            end=7,
            text="I look closer",
            calls=(ToolCall(name=ZOOM, arguments={"bbox_2d": FIRST_BOX, "label": "sign", "img_idx": 0}),),
            observation=picture,
            images=(scene("olive"),),
            seconds=0.2,
        ),
        Turn(
            start=9,
            end=12,
            text="That failed.",
            calls=(ToolCall(name=ZOOM, arguments=wrong, text=OUT_OF_RANGE, error=OUT_OF_RANGE),),
            observation=({"role": "tool", "content": OUT_OF_RANGE},),
        ),
        Turn(
            start=12,
            end=14,
            text="Now I",
            calls=(ToolCall(name=ZOOM, arguments={**wrong, "img_idx": 1}),),
            observation=picture,
            images=(scene("teal"),),
        ),
        Turn(start=14, end=18, text="see: seven."),
    )
    mask = np.zeros(18, dtype=np.bool_)
    for turn in turns:
        mask[turn.start : turn.end] = True
    return Trajectory(
        example=Example(id="signs:1", task="zoom", messages=asked, images=(scene("silver"),)),
        token_ids=np.arange(18),
        mask=mask,
        logprobs=np.where(mask, -0.01, 0.0).astype(np.float32),
        prompt_length=4,
        text="see: seven.",
        turns=turns,
        score=Score(value=0.9, parts={"accuracy": 1.0}),
        advantage=1.5,
    )


def single_turn(name: str, *, reward: float | None, **changed: Any) -> Trajectory:
    return Trajectory(
        example=Example(id=name, task="ground", messages=({"role": "user", "content": "Where?"},)),
        token_ids=np.arange(3),
        mask=np.array([False, True, True]),
        logprobs=np.zeros(3, dtype=np.float32),
        prompt_length=1,
        text="Here.",
        score=None if reward is None else Score(value=reward),
        **changed,
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report of a run with one episode and three single-turn trajectories."""
    stage = tmp_path / "stages" / "rl"
    episode = two_crops_and_an_error()
    numbers = np.full(18, 1.0)
    numbers[4] = 0.0  # the gate of its first word
    trainer = np.array(episode.logprobs, dtype=np.float64)
    trainer[5] += 1.0  # of its second word
    trajectories = [
        episode,
        single_turn("a:1", reward=0.2, advantage=-1.0),
        single_turn("a:2", reward=0.6),
        single_turn("a:3", reward=None, status=Status.TRUNCATED, error="over the token limit"),
    ]
    recorder = TrajectoryRecorder(stage, decode_tokens=lambda ids: [f"{WORDS[i % len(WORDS)]} " for i in ids])
    streams = TokenStreams(gates_T=numbers, trainer_logprobs_T=trainer)
    recorder.record(3, trajectories, streams=[streams, None, None, None])
    metrics = {"time/rollout_s": 3.0, "time/batch_s": 4.0, "time/train_s": 1.0, "tools/calls_mean": 1.5}
    (stage / "metrics.jsonl").write_text(json.dumps({"step": 3, **metrics}) + "\n")
    return write_report(tmp_path)


def choose(browser: Browser, name: str, value: str) -> None:
    """As a hand would: a control of the filters is set, and says so."""
    browser.run(
        f"""(() => {{
            const control = document.querySelector(".filters").elements[{name!r}];
            if (control.type === "checkbox") control.checked = {json.dumps(bool(value))};
            else control.value = {value!r};
            control.dispatchEvent(new Event("input", {{bubbles: true}}));
        }})()"""
    )


def shown(browser: Browser) -> list[str]:
    """Names of the trajectories that can be seen, in their order."""
    cards = '[...document.querySelectorAll(".card")].filter((card) => card.offsetHeight > 0)'
    return browser.run(f'{cards}.map((card) => card.querySelector("footer summary").textContent)')


def box_of(browser: Browser, selector: str) -> list[float]:
    """Left, top, right and bottom in the window, in pixels."""
    box = browser.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
    return [box["left"], box["top"], box["right"], box["bottom"]]


def colour_of(browser: Browser, selector: str, name: str) -> tuple[int, ...]:
    text = browser.run(f"getComputedStyle(document.querySelector({selector!r})).getPropertyValue({name!r})")
    return tuple(int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(","))


def test_the_page_loads_without_a_console_message(run_folder: Path, browser: Browser) -> None:
    browser.open(write_report(run_folder))
    assert browser.run("document.documentElement.className") == "js"  # set by the script
    assert browser.run("document.querySelectorAll('.tip').length") == 1
    assert browser.messages == []


def test_a_fault_would_be_seen(tmp_path: Path, browser: Browser) -> None:
    faulty = tmp_path / "fault.html"
    faulty.write_text("<script>undefinedName()</script>")
    browser.open(faulty)
    assert "undefinedName" in " ".join(browser.messages)


@pytest.mark.parametrize(("image", "made", "corners"), [(0, 1, FIRST_BOX), (1, 2, SECOND_BOX)])
@pytest.mark.parametrize("width", [500, 1280])
def test_a_crop_is_drawn_on_the_image_that_it_was_cut_from(
    page: Path, browser: Browser, image: int, made: int, corners: list[int], width: int
) -> None:
    browser.open(page, width=width, height=3000)
    figure = f"#t0-0-image-{image}"
    frame = box_of(browser, f"{figure} .picture")
    box = box_of(browser, f'{figure} .crop[data-crop="{made}"]')
    for side, (edge, corner) in enumerate(zip(box, corners, strict=True)):
        low, high = frame[side % 2], frame[side % 2 + 2]
        assert edge == pytest.approx(low + (high - low) * corner / 1000, abs=2)  # half of the line's width, rounded
    assert frame[2] - frame[0] == pytest.approx((frame[3] - frame[1]) * 400 / 300, abs=1)  # not stretched
    colour = colour_of(browser, f'{figure} .crop[data-crop="{made}"]', "stroke")
    middle = frame[1] + (frame[3] - frame[1]) * (corners[1] + corners[3]) / 2000
    left = frame[0] + (frame[2] - frame[0]) * corners[0] / 1000
    drawn = browser.picture().getpixel((int(left), int(middle)))
    assert max(abs(a - b) for a, b in zip(drawn, colour, strict=True)) < 50  # its edge is smoothed
    badge = f'{figure} .badge[data-crop="{made}"]'
    assert browser.run(f"document.querySelector({badge!r}).textContent") == str(made)
    assert colour_of(browser, badge, "background-color") == colour
    assert colour_of(browser, f"#t0-0-image-{made} figcaption .badge", "background-color") == colour


def test_a_call_that_failed_cuts_nothing_and_its_error_is_told_once(page: Path, browser: Browser) -> None:
    browser.open(page)
    assert browser.run('document.querySelectorAll(".crop").length') == 2
    failed = browser.run('[...document.querySelectorAll(".call.failed")].map((call) => call.innerText)')
    assert len(failed) == 1 and failed[0].count(OUT_OF_RANGE) == 1 and "digit" in failed[0]


def test_a_badge_leads_to_its_crop_and_lights_it_up(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.run('document.querySelector("#t0-0-image-0 .badge").focus()')
    lit = '[...document.querySelectorAll(".lit")].map((node) => node.dataset.crop)'
    assert set(browser.run(lit)) == {"1"} and len(browser.run(lit)) == 4  # box, badge, small picture, crop
    browser.run('document.querySelector("#t0-0-image-0 .badge").click()')
    assert browser.run('document.querySelector(":target").id') == "t0-0-image-1"
    links = '[...document.querySelectorAll(".card a")].every((a) => document.querySelector(a.getAttribute("href")))'
    assert browser.run(links) is True


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("calls", "3", ["signs:1"]),
        ("calls", "0", ["a:1", "a:2", "a:3"]),
        ("failed", "yes", ["signs:1"]),
        ("task", "ground", ["a:1", "a:2", "a:3"]),
        ("status", "truncated", ["a:3"]),
        ("low", "0.5", ["signs:1", "a:2"]),
        ("high", "0.5", ["a:1"]),
        ("order", "worst", ["a:1", "a:2", "signs:1", "a:3"]),
        ("order", "most", ["signs:1", "a:1", "a:2", "a:3"]),
    ],
)
def test_filters_keep_what_they_say(page: Path, browser: Browser, name: str, value: str, left: list[str]) -> None:
    browser.open(page)
    assert shown(browser) == ["signs:1", "a:1", "a:2", "a:3"]
    choose(browser, name, value)
    assert shown(browser) == left
    assert browser.messages == []


def test_the_reader_chooses_what_colours_the_tokens(page: Path, browser: Browser) -> None:
    browser.open(page)
    tokens = '[...document.querySelectorAll(".policy")[0].querySelectorAll("i")]'
    coloured = f'{tokens}.map((token) => getComputedStyle(token).backgroundColor !== "rgba(0, 0, 0, 0)")'
    scale = '[...document.querySelectorAll(".filters .scale")].filter((s) => s.offsetHeight).map((s) => s.innerText)'
    options = '[...document.querySelector(".filters").elements.shade.options].map((option) => option.value)'
    assert browser.run(options) == ["gate", "logprob", "gap", "advantage", ""]
    assert browser.run(coloured) == [True, False, False]  # the page begins with the gate; its first word has 0
    assert [text.split() for text in browser.run(scale)] == [["1", "0"]]
    for value, expected in (
        ("gap", [False, True, False]),
        ("logprob", [False, False, False]),  # all of them were as good as certain
        ("advantage", [True, True, True]),
        ("", [False, False, False]),
        ("gate", [True, False, False]),
    ):
        choose(browser, "shade", value)
        assert browser.run(coloured) == expected, value
    choose(browser, "shade", "advantage")
    better = browser.run('getComputedStyle(document.querySelector(".episode i")).backgroundColor')
    worse = browser.run('getComputedStyle(document.querySelector(".card:not(.episode) i")).backgroundColor')
    assert better != worse
    assert browser.messages == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [500, 700, 1300])
def test_no_window_is_too_narrow(page: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth") is True
    inside = """[...document.querySelectorAll(".card *")]
        .filter((node) => node.getBoundingClientRect().right > innerWidth && !node.closest(".text, dd, svg"))
        .map((node) => node.outerHTML.slice(0, 100))"""
    assert browser.run(inside) == []
    brightness = sum(browser.picture().resize((1, 1)).getpixel((0, 0))) / 3
    assert brightness < 80 if dark else brightness > 200
    assert browser.messages == []
