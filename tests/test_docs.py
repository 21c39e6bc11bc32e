"""The documents: what they name exists, their lists are complete, what they show runs. `make docs` runs this alone."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.M | re.S)
RUN_BLOCK = re.compile(r"^```python run\n(.*?)^```", flags=re.M | re.S)
"""Is executed as it stands."""
TINY_BLOCK = re.compile(r"^```python tiny\n(.*?)^```", flags=re.M | re.S)
"""Is executed with a tiny model in place of the named one, and few steps."""
CODE_SPAN = re.compile(r"`([^`\n]+)`")
METRIC_OF_TOOLS = r"tools/\w+_(?:mean|frac)\b"
PROJECT_PATH = re.compile(
    rf"(?<![\w./-])(?!{METRIC_OF_TOOLS})(?:recipes|examples|benchmarks|tools|docs|constraints)/[\w./-]*\w"
)

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def commands_of(document: Path) -> list[str]:
    """Shell lines of the fenced blocks, and code spans: whatever a reader would paste."""
    text = text_of(document)
    shell = [body for language, body in FENCE.findall(text) if language in ("", "sh", "bash", "shell", "console")]
    lines = [line.strip().removeprefix("$ ") for body in shell for line in body.splitlines()]
    return lines + CODE_SPAN.findall(FENCE.sub("", text))


def anchors_of(document: Path) -> set[str]:
    """The names under which the headings can be linked."""
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text_of(document)), flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings]
    return {heading.strip().lower().replace(" ", "-") for heading in plain}


@each_document
def test_links_lead_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for first, second in LINK.findall(FENCE.sub("", text_of(document))):
        link = first or second
        if re.match(r"[a-z]+:", link):
            continue  # the web is not looked at: the tests run without a network
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@each_document
def test_make_targets_exist(document: Path) -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = [line.split()[1] for line in commands_of(document) if re.match(r"make [a-z]", line)]
    assert [target for target in named if target not in known] == []


@each_document
def test_subcommands_exist(document: Path) -> None:
    named = [match[1] for line in commands_of(document) if (match := re.match(r"(?:\S*/)?posttrain ([a-z]+)\b", line))]
    if not named:
        pytest.skip("names no posttrain command")
    cli = importlib.import_module("posttrain.cli")
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    known |= {group.name for group in cli.app.registered_groups}
    assert [verb for verb in named if verb not in known] == []


@each_document
def test_project_paths_exist(document: Path) -> None:
    named = {match for line in commands_of(document) for match in PROJECT_PATH.findall(line)}
    placeholder = re.compile(r"\b[A-Z]{3}")  # recipes/NAME.yaml
    assert [path for path in sorted(named) if not placeholder.search(path) and not (ROOT / path).exists()] == []


@each_document
def test_python_blocks_parse_and_their_imports_resolve(document: Path) -> None:
    missing = []
    for language, body in FENCE.findall(text_of(document)):
        if language not in ("python", "py"):
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "posttrain":
                module = importlib.import_module(node.module or "")
                missing += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "posttrain":
                        importlib.import_module(alias.name)
    assert missing == []


@each_document
def test_recipes_are_shipped_or_files_of_the_reader(document: Path) -> None:
    from posttrain.recipe import shipped_recipes

    verbs = r"(?:\S*/)?posttrain (?:copy|check|run|eval) ([\w/.-]+)"
    named = [match[1] for line in commands_of(document) if (match := re.match(verbs, line))]
    shipped = set(shipped_recipes())
    assert [name for name in named if name not in shipped and not name.endswith(".yaml")] == []


@each_document
def test_blocks_marked_run_do_run(document: Path) -> None:
    for body in RUN_BLOCK.findall(text_of(document)):
        exec(compile(body, document.name, "exec"), {"__name__": "document"})


def test_trainers_of_the_readme_train_and_log_what_the_glossary_explains(
    tmp_path: Path,
) -> None:
    """With a tiny model, two steps each, in a folder with a train.jsonl, in a process of their own as a user's are."""
    from posttrain.model.families import Family
    from posttrain.model.tiny import build_tiny

    blocks = TINY_BLOCK.findall(text_of(ROOT / "README.md"))
    assert len(blocks) == 2
    build_tiny(Family.QWEN3_VL, tmp_path / "tiny")
    turns = [{"role": "user", "content": "What is 2+3?"}, {"role": "assistant", "content": "5"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns, "answer": "5"}) + "\n", encoding="utf-8")
    small = {"steps": 2, "batch_size": 2, "group_size": 3, "max_new_tokens": 3}
    program = ""
    for body in blocks:
        assert "Qwen/Qwen3-VL-2B-Instruct" in body
        body = body.replace("Qwen/Qwen3-VL-2B-Instruct", "tiny")
        for key, value in small.items():
            body = re.sub(rf"\b{key}=\d+", f"{key}={value}", body)
        program += f"{body}\n"
    made = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    logs = [tmp_path / "runs" / name / "stages" / name / "metrics.jsonl" for name in ("sft", "sapo")]
    logged = {key for log in logs for line in log.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}
    assert {"nll", "reward", "zero_signal_frac"} <= logged
    assert unexplained(logged) == []


METRIC = re.compile(r"\"((?:clip|kl|log_ratio|rollout_gap|divergence|teacher/)[\w/.]*)\"")


def test_glossary_explains_the_metrics_of_every_objective() -> None:
    files = ("posttrain/objectives.py", "posttrain/distillation.py", "algorithms/diagnostics.py")
    sources = [ROOT / name for name in (*files, "algorithms/distillation.py", "posttrain/teachers/table.py")]
    named = {
        name
        for path in sources
        for name in METRIC.findall(path.read_text(encoding="utf-8"))
        if name not in ("clip_low", "clip_high", "kl_coefficient", "divergences_T")
    }
    assert len(named) >= 6
    assert unexplained(named) == []


def unexplained(metrics: Iterable[str]) -> list[str]:
    """Those that no line of the glossary in docs/report.md names."""
    glossary = text_of(ROOT / "docs/report.md").split("## Metrics")[1]
    cells = re.findall(r"^\| (`[^|]+) \|", glossary, flags=re.M)
    patterns = [pattern for cell in cells for pattern in CODE_SPAN.findall(cell)]
    assert len(patterns) > 20
    known = (*patterns, "step", "time")
    return sorted(name for name in metrics if not any(fnmatchcase(name, pattern) for pattern in known))


def test_recipe_keys_page_is_what_the_sections_say() -> None:
    """`python docs/make_recipe_keys.py` writes the page again."""
    spec = importlib.util.spec_from_file_location("make_recipe_keys", ROOT / "docs/make_recipe_keys.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert text_of(ROOT / "docs/recipe-keys.md") == module.page()


def test_recipe_keys_page_holds_every_section() -> None:
    """The page is made from a list of sections: a new one must be on it."""
    from pydantic import BaseModel

    from posttrain import config

    page = text_of(ROOT / "docs/recipe-keys.md")
    sections = [cls for cls in vars(config).values() if isinstance(cls, type) and issubclass(cls, BaseModel)]
    assert len(sections) > 12
    assert sorted({key for cls in sections for key in cls.model_fields if f"| `{key}` |" not in page}) == []


def test_reward_table_names_every_reward_and_option() -> None:
    from posttrain.rewards import available, describe

    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)", text_of(ROOT / "docs/rewards.md"), flags=re.M))
    ours = {name for name, cls in available().items() if cls.__module__.startswith("posttrain.rewards.")}
    assert set(rows) == ours
    options = [(name, option.name) for name in sorted(ours) for option in describe(name)]
    assert [f"{name}: {option}" for name, option in options if f"`{option}`" not in rows[name]] == []


def test_papers_name_every_loss() -> None:
    page = text_of(ROOT / "docs/papers.md")
    losses = [p for p in (ROOT / "algorithms").glob("*.py") if "_token_losses(\n" in p.read_text(encoding="utf-8")]
    assert len(losses) >= 3
    assert [path.name for path in losses if f"`algorithms/{path.name}`" not in page] == []


def test_pictures_are_well_formed_and_read_in_dark_mode() -> None:
    pictures = sorted((ROOT / "docs").glob("*.svg"))
    assert pictures
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert "prefers-color-scheme: dark" in picture.read_text(encoding="utf-8")


def test_pages_are_short_and_linked_from_the_readme() -> None:
    readme = text_of(ROOT / "README.md")
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert len(pages) >= 10
    assert [page.name for page in pages if f"docs/{page.name}" not in readme] == []
    written = [page for page in pages if page.name != "recipe-keys.md"]
    assert [page.name for page in written if len(text_of(page).splitlines()) > 150] == []


def test_yaml_blocks_are_recipes_or_parts_of_one() -> None:
    import yaml

    from posttrain.recipe import parse_recipe

    blocks = [body for page in DOCUMENTS for kind, body in FENCE.findall(text_of(page)) if kind == "yaml"]
    assert len(blocks) >= 3
    stub = {"name": "stub", "model": {"tiny": "qwen3"}}
    for body in blocks:
        content = yaml.safe_load(body)
        if "stages" not in content:
            data = content.pop("data", [{"path": "train.jsonl"}])
            content = {**stub, **content, "stages": {"sft": {"algorithm": "sft", "steps": 1, "data": data}}}
        parse_recipe(content)


def test_rows_of_the_data_page_can_be_read() -> None:
    from posttrain.data import SourceSpec
    from posttrain.data.formats import parse_row

    (body,) = [body for kind, body in FENCE.findall(text_of(ROOT / "docs/data.md")) if kind == "json"]
    rows, rest = [], body.strip()
    while rest:
        row, end = json.JSONDecoder().raw_decode(rest)
        rows.append(parse_row(row, SourceSpec(path="rows"), "row"))
        rest = rest[end:].strip()
    assert [len(row.messages) for row in rows] == [2, 2, 2, 1]
    assert [len(row.image_refs) for row in rows] == [1, 1, 0, 1]
    assert rows[3].task == "grounding" and rows[3].reference["label"] == "cup"
