"""Files, saved data sets and rows in memory give the same examples; damaged ones are named by file and line."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from posttrain.data import SourceSpec, from_rows, open_source
from posttrain.errors import DataError

ROWS = [{"prompt": f"<image>{i}?", "image": f"{i % 2}.png", "answer": str(i)} for i in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(2):
        Image.new("RGB", (40, 30), (i * 100, 20, 30)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_every_kind_of_file_gives_the_same_examples(folder):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(folder / "rows.parquet")
    table.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "splits")
    root = str(folder)
    sources = [
        open_source(SourceSpec(path=f"{root}/{name}"))
        for name in ("rows.jsonl", "rows.json", "lines.json", "rows.parquet")
    ]
    sources.append(open_source(SourceSpec(path=f"{root}/saved", image_root=root)))
    sources.append(open_source(SourceSpec(path=f"{root}/splits", image_root=root, split="train")))
    sources.append(from_rows(ROWS, SourceSpec(path="memory", image_root=root)))
    sources.append(from_rows(table, SourceSpec(path="memory", image_root=root)))  # type: ignore[arg-type]
    for source in sources:
        assert len(source) == 5
        for i in (0, 3, -1):
            example = source[i]
            assert example.reference == {"answer": str(range(5)[i])}
            assert example.images[0].getpixel((0, 0)) == (range(5)[i] % 2 * 100, 20, 30)
    assert [s[3].id for s in sources[:4]] == ["rows.jsonl:4", "rows.json[3]", "lines.json:4", "rows.parquet[3]"]


def test_images_inside_arrow_tables_pass_our_own_checks(tmp_path):
    pictures = [Image.fromarray(np.full((30, 40, 3), i, np.uint8)) for i in range(3)]
    features = datasets.Features({"prompt": datasets.Value("string"), "images": datasets.List(datasets.Image())})
    table = datasets.Dataset.from_dict(
        {"prompt": ["<image>?"] * 3, "images": [[p] for p in pictures]}, features=features
    )
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    for source in (
        open_source(SourceSpec(path=str(tmp_path / "saved"))),
        open_source(SourceSpec(path=str(tmp_path / "rows.parquet"))),
        from_rows(table),  # type: ignore[arg-type]
    ):
        assert [source[i].images[0].getpixel((5, 5)) for i in range(3)] == [(i, i, i) for i in range(3)]


def test_json_rows_keep_their_own_shapes(tmp_path):
    """Text here and parts there, empty objects, mixed types: Arrow would refuse them or fill them with nulls."""
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "kwargs": [{}, {"n": 3}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}], "kwargs": [{"m": "x"}]},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(SourceSpec(path=str(tmp_path / "x.jsonl")))
    assert [source[i].reference["kwargs"] for i in range(2)] == [row["kwargs"] for row in rows]
    assert [source[i].messages[0]["content"] for i in range(2)] == ["a", "b"]


def test_limit_reads_the_first_rows_only(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"broken')
    assert len(open_source(SourceSpec(path=str(tmp_path / "x.jsonl"), limit=2))) == 2
    assert len(from_rows([{"prompt": "a"}] * 9, SourceSpec(path="m", limit=4))) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": "b', r"^a\.jsonl:3: is not valid JSON \(.* at column 12\); mend"),
        ("a.jsonl", b'{"prompt": "a"}\n[1]\n', r"^a\.jsonl:2: a row must be a JSON object, got list"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', r"^a\.jsonl:1: is not UTF-8 text"),
        ("a.json", b'[{"prompt": "a"},\n{"prompt": ', r"^a\.json:2: is not valid JSON"),
        ("a.json", b'[{"prompt": "a"}, 3]', r"^a\.json\[1\]: a row must be a JSON object, got int"),
        ("a.jsonl", b"\n", r"a\.jsonl has no rows"),
        ("a.parquet", b"PAR1 not really", r"^a\.parquet: cannot be read as Parquet"),
        ("a.csv", b"a,b", r"unknown ending; known are: \.jsonl, \.ndjson, \.json, \.parquet"),
    ],
)
def test_damaged_files_are_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(SourceSpec(path=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_or_not_a_data_set_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no/such/file\.jsonl does not exist"):
        open_source(SourceSpec(path="no/such/file.jsonl"))
    with pytest.raises(DataError, match=r"data\.jsonl/x\.jsonl does not exist"):
        open_source(SourceSpec(path="data.jsonl/x.jsonl"))
    with pytest.raises(DataError, match="not one saved by"):
        open_source(SourceSpec(path=str(tmp_path)))
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(DataError, match="split and subset do not apply"):
        open_source(SourceSpec(path=str(tmp_path / "a.jsonl"), split="train"))
    with pytest.raises(DataError, match="image_root /no/folder is not a folder"):
        open_source(SourceSpec(path=str(tmp_path / "a.jsonl"), image_root="/no/folder"))
    datasets.DatasetDict({"a": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "s")
    with pytest.raises(DataError, match="has the splits a; choose one by `split`, got None"):
        open_source(SourceSpec(path=str(tmp_path / "s")))
    with pytest.raises(DataError, match="has no rows"):
        from_rows([])
    with pytest.raises(DataError, match="IterableDataset; give a Dataset"):
        from_rows(datasets.Dataset.from_list(ROWS).to_iterable_dataset())  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="has 1 rows, asked for row 1"):
        from_rows([{"prompt": "a"}])[1]


def test_a_path_that_rows_prefix_is_hinted_at_and_can_be_stripped(folder):
    row = {"prompt": "<image>", "image": "demo/old/0.png"}
    with pytest.raises(DataError, match=r"^m\[0\]: image demo/old/0\.png does not exist .* set image_strip: demo/old/"):
        from_rows([row], SourceSpec(path="m", image_root=str(folder)))[0]
    spec = SourceSpec(path="m", image_root=str(folder), image_strip="demo/old/")
    assert from_rows([row], spec)[0].images[0].size == (40, 30)
