"""Where values of a recipe come from: YAML files and ``key=value`` overrides."""

from __future__ import annotations

import pytest

from bayestune.config import ALIASES, from_mapping, keys, nest, parse_overrides, read_yaml
from bayestune.errors import ConfigError


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_yaml_of_nothing_is_no_values(file):
    assert read_yaml(file("")) == {}
    assert read_yaml(file("# only a comment\n")) == {}
    assert read_yaml(str(file("\ufeffseed: 3\n"))) == {"seed": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\ntrain:\n  lr: 'open\n", "line 4 is not valid YAML: found unexpected end"),
        ("seed: 1\n\ttrain: 2\n", "line 2 is not valid YAML: found character"),
        ("train: {lr: 1\nseed: 2", "line 2 is not valid YAML"),
        ("a: b: c\n", "line 1 is not valid YAML: mapping values are not allowed"),
        ("? [a]\n: 1\n", "line 1 is not valid YAML: found unhashable key"),
        ("x: !!python/object:os.system {}\n", "line 1 is not valid YAML: could not determine"),
        ("revision: 2024-02-31\n", "is not valid YAML: day is out of range"),
        ("seed: \x00\n", "is not valid YAML: unacceptable character"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read: 'utf-8' codec can't decode"),
        ("just words", "holds str; expected keys and values"),
        ("- a\n- b\n", "holds list; expected keys and values"),
        ("42", "holds int; expected keys and values"),
    ],
)
def test_a_bad_file_is_named_with_its_line(content, message, file):
    path = file(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist; `bayestune config ls`"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("lr=2", "train.lr", 2.0),
        (" lr = 2 ", "train.lr", 2.0),
        ("r=4", "adapter.rank", 4),
        ("rank=4", "adapter.rank", 4),
        ("base=org/name", "model", "org/name"),
        ("seed=-1", "seed", -1),
        ("kl=auto", "train.kl", "auto"),
        ("prefix=off", "cache.prefix", "off"),
        ("refresh=none", "finalize.refresh", "none"),
        ("refresh=null", "finalize.refresh", "none"),
        ("learn_prior=true", "head.learn_prior", True),
        ("class_weights=a=2,b=0.5", "train.class_weights", "a=2,b=0.5"),
        ("class_weights=none", "train.class_weights", "none"),
        ("layers=top:8", "adapter.layers", "top:8"),
        ("layers=3", "adapter.layers", "3"),
        ("layers=[0, 2]", "adapter.layers", "0,2"),
        ("layers=0,2", "adapter.layers", "0,2"),
        ("targets=[q_proj, v_proj]", "adapter.targets", "q_proj,v_proj"),
        ("revision=", "revision", None),
        ("revision=null", "revision", None),
        ("revision=0123456", "revision", "0123456"),  # not the octal number
        ("revision=2024-02-31", "revision", "2024-02-31"),
        ("revision='null'", "revision", "null"),
        ("template={text}", "prompt.template", "{text}"),  # not a mapping
        ("template=[{text}]", "prompt.template", "[{text}]"),  # not a list
        ("template=Classify: {text}", "prompt.template", "Classify: {text}"),
        ("template=Issue # {text}", "prompt.template", "Issue # {text}"),
        ("template=#{text}", "prompt.template", "#{text}"),
        ('template="{text}\\nLabel:"', "prompt.template", "{text}\nLabel:"),
        ("template={text}\nLabel:", "prompt.template", "{text}\nLabel:"),
    ],
)
def test_an_override_is_read_as_it_is_meant(pair, key, value):
    recipe = from_mapping(parse_overrides([pair]))
    for part in key.split("."):
        recipe = getattr(recipe, part)
    assert recipe == value and type(recipe) is type(value)


def test_overrides_add_up_and_the_last_one_wins():
    nested = parse_overrides(["lr=1", "epochs=2", "train.lr=3", "seed=4"])
    assert nested == {"train": {"lr": 3, "epochs": 2}, "seed": 4}


@pytest.mark.parametrize("pair", ["lr", "=3", "", " =3", "train.lr: 3"])
def test_an_override_without_key_or_value(pair):
    with pytest.raises(ConfigError, match=r"is not of the form key=value, as in train\.lr=1e-3"):
        parse_overrides([pair])


def test_every_last_part_is_a_key_or_ambiguous():
    for key in keys():
        short = key.rsplit(".", 1)[-1]
        alike = [k for k in keys() if k.rsplit(".", 1)[-1] == short]
        if len(alike) == 1 or key == short:
            assert nest({short: 1}) == nest({key: 1})
        else:
            with pytest.raises(ConfigError) as error:
                nest({short: 1})
            assert str(error.value) == (
                f"the key {short} stands for {' and '.join(alike)}: write one of them."
            )


def test_kind_is_ambiguous():
    with pytest.raises(ConfigError, match=r"kind stands for adapter\.kind and head\.kind"):
        parse_overrides(["kind=polar"])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "Did you mean 'epochs'"),
        ("train.learning", "Did you mean 'train."),
        ("adaptor.rank", "Did you mean 'adapter.rank'"),
        ("train.lr.x", "Did you mean 'train.lr'"),
        ("xyzzy", "Valid: "),
    ],
)
def test_an_unknown_override_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError) as error:
        parse_overrides([f"{key}=1"])
    assert str(error.value).startswith(f"unknown key {key}. {nearest}")


def test_aliases_stand_for_keys():
    assert set(ALIASES.values()) <= set(keys())
    assert not set(ALIASES) & set(keys())


def _bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join([*lines, "method: *i"])


@pytest.mark.parametrize(
    "text", [_bomb(), "method: &a [*a]", "weights: &a {x: *a}", "[" * 3000, "{a: " * 3000]
)
@pytest.mark.timeout(30)
def test_aliases_that_multiply_and_nesting_without_end_are_refused(text, tmp_path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"stands for more than|nested too deeply|is not valid"):
        read_yaml(tmp_path / "x.yaml")


def test_an_anchor_that_is_used_twice_is_fine(tmp_path) -> None:
    (tmp_path / "x.yaml").write_text("train: &t {lr: 1e-3}\nadapter: {rank: 4}\nx: *t\n")
    assert read_yaml(tmp_path / "x.yaml")["x"] == {"lr": "1e-3"}


@pytest.mark.parametrize("value", ["[" * 3000, "&a [*a]", "{a:" * 3000])
def test_values_of_overrides_without_end_are_text(value) -> None:
    assert parse_overrides([f"prompt.template={value}"]) == {"prompt": {"template": value}}
    with pytest.raises(ConfigError, match=r"adapter\.rank is"):
        from_mapping(parse_overrides([f"adapter.rank={value}"]))
