"""Recipes: every key, its type and its range, from YAML to the dataclass and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bayestune.config import Recipe, from_mapping, keys, merge, read_yaml, to_mapping
from bayestune.errors import ConfigError


def nested(key: str, value: Any) -> dict[str, Any]:
    """A mapping that holds one dotted key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def at(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


def type_of(key: str) -> Any:
    hint: Any = Recipe
    for part in key.split("."):
        hint = typing.get_type_hints(hint)[part]
    return hint


def members(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def words(key: str) -> list[str]:
    """The words that a key takes."""
    return [w for m in members(type_of(key)) if typing.get_origin(m) is typing.Literal
            for w in typing.get_args(m)]  # fmt: skip


#: Another legal value for every key whose type does not name one.
OTHER: dict[str, Any] = {
    "train.max_steps": 500,
    "method": "mle",
    "model": "org/name",
    "revision": "abc",
    "seed": 3,
    "device": "cpu",
    "adapter.rank": 4,
    "adapter.alpha": 2.5,
    "adapter.dropout": 0.1,
    "adapter.targets": "q_proj,v_proj",
    "adapter.layers": "top:3",
    "head.prior_scale": 0.25,
    "head.init_scale": 0.1,
    "head.columns": 2,
    "head.axes": 7,
    "head.joint": True,
    "head.learn_prior": True,
    "train.epochs": 7,
    "train.batch_size": 5,
    "train.lr": 1e-5,
    "train.head_lr": 0.5,
    "train.warmup": 0.0,
    "train.floor": 0.5,
    "train.clip": 0.0,
    "train.weight_decay": 0.01,
    "train.kl": 0.3,
    "train.head_steps": 2,
    "train.label_smoothing": 0.1,
    "train.entropy_bonus": 0.05,
    "train.hold_out": 0.25,
    "train.patience": 2,
    "finalize.precision": 10.0,
    "finalize.temperature": 1.5,
    "prompt.template": 'Say "{text}": #1\n{text2}\nLabel:',
    "prompt.chat": True,
    "prompt.max_length": 33,
    "prompt.system": None,
    "cache.max_gb": 0.0,
    "cache.max_disk_gb": 1.5,
    "predict.samples": 64,
    "weights": {"prior_std": 0.1},
}


def test_the_sections_are_those_of_the_recipe():
    assert {key.split(".")[0] for key in keys() if "." in key} == {
        *("adapter", "head", "train", "finalize", "prompt", "cache", "predict")
    }
    assert keys()["train.lr"].default == Recipe().train.lr


@pytest.mark.parametrize("key", list(keys()))
def test_every_key_comes_back_from_yaml(key, tmp_path):
    values = words(key) or []
    if key in OTHER:
        values = [*values, OTHER[key]]
    assert values, f"{key} is new: give it a value in OTHER"
    for value in values:
        recipe = from_mapping(nested(key, value))
        assert at(recipe, key) == value and type(at(recipe, key)) is type(value)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False), encoding="utf-8")
        assert from_mapping(read_yaml(path)) == recipe
        others = {k for k in keys() if at(recipe, k) != at(Recipe(), k)}
        assert others <= {key}


def test_nothing_given_is_the_defaults():
    assert from_mapping({}) == Recipe()
    assert from_mapping({"train": None, "head": {}}) == Recipe()
    assert list(to_mapping(Recipe())) == [f.name for f in dataclasses.fields(Recipe)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"trian": {}}, r"unknown key trian\. Did you mean 'train'\?"),
        ({"train": {"epoch": 3}}, r"unknown key train\.epoch\. Did you mean 'epochs'\?"),
        ({"adapter": {"rnak": 3}}, r"unknown key adapter\.rnak\. Did you mean 'rank'\?"),
        ({"head": {"zzz": 3}}, r"unknown key head\.zzz\. Valid: 'kind', 'prior'"),
        ({"prompt": {"sytem": "x"}}, r"unknown key prompt\.sytem\. Did you mean 'system'\?"),
        ({1: 2}, r"unknown key 1\."),
        ({None: 2}, r"unknown key None\."),
        ({True: 2}, r"unknown key True\."),  # YAML reads an unquoted on as true
    ],
)
def test_an_unknown_key_names_the_nearest(data, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(data)


@pytest.mark.parametrize("section", [5, "x", ["epochs", 3], True])
def test_a_section_is_a_mapping(section):
    with pytest.raises(ConfigError, match=r"train is .*; expected a section of keys"):
        from_mapping({"train": section})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", 2.5, "a whole number"),
        ("train.epochs", "3", "a whole number"),
        ("train.epochs", True, "a whole number"),
        ("train.epochs", None, "a whole number"),
        ("train.lr", "fast", "a finite number"),
        ("train.lr", True, "a finite number"),
        ("train.lr", [1.0], "a finite number"),
        ("train.lr", float("nan"), "a finite number"),
        ("train.lr", "inf", "a finite number"),
        ("train.lr", 10**400, "a finite number"),
        ("train.kl", "cold", "'auto' or a finite number"),
        ("train.schedule", "both", "'alternate' or 'joint'"),
        ("train.schedule", 1, "'alternate' or 'joint'"),
        ("head.learn_prior", 1, "true or false"),
        ("head.learn_prior", "true", "true or false"),
        ("model", True, "text"),
        ("model", {"a": 1}, "text"),
        ("adapter.layers", [[0], 1], "text"),
        ("adapter.layers", 0.5, "text"),
        ("revision", 0.5, "text or null"),
        (
            "finalize.refresh",
            False,
            "'auto' or 'none' or 'diagonal' or 'eigen' or 'block' or 'kronecker' or 'full'",
        ),
    ],
)
def test_a_wrong_type_names_the_key_and_what_is_expected(key, value, expected):
    with pytest.raises(ConfigError) as error:
        from_mapping(nested(key, value), where="my.yaml")
    assert str(error.value) == f"my.yaml: {key} is {value!r}; expected {expected}."


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("adapter.rank", 0),
            ("adapter.alpha", 0),
            ("adapter.dropout", 1),
            ("head.prior_scale", 0),
        ),
        *(("head.init_scale", -1), ("train.epochs", 0), ("train.batch_size", 0), ("train.lr", 0)),
        *(("train.head_lr", -1), ("train.warmup", 1), ("train.clip", -1), ("train.kl", -0.1)),
        *(("train.weight_decay", -1), ("train.head_steps", 0), ("train.hold_out", 1)),
        *(("train.label_smoothing", 1), ("train.entropy_bonus", -0.1)),
        *(("train.patience", -1), ("finalize.precision", 0), ("finalize.temperature", -2)),
        *(("cache.max_gb", -1), ("cache.max_disk_gb", -1), ("predict.samples", -1)),
        *(("prompt.max_length", 0), ("prompt.template", "no field"), ("prompt.system", "Be kind.")),
    ],
)
def test_a_value_out_of_range_names_file_and_key(key, value):
    with pytest.raises(ConfigError) as error:
        from_mapping(nested(key, value), where="my.yaml")
    section, leaf = key.split(".")
    assert str(error.value).startswith(f"my.yaml: {section}")
    assert leaf in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {lr: 1e-3}", "train.lr", 1e-3),  # YAML 1.1 reads 1e-3 as text
        ("train: {lr: 1}", "train.lr", 1.0),
        ("train: {kl: 1e-2}", "train.kl", 1e-2),
        ("train: {kl: auto}", "train.kl", "auto"),
        ("train: {class_weights: null}", "train.class_weights", "none"),
        ("train: {class_weights: a=2}", "train.class_weights", "a=2"),
        ("cache: {prefix: off}", "cache.prefix", "off"),  # YAML reads off as false
        ("cache: {prefix: 'off'}", "cache.prefix", "off"),
        ("finalize: {refresh: null}", "finalize.refresh", "none"),
        ("finalize: {refresh: none}", "finalize.refresh", "none"),
        ("finalize: {temperature: ~}", "finalize.temperature", "none"),
        ("revision: null", "revision", None),
        ("revision: 12345", "revision", "12345"),
        ("adapter: {layers: 3}", "adapter.layers", "3"),
        ("adapter: {layers: [0, 2]}", "adapter.layers", "0,2"),
        ("adapter: {targets: [q_proj, v_proj]}", "adapter.targets", "q_proj,v_proj"),
        ("adapter: {layers: top:25%}", "adapter.layers", "top:25%"),
    ],
)
def test_what_people_write_is_what_they_mean(text, key, value, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert at(from_mapping(read_yaml(path)), key) == value


def test_merging_lays_later_values_over_earlier_ones():
    below = {"train": {"lr": 1.0, "kl": 0.0}, "seed": 1}
    above = {"train": {"lr": 2.0}, "head": {"kind": "linear"}}
    merged = merge(below, above, {"seed": 2})
    assert merged == {"train": {"lr": 2.0, "kl": 0.0}, "seed": 2, "head": {"kind": "linear"}}
    assert below == {"train": {"lr": 1.0, "kl": 0.0}, "seed": 1}  # inputs stay as they were


def test_an_empty_section_takes_nothing_away():
    assert merge({"train": {"lr": 1.0}}, {"train": None}) == {"train": {"lr": 1.0}}
    assert merge({"train": {"lr": 1.0}}, {"train": {}}) == {"train": {"lr": 1.0}}
    assert merge({"revision": "abc"}, {"revision": None}) == {"revision": None}


positive = st.floats(1e-12, 1e12)
share = st.floats(0, 1, exclude_max=True)
line = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
#: Values in range for keys whose type alone does not say.
IN_RANGE: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("adapter.dropout", "train.warmup", "train.floor", "train.hold_out"), share),
    **dict.fromkeys(("train.label_smoothing", "train.entropy_bonus"), share),
    **dict.fromkeys(("prompt.max_length", "predict.samples"), st.integers(2, 10**6)),
    "prompt.template": st.none()
    | line.map(lambda t: t.replace("{", "").replace("}", "") + "{text}"),
    "prompt.system": st.none(),
    "seed": st.integers(-(10**9), 10**9),
}


def strategy(key: str) -> st.SearchStrategy[Any]:
    plain = {float: positive, int: st.integers(1, 10**6), bool: st.booleans(), str: line,
             type(None): st.none()}  # fmt: skip
    if key in IN_RANGE:
        return IN_RANGE[key]
    parts = [plain[m] for m in members(type_of(key)) if m in plain]
    return st.one_of(*parts, *([st.sampled_from(words(key))] if words(key) else []))


recipes = st.fixed_dictionaries({}, optional={key: strategy(key) for key in keys()})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(recipes)
def test_a_recipe_survives_yaml(flat):
    try:
        recipe = from_mapping(merge(*(nested(key, value) for key, value in flat.items())))
    except ConfigError as error:
        # the keys that can contradict each other
        assert "finalize.ref" in str(error) or "A template and the style" in str(error)
        assume(False)
    plain = to_mapping(recipe)
    assert to_mapping(from_mapping(plain)) == plain
    assert from_mapping(yaml.safe_load(yaml.safe_dump(plain, sort_keys=False))) == recipe
    for key, value in flat.items():
        assert at(recipe, key) == value
