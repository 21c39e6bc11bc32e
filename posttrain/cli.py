"""The command line: posttrain list | copy | check | run | eval | export | report | rewards | serve."""

import errno
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from posttrain.cli_rewards import rewards_app
from posttrain.console import err, out
from posttrain.errors import DataError, Interrupted, PosttrainError
from posttrain.serving.command import serve_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    name="posttrain",
    help="Post-training and RL for Qwen-VL-class vision-language models.\n\n"
    "Start with `posttrain list`, copy a recipe, check it, run it:\n\n"
    "posttrain copy sft_qwen3_vl_lora mine.yaml\n\n"
    "posttrain check mine.yaml model.path=/models/Qwen3-VL-2B-Instruct\n\n"
    "posttrain run mine.yaml stages.sft.learning_rate=2e-5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
app.add_typer(rewards_app, name="rewards")

_DISK_FAILED = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS))

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys to change: stages.rl.learning_rate=2e-6 model.path=/my/model")
]


@app.command("list")
def list_recipes() -> None:
    """Lists the shipped recipes with what each gives."""
    from posttrain.recipe import shipped_recipes

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", style="bold")
    table.add_column("")
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        table.add_row(name, first.lstrip("# ").rstrip(":"))
    out.print(table)


@app.command()
def copy(recipe: RecipeArgument, target: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Copies a shipped recipe, to be edited."""
    from posttrain.recipe import find_recipe

    source = find_recipe(recipe)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise DataError(f"{target} exists already; choose another name")
    shutil.copyfile(source, target)
    out.print(f"wrote {target}")


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="Rows of every source to look at.", min=1)] = 64,
) -> None:
    """Validates a recipe, its data and its references, and estimates what it takes. Trains nothing."""
    from posttrain.check import check_recipe, estimate_table
    from posttrain.recipe import find_recipe, load_recipe

    result = check_recipe(load_recipe(find_recipe(recipe), overrides or ()), rows=rows)
    out.print(estimate_table(result.stages))
    for problem in result.problems:
        _say("red", "problem", problem)
    if result.problems:
        raise typer.Exit(1)
    out.print("[green]ready[/green]: every row looked at can be rendered, and every reference earns its full reward")


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete what this run has made and start again.")] = False,
) -> None:
    """Runs a recipe's stages. Run it again to resume; finished stages are not run twice."""
    from posttrain.pipeline import run_recipe
    from posttrain.recipe import find_recipe, load_recipe

    try:
        run_recipe(load_recipe(find_recipe(recipe), overrides or ()), restart=restart)
    except Interrupted as stop:  # caught here: further out, click takes every KeyboardInterrupt for "Aborted!"
        _say("yellow", "interrupted", str(stop))
        raise typer.Exit(130) from None


@app.command("eval")
def evaluate(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Option(help="Checkpoint or adapter folder; default: the run's last stage.")] = "",
    overrides: Overrides = None,
) -> None:
    """Measures a model on a recipe's held-out data."""
    from posttrain.pipeline import evaluate_recipe
    from posttrain.recipe import find_recipe, load_recipe

    measured = evaluate_recipe(load_recipe(find_recipe(recipe), overrides or ()), model or None)
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out metric")
    table.add_column("value", justify="right")
    for name, value in measured.items():
        table.add_row(name, f"{value:.4f}")
    out.print(table)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder, or a run's folder.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Write the adapter alone instead of merging it.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: as trained.")] = "",
) -> None:
    """Writes a model for deployment: an adapter merged into its base, or alone. vLLM serves what it writes."""
    from posttrain.export import export_model

    out.print(f"wrote {export_model(model, target, adapter=adapter, dtype=dtype or None)}")


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")]) -> None:
    """Writes the report of a run again."""
    from posttrain.report import write_report

    if not (run_folder / "manifest.json").is_file():
        raise DataError(f"{run_folder} is not the folder of a run: it has no manifest.json")
    out.print(f"wrote {write_report(run_folder)}")


app.command("serve")(serve_model)


def main() -> None:
    """Errors that a user can put right are one sentence and exit code 1; everything else keeps its traceback."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )
    _quiet_libraries()
    sys.path.append(os.getcwd())  # a recipe's own rewards, module:function, lie beside it
    try:
        app()
    except PosttrainError as error:
        for line in str(error).splitlines():
            _say("red", "error", line)
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f" {error.filename}" if error.filename else ""
        comfort = "; nothing that was saved before is lost" if error.errno in _DISK_FAILED else ""
        _say("red", "error", f"{error.strerror or error}:{place}{comfort}")
        sys.exit(1)


def _say(colour: str, word: str, text: str) -> None:
    """A coloured word and a sentence, which may hold brackets and is not cut into lines."""
    err.print(f"[{colour}]{word}[/{colour}] {escape(text)}", highlight=False, soft_wrap=True)


def _quiet_libraries() -> None:
    """Their bars and advice would bury ours; `POSTTRAIN_VERBOSE=1` lets them speak.

    By their environment variables: importing them here would make `posttrain list` wait for torch.
    """
    if os.environ.get("POSTTRAIN_VERBOSE"):
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


if __name__ == "__main__":
    main()
