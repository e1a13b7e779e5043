"""Suite files: what ships, what is refused, and what a change means."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bayestune.bench import load_suite, names, read_suite
from bayestune.errors import ConfigError


def changed(content: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    """Return a suite's content with one value changed."""
    made = copy.deepcopy(content)
    node = made
    for key in path[:-1]:
        node[key] = node[key] or {}
        node = node[key]
    node[path[-1]] = to
    return made


TASK = ("tasks", "topics")
WRONG = [
    (
        ("lr",),
        1,
        r"unknown key 'lr'\. Valid: 'base', 'recipe', 'rates', 'tasks', 'rows', 'seeds'\.",
    ),
    (("row",), {}, r"unknown key 'row'\. Did you mean 'rows'\?"),
    (("tasks",), {}, r"there are no tasks\."),
    (("rows",), None, r"there are no rows\."),
    (("rows",), ["mle"], r"rows is \['mle'\]; expected keys and values\."),
    (("recipe",), "polar", r"recipe is 'polar'; expected keys and values\."),
    (("tasks", "a/b"), {}, r"tasks\.a/b is no name"),
    (("rows", "no"), {}, r"rows\.no on topics: There is no method 'no'"),
    (("rows", False), {}, r"rows\.False is no name.*quotes"),
    (("seeds",), 0, r"seeds is 0; it must be at least 1\."),
    (("seeds",), True, r"seeds is True"),
    (("seeds",), "3", r"seeds is '3'"),
    # tasks
    ((*TASK, "trian"), "x", r"tasks\.topics: unknown key 'trian'\. Did you mean 'train'\?"),
    (TASK, {"train": "x"}, r"tasks\.topics: test is missing\."),
    (TASK, "x.jsonl", r"tasks\.topics is 'x\.jsonl'; expected keys and values\."),
    ((*TASK, "train"), 5, r"tasks\.topics: train is 5; expected the name of a source"),
    ((*TASK, "ood"), ["x"], r"tasks\.topics: ood is \['x'\]; expected keys and values\."),
    ((*TASK, "ood"), {"x": 1}, r"x is 1; expected the name of a source"),
    ((*TASK, "train_rows"), 0, r"train_rows is 0; it must be an integer of at least 1\."),
    ((*TASK, "test_rows"), True, r"test_rows is True"),
    ((*TASK, "per_class"), 3, r"train_rows and per_class both say what is drawn"),
    ((*TASK, "val_rows"), None, r"a task needs val, or val_rows"),
    (
        (*TASK, "recipe"),
        {"train": {"lr": 1}},
        r"topics\.recipe: train\.lr cannot be set here: rates",
    ),
    ((*TASK, "recipe"), {"tarin": {}}, r"rows\.mle on topics: unknown key tarin\. Did you mean"),
    # rates
    (("rates",), {}, r"rows\.mle adapts by 'lora', and rates has none for that\."),
    (("rates",), None, r"rates has none for that"),
    (("rates", "lroa"), [1.0, 2.0], r"rates: unknown key 'lroa'\. Did you mean 'lora'\?"),
    (("rates", "lora"), [1e-3], r"rates must be equally many"),
    (("rates", "lora"), [], r"rates\.lora is \[\]; expected a list of positive learning rates\."),
    (("rates", "lora"), [0.1, -1], r"positive learning rates"),
    (("rates", "lora"), [float("nan"), 1], r"positive learning rates"),
    (("rates", "lora"), [float("inf"), 1], r"positive learning rates"),
    (("rates", "lora"), [True, 2], r"positive learning rates"),
    (("rates", "lora"), "12", r"rates\.lora is '12'; expected a list"),
    (("rates", "lora"), 1e-3, r"rates\.lora is 0\.001; expected a list"),
    (("rates", "lora"), [1e-3, 1.0000001e-3], r"the same to six digits"),
    (("rows", "mle", "rates"), 1e-3, r"rows\.mle\.rates is 0\.001; expected a list"),
    (("rows", "borrowed", "rates"), "mel", r"names 'mel', which is no row\. Did you mean 'mle'\?"),
    (("rows", "borrowed", "rates"), "borrowed", r"rows\.borrowed takes its rate from itself\."),
    (("rows", "mle", "rates"), "borrowed", r"rows\.mle takes its rate from itself\."),
    # rows
    (("rows", "mle"), "lora", r"rows\.mle is 'lora'; expected keys and values\."),
    (("rows", "mle", "methd"), "mle", r"rows\.mle: unknown key 'methd'\. Did you mean 'method'\?"),
    (("rows", "mle", "method"), "mlee", r"rows\.mle on topics: .*'mlee'\. Did you mean 'mle'\?"),
    (("rows", "mle", "method"), ["mle"], r"rows\.mle: method is \['mle'\]; expected text\."),
    (("rows", "mle", "recipe"), {"seed": 3}, r"rows\.mle\.recipe: seed cannot be set here: seeds"),
    (("rows", "mle", "recipe"), {"method": "tfb"}, r"method cannot be set here: the rows"),
    (("rows", "cooled", "start"), "borrwed", r"start names 'borrwed', which is no row\. Did you"),
    (("rows", "cooled", "start"), 5, r"rows\.cooled: start is 5; expected text\."),
    (
        ("rows", "cooled", "start"),
        "polar_vbll",
        r"temperature starts from mle or map, not from polar_vbll",
    ),
    (
        ("rows", "borrowed"),
        {"method": "mle", "start": "mle"},
        r"from no trained model, not from mle",
    ),
    (("rows", "cooled", "rates"), "mle", r"start and rates both say at which rate"),
    (
        ("rows", "cooled", "recipe"),
        {"adapter": {"rank": 2}},
        r"rows\.cooled starts from mle, whose adapter is another on topics",
    ),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG, ids=lambda x: str(x)[:40])
def test_what_is_wrong_is_named(path, value, words, content):
    with pytest.raises(ConfigError, match=words) as caught:
        read_suite(changed(content, *path, to=value), "small", "here.yaml")
    assert str(caught.value).startswith("here.yaml")


def test_every_row_is_checked_on_every_task(content):
    content = changed(content, "tasks", "other", to=dict(content["tasks"]["topics"]))
    content["rows"] = {"mle": None, "wide": {"method": "mle", "rates": "mle"}}
    content["rows"]["wide"]["recipe"] = {"adapter": {"rank": 4}}
    assert read_suite(content, "small")
    content["tasks"]["other"]["recipe"] = {"adapter": {"kind": "contextual"}}
    with pytest.raises(ConfigError, match=r"rows\.mle adapts by 'contextual'"):
        read_suite(content, "small")


def test_a_missing_suite_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no suite 'smok'; .*Did you mean 'smoke'\?"):
        load_suite("smok")
    with pytest.raises(
        ConfigError, match=r"Valid: .*'cpu-small', 'smoke', 'switches', 'trajectory'\."
    ):
        load_suite("nothing/like.this")


def test_a_file_that_is_no_suite(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"x\.yaml holds list; expected keys and values"):
        load_suite(str(path))
    path.write_text("tasks: {a: [}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml line 1 is not valid YAML"):
        load_suite(str(path))


@pytest.mark.parametrize("name", names())
def test_what_ships_reads(name):
    suite = load_suite(name)
    assert suite.name == name
    for task in suite.tasks:
        for row in suite.rows:
            assert suite.recipe_of(task, row, 1, suite.tried(task, row)[0]).seed == 1


def test_a_file_reads_as_what_ships(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_suite(str(path)) == read_suite(content, "mine")


def test_the_suite_of_the_documentation_reads():
    page = Path(__file__).parents[2] / "docs" / "benchmark.md"
    shown = re.search(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    suite = read_suite(yaml.safe_load(shown[1]), "shown")
    assert suite.tried("sst2", "temperature") == (1e-3, 2e-3, 4e-3)


def test_layers_of_a_recipe(content):
    content = changed(content, "tasks", "topics", "recipe", to={"train": {"epochs": 7}})
    suite = read_suite(content, "small", changes={"adapter": {"rank": 2}})
    mine = suite.recipe_of("topics", "mle", 3, 0.5)
    assert (mine.train.epochs, mine.train.lr, mine.seed, mine.adapter.rank) == (7, 0.5, 3, 2)
    assert suite.recipe_of("topics", "borrowed").train.epochs == 2  # a row's own goes last
    with pytest.raises(ConfigError, match=r"train\.lr cannot be set here: rates sets it"):
        read_suite(content, "small", changes={"train": {"lr": 1.0}})


def test_rates_that_are_tried(suite):
    assert suite.rates_of("topics", "mle") == suite.tried("topics", "mle") == (1e-3, 2e-2)
    assert suite.rates_of("topics", "cooled") == suite.rates_of("topics", "borrowed") == "mle"
    assert suite.tried("topics", "cooled") == suite.tried("topics", "borrowed") == (1e-3, 2e-2)
    assert suite.tried("topics", "polar_vbll") == (4e-3, 2e-2)


@pytest.mark.parametrize(
    ("rates", "middle"), [([4, 1, 2], 2), ([1, 2], 1), ([3], 3), ([1, 2, 3, 4], 2)]
)
def test_the_middle_rate(rates, middle, content):
    content = changed(content, "rows", "mle", "rates", to=rates)
    suite = read_suite(content, "small").at_middle_rates()
    assert suite.tried("topics", "mle") == suite.tried("topics", "cooled") == (middle,)
    assert suite.tried("topics", "polar_vbll") == (4e-3,)
