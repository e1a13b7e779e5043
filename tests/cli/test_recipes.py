"""The shipped recipes: valid, true to the methods' defaults, and commented."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import bayestune
from bayestune import methods, recipes
from bayestune.cli.annotate import comments
from bayestune.config import from_mapping, keys, read_yaml, to_mapping
from bayestune.errors import ConfigError


def flat(data, prefix: str = "") -> dict[str, object]:
    """Return nested values by dotted key; an empty section is a value."""
    out: dict[str, object] = {}
    for key, value in data.items():
        deeper = isinstance(value, dict) and value
        out |= flat(value, f"{prefix}{key}.") if deeper else {prefix + key: value}
    return out


def test_names() -> None:
    assert recipes.names() == [
        *("bayesian_lora", "blob", "c_lora", "encoder", "ensemble", "ivon", "laplace_lora", "map"),
        *("mc_dropout", "mle", "polar_blob", "polar_laplace", "polar_vbll", "quickstart"),
        *("scalabl", "swag", "tfb"),
    ]


@pytest.mark.parametrize("name", recipes.names())
def test_valid_and_in_full_says_the_same(name: str) -> None:
    data = read_yaml(recipes.shipped(name))
    from_mapping(data, where=name)
    for method in methods.METHODS if "method" not in data else [data["method"]]:
        found = flat(to_mapping(methods.recipe(method, data)))
        for key, value in flat(data).items():
            assert found[key] == value, key


@pytest.mark.parametrize("name", sorted(set(recipes.names()) & set(methods.METHODS)))
def test_a_methods_own_recipe_is_its_defaults(name: str) -> None:
    stated = flat(read_yaml(recipes.shipped(name)))
    defaults = flat(to_mapping(methods.recipe(name)))
    assert {key: value for key, value in stated.items() if defaults[key] != value} == {}


def test_the_full_recipe_has_every_key_in_order_with_a_comment() -> None:
    path = recipes.shipped("polar_vbll")
    assert list(flat(read_yaml(path))) == list(keys())
    notes = comments(path.read_text(encoding="utf-8"))
    assert [k for k in keys() if k != "method" and not notes[k].beside] == []


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_options_of_a_method_stand_in_its_recipe_with_a_comment(name: str) -> None:
    own = methods.recipe(name).weights
    if own:
        path = recipes.shipped(name)
        assert read_yaml(path)["weights"] == own
        notes = comments(path.read_text(encoding="utf-8"))
        assert [key for key in own if not notes[f"weights.{key}"].beside] == []


def test_the_quick_start_names_nothing_that_tells_methods_apart() -> None:
    data = read_yaml(recipes.shipped("quickstart"))
    told_apart = {key for m in methods.METHODS.values() for key in flat(dict(m.defaults))}
    assert told_apart & flat(data).keys() == set()
    assert "method" not in data


@pytest.mark.parametrize("name", recipes.names())
def test_headers_say_how_to_launch(name: str) -> None:
    text = recipes.shipped(name).read_text(encoding="utf-8")
    assert re.search(rf"bayestune train --config {name}\b", text)
    assert recipes.title(recipes.shipped(name)).endswith(".")
    assert max(map(len, text.splitlines())) <= 110


def test_find(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.find("mle") == recipes.find("mle.yaml") == recipes.shipped("mle")
    Path("mle").write_text("seed: 1\n")  # a file of one's own comes first
    assert recipes.find("mle") == Path("mle")
    with pytest.raises(ConfigError, match="Did you mean 'encoder'"):
        recipes.find("encodr")
    with pytest.raises(ConfigError, match="config ls"):
        recipes.find("recipes/encoder.yaml")


def test_they_are_package_data() -> None:
    """The wheel takes the whole package folder, and no ignore rule takes the recipes out."""
    root = Path(bayestune.__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("installed, not a source tree")
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/bayestune"]
    ignored = (root / ".gitignore").read_text().split()
    assert not {"recipes/", "*.yaml", "*.yml"} & set(ignored)
    assert all(yaml.safe_load(recipes.shipped(name).read_text()) for name in recipes.names())
