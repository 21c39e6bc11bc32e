"""The package: what is shipped is what lies in the tree, and the three libraries at the root stand alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR = PROJECT["tool"]["setuptools"]["package-dir"]
LIBRARIES = ("rewards", "algorithms", "model")
NOT_OURS = {"__pycache__", "build", "dist", "runs", "results", "node_modules"}


def files_of(folder: Path, suffix: str = "") -> list[Path]:
    """Files under a folder, but for what tools leave there; never an empty list."""
    found = [
        path
        for path in sorted(folder.rglob(f"*{suffix}"))
        if path.is_file()
        and not any(part in NOT_OURS or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    assert found, f"no *{suffix} under {folder}"
    return found


def shipped() -> dict[str, Path]:
    """Every file of the packages' folders, by its path inside the wheel."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}": path
        for package, folder in PACKAGE_DIR.items()
        for path in files_of(ROOT / folder)
    }


def run_python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_packages_listed_are_the_folders_with_an_init() -> None:
    found = set()
    for package, folder in PACKAGE_DIR.items():
        for init in files_of(ROOT / folder, "__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *inner)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {path.parent for folder in PACKAGE_DIR.values() for path in files_of(ROOT / folder, ".py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_import_nothing_else_of_the_project(library: str) -> None:
    ours = {"posttrain", "recipes", "benchmarks", "examples", "tests", *LIBRARIES}
    wrong = []
    for path in files_of(ROOT / library, ".py"):
        depth = len(path.parent.relative_to(ROOT / library).parts) + 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
                if node.level > depth:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} climbs out of {library}/")
            else:
                continue
            wrong += [
                f"{path.relative_to(ROOT)}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in ours
            ]
    assert wrong == []


@pytest.mark.parametrize("module", ["posttrain", "posttrain.rewards"])
def test_importing_rewards_loads_no_torch(module: str) -> None:
    heavy = "{'torch', 'transformers', 'trl', 'vllm', 'datasets', 'torchvision'}"
    loaded = run_python(f"import {module}, sys; print(sorted({heavy} & set(sys.modules)))", cwd=ROOT)
    assert loaded == "[]"


def test_importing_rewards_is_quick() -> None:
    """As quick as Python's own library is: it needs no other."""
    code = "import sys; before = set(sys.modules); import posttrain.rewards; "
    code += "added = {name.partition('.')[0] for name in set(sys.modules) - before}; "
    code += "print(sorted(added - sys.stdlib_module_names - {'posttrain'}))"
    assert run_python(code, cwd=ROOT) == "[]"


def test_version_is_said_once() -> None:
    assert run_python("import posttrain; print(posttrain.__version__)", cwd=ROOT) == PROJECT["project"]["version"]


def test_uninstalled_clone_finds_the_libraries(tmp_path: Path) -> None:
    """From another folder that holds a `model.py` of its own, as a user's does."""
    (tmp_path / "model.py").write_text("raise SystemExit('the wrong model')\n")
    code = f"from importlib.util import find_spec as f; [print(f('posttrain.' + name).origin) for name in {LIBRARIES}]"
    found = run_python(code, cwd=tmp_path, path=ROOT).splitlines()
    assert [Path(path) for path in found] == [ROOT / library / "__init__.py" for library in LIBRARIES]


@pytest.mark.parametrize("library", LIBRARIES)
def test_type_checkers_find_the_libraries(library: str) -> None:
    link = ROOT / "typings" / "posttrain" / library
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve(strict=True) == ROOT / library


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_packages_and_imports_alone(tmp_path: Path) -> None:
    source, wheels, unpacked = tmp_path / "source", tmp_path / "wheels", tmp_path / "unpacked"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for folder in PACKAGE_DIR.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = ["-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([sys.executable, *build, str(wheels), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(unpacked)
    metadata = {name for name in held if ".dist-info/" in name}
    assert held - metadata == set(shipped())
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    code = "import posttrain.rewards as rewards; print(rewards.__file__)"
    assert Path(run_python(code, cwd=tmp_path, path=unpacked)) == unpacked / "posttrain" / "rewards" / "__init__.py"


def test_recipes_are_shipped_and_open_with_their_command() -> None:
    recipes = files_of(ROOT / "recipes", ".yaml")
    for recipe in recipes:
        assert f"posttrain/recipes/{recipe.relative_to(ROOT / 'recipes').as_posix()}" in shipped()
        comment = recipe.read_text(encoding="utf-8").split("\n\n")[0]
        assert f"posttrain run recipes/{recipe.name}" in comment, f"{recipe.name} does not open with its launch command"


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    machine_path = re.compile(r"(?<![\w.$~}/-])/(?:work|root|mnt|Users/\w+|home/\w+|opt/\w+)/")
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = [folder for folder in folders if folder.name not in NOT_OURS | {"typings"}]
    folders = [folder for folder in folders if not folder.name.endswith(".egg-info")]
    texts = [path for folder in folders if any(folder.iterdir()) for path in files_of(folder)]
    texts += [path for path in ROOT.iterdir() if path.is_file() and path.name not in (".git", ".coverage")]
    found = []
    for path in texts:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture or the like
        if path != Path(__file__).resolve():
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if machine_path.search(line)]
    assert found == []
