"""``bayestune config`` and ``methods``: listing, copying, showing."""

from __future__ import annotations

import pytest
import yaml
from cli_checks import complaint

from bayestune import methods, recipes
from bayestune.cli.annotate import Note, comments, write
from bayestune.config import from_mapping, read_yaml, to_mapping


def test_ls(cli) -> None:
    listed = [line.split(None, 1) for line in cli("config", "ls").stdout.splitlines()]
    assert [name for name, _ in listed] == recipes.names()
    for name, title in listed:
        first = recipes.shipped(name).read_text(encoding="utf-8").splitlines()[0]
        assert f"# {title}" == first


def test_cp(cli, tmp_path) -> None:
    target = tmp_path / "mine.yaml"
    cli("config", "cp", "mle", target)
    assert target.read_text() == recipes.shipped("mle").read_text()
    target.write_text("seed: 9\n")
    assert f"{target} exists already" in complaint(cli("config", "cp", "mle", target, code=None))
    assert target.read_text() == "seed: 9\n"
    cli("config", "cp", "encoder", tmp_path)
    assert (tmp_path / "encoder.yaml").is_file()
    assert "exists already" in complaint(cli("config", "cp", "encoder", tmp_path, code=None))
    assert "Did you mean 'mle'?" in complaint(cli("config", "cp", "mlee", target, code=None))


@pytest.mark.parametrize("source", [(), ("polar_vbll",), ("mle",), ("quickstart", "method=mle")])
def test_show_is_the_whole_recipe(cli, source) -> None:
    data = read_yaml(recipes.shipped(source[0])) if source else {}
    method = "mle" if "mle" in " ".join(source) else "polar_vbll"
    text = cli("config", "show", *source, "rank=5", "train.lr=1e-3").stdout
    expected = to_mapping(
        methods.recipe(method, data, {"adapter": {"rank": 5}, "train": {"lr": 1e-3}})
    )
    assert to_mapping(from_mapping(yaml.safe_load(text))) == expected
    assert text.count("#") > 20


def test_show_takes_files_runs_and_their_comments(cli, run_folder, tmp_path) -> None:
    file = tmp_path / "a=b.yaml"
    file.write_text("seed: 4  # my own reason\n")
    assert "seed: 4  # my own reason" in cli("config", "show", file).stdout
    run = cli("config", "show", run_folder).stdout
    assert run == cli("config", "show", run_folder / "model").stdout
    assert yaml.safe_load(run)["adapter"]["rank"] == 4
    changed = yaml.safe_load(cli("config", "show", run_folder, "rank=2").stdout)
    assert changed["adapter"]["rank"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quikstart"], "Did you mean 'quickstart'?"),
        (["mle", "rank"], "'rank' is not of the form key=value"),
        (["method=ml"], "Did you mean 'mle'?"),
        (["rank=many"], "adapter.rank is 'many'"),
        (["epoch=3"], "Did you mean 'epochs'?"),
        (["no/such.yaml"], "no/such.yaml does not exist"),
        (["/"], "is not a run"),
    ],
)
def test_show_refuses(cli, arguments, said) -> None:
    assert said in complaint(cli("config", "show", *arguments, code=None))


def test_methods(cli) -> None:
    text = cli("methods").stdout
    for method in methods.METHODS.values():
        assert f"\n{method.name} " in text
        assert method.source in text
        assert method.summary.split()[0] in text


# the comments themselves ------------------------------------------------------------------------

TEXT = """# a header
# of two lines

# above one
one: 1  # beside one
two: "a # b"  # beside two
three:  # beside three
  # above four
  # in two lines
  four: a#b

  five: null
"""


def test_comments_belong_to_keys() -> None:
    assert comments(TEXT) == {
        "one": Note(("# above one",), "# beside one"),
        "two": Note((), "# beside two"),
        "three": Note((), "# beside three"),
        "three.four": Note(("# above four", "# in two lines"), ""),
        "three.five": Note(),
    }


def test_writing_what_was_read_keeps_values_and_comments() -> None:
    text = write(yaml.safe_load(TEXT), comments(TEXT))
    assert yaml.safe_load(text) == yaml.safe_load(TEXT)
    assert comments(text) == comments(TEXT)


@pytest.mark.parametrize(
    "value",
    [
        *("off", "null", "~", "1e-3", "12", "a: b", "# x", "a #b", "", " x ", "ü", "@a", "{text}"),
        *("{text}\nLabel:", "tab\there", "a\u2028b", '"quoted"', "'", "x" * 300, "- a", "..."),
        *("a\x85b", "é\x00\n😀"),
        *(True, None, 0, 1e-05, 2.5, -3),
    ],
)
def test_values_survive_writing(value) -> None:
    data = {"a": value, "b": {"c": value}}
    notes = {"a": Note(("# above",), "# beside"), "b.c": Note((), "# beside")}
    assert yaml.safe_load(write(data, notes)) == data
