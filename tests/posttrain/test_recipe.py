"""Recipes: strict keys at every depth, overrides, and the shipped files."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.errors import ConfigError
from posttrain.recipe import find_recipe, load_recipe, parse_recipe, recipe_folder, shipped_recipes

WHOLE: dict[str, Any] = {
    "name": "whole",
    "model": {"tiny": "qwen3_vl", "lora": {"rank": 4}},
    "engine": {"kind": "transformers"},
    "rewards": {"math": {"rewards": [{"name": "math", "weight": 1.0}]}},
    "evaluation": {"data": [{"scenes": {"task": "count"}}]},
    "stages": {
        "warm": {"algorithm": "sft", "steps": 1, "data": [{"scenes": {"task": "ground"}}]},
        "sapo": {"algorithm": "sapo", "steps": 1, "data": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]},
    },
}


@pytest.fixture
def whole() -> dict[str, Any]:
    return copy.deepcopy(WHOLE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    return path


def put(content: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        content = content[int(key)] if isinstance(content, list) else content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("sed", "seed"),
        ("model.dtyp", "dtype"),
        ("model.lora.ranks", "rank"),
        ("engine.kinds", "kind"),
        ("rewards.math.truncate", "truncated"),
        ("rewards.math.rewards.0.wieght", "weight"),
        ("evaluation.temperature", "temperatures"),
        ("evaluation.data.0.scene", "scenes"),
        ("evaluation.data.0.scenes.sizes", "size"),
        ("stages.warm.learning_rat", "learning_rate"),
        ("stages.warm.data.0.scenes.tasks", "task"),
        ("stages.sapo.tau_negativ", "tau_negative"),
        ("stages.sapo.data.1.pth", "path"),
    ],
)
def test_an_unknown_key_is_refused_by_its_path_with_the_nearest_key(
    path: str, nearest: str, whole: dict[str, Any]
) -> None:
    put(whole, path, 1)
    with pytest.raises(ConfigError, match=rf"'{re.escape(path)}' is not a key; did you mean '{nearest}'\?") as caught:
        parse_recipe(whole, source="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")


def test_an_unknown_key_that_is_near_to_none_lists_the_keys(whole: dict[str, Any]) -> None:
    put(whole, "model.lora.xyz", 1)
    with pytest.raises(ConfigError, match=r"'model.lora.xyz' is not a key; keys here are: alpha, dropout, parts, rank"):
        parse_recipe(whole)


def test_a_key_of_another_algorithm_is_unknown(whole: dict[str, Any]) -> None:
    put(whole, "stages.warm.group_size", 8)
    with pytest.raises(ConfigError, match=r"'stages.warm.group_size' is not a key"):
        parse_recipe(whole)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", "zero", "'seed' is 'zero': input should be a valid integer"),
        ("seed", -1, "'seed' is -1: input should be greater than or equal to 0"),
        ("model.dtype", "float8", "'model.dtype' is 'float8': input should be 'float32' or 'bfloat16'"),
        ("model.path", "x", "'model': give exactly one of 'path'"),
        ("model.tiny", None, "'model': give exactly one of 'path'"),
        ("stages.warm.epochs", 1, "'stages.warm': give exactly one of 'steps' and 'epochs'"),
        ("stages.warm.steps", None, "'stages.warm': give exactly one of 'steps' and 'epochs'"),
        ("stages.warm.steps", 0, "'stages.warm.steps' is 0"),
        ("stages.warm.data", [], "stages.warm.data is empty: name at least one source"),
        ("stages.warm.data.0.path", "x", "'stages.warm.data.0': give exactly one of 'path'"),
        ("stages.warm.algorithm", "ppo", "'stages.warm.algorithm' is 'ppo'; algorithms are: .*sapo"),
        ("stages.sapo.group_size", 1, "'stages.sapo.group_size' is 1"),
        ("stages.sapo.betas", [0.9], r"'stages.sapo.betas.1' is missing"),
        ("stages.sapo.freeze", ["visoin"], "'stages.sapo.freeze.0' is 'visoin': input should be 'vision'"),
        ("stages.sapo.learning_rates", {"visoin": 1.0}, "'stages.sapo.learning_rates.visoin"),
        ("stages", {}, "'stages' is {}"),
        ("stages", None, "'stages' is None"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_wanted(
    path: str, value: Any, message: str, whole: dict[str, Any]
) -> None:
    put(whole, path, value)
    with pytest.raises(ConfigError, match=message):
        parse_recipe(whole)


def test_every_problem_gets_a_line(whole: dict[str, Any]) -> None:
    del whole["name"], whole["stages"]["warm"]["algorithm"]
    whole["modle"] = {}
    with pytest.raises(ConfigError) as caught:
        parse_recipe(whole)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("'name' is missing" in line for line in lines)
    assert any("'stages.warm.algorithm' is missing" in line for line in lines)
    assert any("'modle' is not a key; did you mean 'model'?" in line for line in lines)


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nstages:\n  sft:\n    steps: 1\n    batch_size: 2\n    steps: 3\n")
    with pytest.raises(ConfigError, match=r"key 'steps' stands twice in .*twice.yaml, line 6"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("", "holds NoneType, a recipe is a mapping"),
        ("- a\n- b\n", "holds list, a recipe is a mapping"),
        ("? [a, b]\n: 1\n", "is no plain word"),
        ("name: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01name")
    with pytest.raises(ConfigError, match=r"recipe.yaml (cannot be read|is not valid YAML)"):
        load_recipe(tmp_path / "recipe.yaml")


def test_overrides_reach_every_depth(file: Path) -> None:
    recipe = load_recipe(
        file,
        [
            "stages.sapo.learning_rate=2e-6",
            "stages.sapo.data.1.path=/my/rows.jsonl",
            "stages.warm.freeze=[vision, merger]",
            "model.lora=null",
            "evaluation=null",
            "rewards.math.truncated=unscored",
            "threads=2",
            "name=a=b",
        ],
    )
    sapo: Any = recipe.stages["sapo"]
    assert sapo.learning_rate == 2e-6 and sapo.data[1].path == "/my/rows.jsonl" and sapo.data[0].path == "a.jsonl"
    assert recipe.stages["warm"].freeze == ["vision", "merger"]
    assert recipe.model.lora is None and recipe.evaluation is None and recipe.threads == 2
    assert recipe.rewards["math"].truncated == "unscored"
    assert recipe.name == "a=b"


def test_an_override_can_open_a_section(file: Path) -> None:
    recipe = load_recipe(file, ["model.lora.alpha=8", "stages.warm.learning_rates.merger=1e-4"])
    assert recipe.model.lora is not None and recipe.model.lora.alpha == 8
    assert recipe.stages["warm"].learning_rates == {"merger": 1e-4}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.warm.steps", "override 'stages.warm.steps' is not of the form path.to.key=value"),
        ("=3", "is not of the form path.to.key=value"),
        ("stages.sapo.data.7.path=x", "override 'stages.sapo.data.7': the list has 2 entries, counted from 0"),
        ("stages.sapo.data.first.path=x", "the list has 2 entries"),
        ("stages.sapo.data.0=x", "'stages.sapo.data.0'"),
        ("name.first=x", "'name' is 'whole' and has no keys"),
        ("stages.warn.steps=3", "'stages.warn.algorithm' is missing"),
        ("stages.warm.stesp=3", "did you mean 'steps'"),
        ("stages.warm.steps=1e3", "'stages.warm.steps' is '1e3'"),
        ("stages.warm.freeze=[vision", r"'stages.warm.freeze' is '\[vision'"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(file, [override])


def test_shipped_recipes_are_found_by_name_file_name_and_path_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = recipe_folder() / "quickstart.yaml"
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml", "./recipes/quickstart.yaml"):
        assert find_recipe(name) == wanted
    own = tmp_path / "quickstart.yaml"
    own.write_text("name: mine")
    assert find_recipe("quickstart.yaml").resolve() == own


def test_a_missing_recipe_names_the_nearest_and_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe file 'quikstart.yaml'; did you mean 'quickstart'\? Shipped"):
        find_recipe("quikstart.yaml")
    with pytest.raises(
        ConfigError, match=r"no recipe file 'zzz/zzz.yaml'. Shipped recipes: .*quickstart, .*posttrain list"
    ):
        find_recipe("zzz/zzz.yaml")


SHIPPED = shipped_recipes()


def test_recipes_are_shipped() -> None:
    assert len(SHIPPED) >= 4 and "quickstart" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_parses_and_opens_with_what_it_is_and_how_to_launch_it(name: str) -> None:
    path = SHIPPED[name]
    recipe = load_recipe(path)
    assert recipe.name == name
    head = path.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert head[0].startswith("# ") and head[0].endswith(":")
    assert head[2].startswith("#   posttrain ") and f"recipes/{name}.yaml" in head[2]
    text = "\n".join(head)
    assert "# Needs:" in text and "# Gives:" in text
    commands = re.findall(r"posttrain (?:run|check) recipes/\S+.*", text)
    assert commands
    for command in commands:
        load_recipe(path, [word for word in command.split() if "=" in word])


def test_every_yaml_file_beside_the_recipes_is_package_data() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    setuptools = project["tool"]["setuptools"]
    assert "posttrain.recipes" in setuptools["packages"]
    patterns = setuptools["package-data"]["posttrain.recipes"]
    files = [p for p in recipe_folder().rglob("*") if p.suffix in (".yaml", ".yml")]
    assert len(files) >= 4
    assert all(any(p.parent == recipe_folder() and p.match(pattern) for pattern in patterns) for p in files)
