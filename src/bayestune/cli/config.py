"""``bayestune config``: the recipes that ship, and what a recipe comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayestune.cli.console import emit, log, quiet
from bayestune.cli.options import Debug
from bayestune.cli.recipe import layers, resolved
from bayestune.errors import ConfigError
from bayestune.files import new_file

if TYPE_CHECKING:
    from bayestune.config import Recipe

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, copy and show recipes.")


@app.command("ls")
def ls(debug: Debug = False) -> None:
    """List the recipes that ship with the package."""
    from bayestune import recipes

    width = max(map(len, recipes.names()))
    for name in recipes.names():
        emit(f"{name:<{width}}  {recipes.title(recipes.shipped(name))}")


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(help="A name from `config ls`.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file or folder.")],
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe, with its comments, to make it your own."""
    from bayestune import recipes

    source = recipes.shipped(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise ConfigError(f"{target} exists already; give another name or remove it first.")
    with new_file(target) as stream:
        stream.write(source.read_text(encoding="utf-8"))
    log.info("copied to %s", target)


@app.command("show")
def show(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE|KEY=VALUE",
            help="A shipped name, a file or a run (else the defaults), then keys to change.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print a recipe in full, as training would use it, with what each key trades off."""
    given = list(arguments or ())
    source = given.pop(0) if given and ("=" not in given[0] or Path(given[0]).exists()) else None
    with quiet(ctx):
        recipe, file = _recipe(source, given)
    emit(annotated(recipe, file))


def annotated(recipe: Recipe, file: Path | None) -> str:
    """Return a recipe as YAML with the comments of its file, else of the shipped full recipe."""
    from bayestune import recipes
    from bayestune.cli.annotate import comments, write
    from bayestune.config import to_mapping

    notes = comments(recipes.shipped("polar_vbll").read_text(encoding="utf-8"))
    if recipe.method in recipes.names():
        notes |= comments(recipes.shipped(recipe.method).read_text(encoding="utf-8"))
    if file is not None and file.suffix in (".yaml", ".yml"):
        notes |= comments(file.read_text(encoding="utf-8"))
    return write(to_mapping(recipe), notes)


def _recipe(source: str | None, overrides: list[str]) -> tuple[Recipe, Path | None]:
    from bayestune import recipes

    if source is not None and Path(source).is_dir():
        return _of_run(Path(source), overrides), None
    merged = layers(source, {}, overrides)
    return resolved(merged), recipes.find(source) if source is not None else None


def _of_run(folder: Path, overrides: list[str]) -> Recipe:
    """Return the recipe of a run, finished or not, or of its model folder."""
    from bayestune.config import from_mapping, merge, parse_overrides, read_yaml
    from bayestune.store.manifest import model_folder, read_manifest

    base: dict[str, Any]
    if (folder / "recipe.yaml").is_file():
        base = read_yaml(folder / "recipe.yaml")
    else:
        base = read_manifest(model_folder(folder))["recipe"]
    return from_mapping(merge(base, parse_overrides(overrides)))
