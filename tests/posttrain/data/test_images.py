"""Images are opened only from where they may lie, upright and RGB, and resized to what the processor leaves alone."""

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.data import ImageCutter, open_image, resize_for, to_patches
from posttrain.errors import DataError

PROCESSOR = Qwen2VLImageProcessor(
    patch_size=16, merge_size=2, size={"shortest_edge": 4 * 1024, "longest_edge": 64 * 1024}
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    noise(60, 40).save(folder / "a.png")
    noise(60, 40).save(folder / "a.jpg")
    noise(60, 40).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    for name in ("a.png", "a.jpg"):
        data = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(data[: len(data) * 2 // 3])
    noise(801, 4).save(folder / "thin.png")
    return folder


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def read(ref, root: Path, **options) -> Image.Image:
    return open_image(ref, root=root, row="d.jsonl:3", **options)


def test_an_image_can_be_a_path_bytes_a_data_uri_or_a_pil_image(root):
    data = (root / "a.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    refs = ["a.png", "./x/../a.png", str(root / "a.png"), f"file://{root}/a.png", uri, data, noise(60, 40)]
    refs += [{"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}]
    assert {read(ref, root).tobytes() for ref in refs} == {noise(60, 40).tobytes()}


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("../outside.png", r"image \.\./outside\.png lies outside the folder .*; set image_root"),
        ("/etc/passwd", "image /etc/passwd lies outside the folder"),
        ("file:///etc/passwd", "lies outside the folder"),
        ("link.png", r"image link\.png lies outside the folder"),
        ("loop.png", r"loop\.png"),
        ("missing.png", r"image missing\.png does not exist under .*; set image_root"),
        ("", "must be a path, a data URI, bytes or a PIL image, got str"),
        (3, "got int"),
        ("a\0b", "cannot be used"),
        ("x" * 5000, "cannot be used"),
        ("text.png", r"image text\.png is not an image of a known format"),
        ("empty.png", r"image empty\.png is not an image of a known format"),
        ("cut-a.png", r"image cut-a\.png is damaged or cut short"),
        ("cut-a.jpg", r"image cut-a\.jpg is damaged or cut short"),
        ("thin.png", r"image thin\.png is 801 x 4 pixels, an aspect ratio over 200"),
        ("data:image/png;base64,@@@", "data URI cannot be read"),
        ("data:image/png,abc", "data URI cannot be read"),
        ("https://example.com/a.png", r"is a URL; download it, or set allow_urls: true"),
        ({"path": None}, "must be a path"),
    ],
)
def test_images_that_cannot_be_used_name_row_and_file_in_one_sentence(root, ref, message):
    with pytest.raises(DataError, match=rf"^d\.jsonl:3: .*{message}") as caught:
        read(ref, root)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(root, monkeypatch):
    noise(100, 100).save(root / "bomb.png")
    for limit in (9_000, 4_000):  # PIL itself only warns below twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"d\.jsonl:3: image bomb\.png .* safe") as caught:
            read("bomb.png", root)
        assert "shrink the file" in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert read("bomb.png", root).size == (100, 100)


def test_formats_that_start_other_programs_are_not_tried(root):
    (root / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(DataError, match="not an image of a known format"):
        read("a.eps", root)


def test_images_are_turned_upright_and_put_on_white(root):
    sideways = Image.new("RGB", (40, 20), "red")
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(root / "turned.jpg", exif=exif)
    assert read("turned.jpg", root).size == (20, 40)
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.putpixel((3, 3), (255, 0, 0, 255))
    for picture in (clear, clear.convert("LA"), clear.quantize(8)):
        assert read(picture, root).getpixel((0, 0)) == (255, 255, 255)
    assert read(clear, root).getpixel((3, 3)) == (255, 0, 0)
    deep = Image.fromarray(np.full((10, 10), 0x8000, dtype=np.uint16))
    deep.save(root / "deep.png")
    assert read("deep.png", root).getpixel((0, 0)) == (127, 127, 127)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([(None, None), (16 * 1024, None), (None, 32 * 1024)]))
def test_a_resized_image_is_left_alone_by_the_checkpoints_own_processor(width, height, limits):
    if max(width, height) > 100 * min(width, height):
        return
    low, high = limits
    resized = resize_for(noise(width, height), PROCESSOR, min_pixels=low, max_pixels=high)
    assert resized.width % 32 == 0 == resized.height % 32
    assert (low or 4 * 1024) <= resized.width * resized.height <= (high or 64 * 1024)
    again = PROCESSOR(images=[resized], return_tensors="pt")
    patches = to_patches(resized, PROCESSOR)
    assert [list(patches.grid_thw)] == again["image_grid_thw"].tolist()
    torch.testing.assert_close(patches.pixel_values_PD, again["pixel_values"], rtol=0, atol=0)
    if limits == (None, None):
        straight = PROCESSOR(images=[noise(width, height)], return_tensors="pt")
        if straight["image_grid_thw"].tolist() == again["image_grid_thw"].tolist():
            torch.testing.assert_close(patches.pixel_values_PD, straight["pixel_values"], rtol=0, atol=0)


def test_an_extreme_ratio_that_one_resize_leaves_too_large_is_resized_until_it_fits():
    image = noise(12800, 64)
    once = PROCESSOR(images=[image], return_tensors="pt")["image_grid_thw"][0].prod().item() * 256
    resized = resize_for(image, PROCESSOR)
    assert once > 64 * 1024 >= resized.width * resized.height
    with pytest.raises(DataError, match=r"^r: no size of 32-pixel steps|aspect ratio over 200"):
        resize_for(
            noise(9400, 47),
            Qwen2VLImageProcessor(patch_size=16, merge_size=2, size={"shortest_edge": 1024, "longest_edge": 2**24}),
            row="r",
        )


def test_limits_may_only_be_stricter():
    with pytest.raises(DataError, match="must lie within the checkpoint's own 4096 to 65536"):
        ImageCutter(PROCESSOR, min_pixels=1024)
    with pytest.raises(DataError, match="must lie within"):
        ImageCutter(PROCESSOR, max_pixels=2**20)
    with pytest.raises(DataError, match="min_pixels 8192 is more than max_pixels 4096"):
        ImageCutter(PROCESSOR, min_pixels=8192, max_pixels=4096)
    with pytest.raises(DataError, match="no size of 32-pixel steps lies between 5000 and 5001 pixels"):
        resize_for(noise(64, 64), PROCESSOR, min_pixels=5000, max_pixels=5001)


def test_equal_pixels_have_equal_keys_and_others_do_not():
    flat, tall = Image.new("RGB", (64, 128)), Image.new("RGB", (128, 64))
    keys = [to_patches(image, PROCESSOR).key for image in (noise(64, 64), noise(64, 64), flat, tall)]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_an_image_is_cut_once_and_the_memory_is_bounded():
    cutter = ImageCutter(PROCESSOR, cache_patches=40)
    first = cutter.cut(noise(64, 64))
    assert cutter.cut(noise(64, 64)) is first
    for i in range(5):
        cutter.cut(Image.new("RGB", (64, 64), (i, 0, 0)))
    assert cutter.cut(noise(64, 64)) is not first
    assert sum(c.patches.num_patches for c in cutter._cache.values()) == cutter._held <= 40


def test_a_url_is_fetched_only_when_asked(root, monkeypatch):
    buffer = io.BytesIO()
    noise(60, 40).save(buffer, "PNG")

    def answer(url, timeout):
        assert url == "https://example.com/a.png" and timeout > 0
        return io.BytesIO(buffer.getvalue())

    monkeypatch.setattr("posttrain.data.images.urllib.request.urlopen", answer)
    assert read("https://example.com/a.png", root, allow_urls=True).tobytes() == noise(60, 40).tobytes()


def test_what_was_cut_stays_as_it_was_when_its_owner_goes_on_drawing():
    cutter, canvas = ImageCutter(PROCESSOR), Image.new("RGB", (64, 64))
    cut = cutter.cut(canvas)
    canvas.paste((255, 0, 0), (0, 0, 32, 32))
    assert np.asarray(cut.picture).max() == 0 and cutter.cut(Image.new("RGB", (64, 64))) is cut


def test_threads_that_ask_for_one_image_at_once_have_it_cut_once(monkeypatch):
    """As the members of a group do, when their episodes begin."""
    cut = []

    def slow(image, processor):
        cut.append(image)
        time.sleep(0.05)
        return to_patches(image, processor)

    monkeypatch.setattr("posttrain.data.images.to_patches", slow)
    cutter = ImageCutter(PROCESSOR)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(cutter.cut, [noise(64, 64) for _ in range(8)]))
    assert len(cut) == 1 and all(one is made[0] for one in made)


def test_an_image_that_cannot_be_cut_fails_for_every_thread_that_asks():
    cutter, thin = ImageCutter(PROCESSOR), Image.new("RGB", (4000, 4))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cutter.cut, thin) for _ in range(4)]
    assert all(isinstance(one.exception(), DataError) for one in asked) and cutter._at_work == {}
