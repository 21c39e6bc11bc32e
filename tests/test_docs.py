"""The documents: every link, command, path and import that they name exists. `make docs` runs this file alone."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.M | re.S)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
PROJECT_PATH = re.compile(r"(?<![\w./-])(?:recipes|examples|benchmarks|tools|docs|constraints)/[\w./-]*\w")

pytestmark = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


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


def test_make_targets_exist(document: Path) -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = [line.split()[1] for line in commands_of(document) if re.match(r"make [a-z]", line)]
    assert [target for target in named if target not in known] == []


def test_subcommands_exist(document: Path) -> None:
    named = [match[1] for line in commands_of(document) if (match := re.match(r"(?:\S*/)?posttrain ([a-z]+)\b", line))]
    if not named:
        pytest.skip("names no posttrain command")
    cli = importlib.import_module("posttrain.cli")
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert [verb for verb in named if verb not in known] == []


def test_project_paths_exist(document: Path) -> None:
    named = {match for line in commands_of(document) for match in PROJECT_PATH.findall(line)}
    placeholder = re.compile(r"\b[A-Z]{3}")  # recipes/NAME.yaml
    assert [path for path in sorted(named) if not placeholder.search(path) and not (ROOT / path).exists()] == []


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
