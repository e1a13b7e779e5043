"""Methods that follow a training start from a model that is trained already."""

from __future__ import annotations

import shutil

import pytest
from cli_checks import complaint, write_rows
from toy_tasks import topic_rows

from bayestune import load, methods
from bayestune.errors import BayestuneError, ConfigError, StoreError
from bayestune.progress import silent
from bayestune.store import recipe_of
from bayestune.store.manifest import read_manifest
from bayestune.training import fit
from bayestune.training.checkpoint import trainable

FOLLOWING = [(name, after) for name, m in methods.METHODS.items() for after in m.after]


@pytest.fixture(scope="module")
def starts(make, clear, unseen, tmp_path_factory):
    """Runs of the methods that others follow."""
    root = tmp_path_factory.mktemp("starts")
    for name in {after for _, after in FOLLOWING}:
        fit(make(name), clear, val=unseen, out=root / name, progress=silent)
    return root


@pytest.fixture(scope="module")
def unseen(clear, clear_test):
    """Held-out rows."""
    return clear_test.select(range(40))


def test_which_methods_follow_a_training():
    assert {name for name, _ in FOLLOWING} == {
        "temperature",
        "last_layer_laplace",
        "laplace_lora",
        "polar_laplace",
        "tfb",
    }


@pytest.mark.parametrize(("method", "after"), FOLLOWING)
def test_it_trains_as_the_one_it_follows(method, after):
    mine, other = methods.recipe(method), methods.recipe(after)
    assert (mine.adapter, mine.head, mine.prompt) == (other.adapter, other.head, other.prompt)
    if after != "map":  # whose prior is its own
        assert mine.train == other.train


@pytest.mark.parametrize(
    ("method", "after"), [pair for pair in FOLLOWING if pair[1] != "map"], ids=str
)
def test_a_start_is_the_training_itself(method, after, make, clear, unseen, starts, tmp_path):
    whole = make(method)
    fit(whole, clear, val=unseen, progress=silent)
    begun = make(method)
    run = fit(begun, clear, val=unseen, start=starts / after, out=tmp_path / "run", progress=silent)
    texts = [row["text"] for row in topic_rows(9, 5)]
    expected, found = whole.predict(texts), begun.predict(texts)
    for name in ("probs", "epistemic", "ood_score"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name
    assert run.history == []
    assert run.chosen["started_from"]["method"] == after
    expected = dict(whole.notes["chosen"])
    if method == "temperature":  # its epochs are compared at their best temperature
        del expected["best_val_nll"]
    assert {k: run.chosen[k] for k in expected} == expected
    again = load(tmp_path / "run").predict(texts)
    assert (again.probs == found.probs).all()


def test_a_start_of_a_version_with_fewer_keys(make, clear, unseen, starts, monkeypatch):
    def fewer(folder):
        manifest = read_manifest(folder)
        del manifest["recipe"]["prompt"]["style"]
        return manifest

    monkeypatch.setattr("bayestune.store.start.read_manifest", fewer)
    run = fit(make("temperature"), clear, val=unseen, start=starts / "mle", progress=silent)
    assert run.chosen["started_from"]["method"] == "mle"


def test_a_start_from_map_keeps_its_mean(make, clear, starts):
    start = load(starts / "map")
    begun = make("last_layer_laplace", finalize={"precision": 1.0})
    fit(begun, clear, start=starts / "map", progress=silent)
    texts = [row["text"] for row in topic_rows(9, 5)]
    assert (begun.features(texts) == start.features(texts)).all()
    assert (begun.head.weight == start.head.weight).all()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("blob", {}, r"is a model of 'mle'; 'blob' trains its adapter by itself"),
        ("polar_laplace", {}, r"'polar_laplace' starts from one of polar_mle"),
        ("tfb", {"rank": 2}, r"adapter\.rank is 2, but .* was trained with 4"),
        ("tfb", {"prompt": {"template": "{text}:"}}, r"prompt\.template is '{text}:'"),
        ("tfb", {"labels": ["a", "b", "c"]}, r"other classes|has the classes"),
    ],
)
def test_what_does_not_fit_is_refused(method, options, words, make, clear, unseen, starts):
    model = make(method, **options)
    before = trainable(model.backbone, model.head)
    with pytest.raises(BayestuneError, match=words):
        fit(model, clear, val=unseen, start=starts / "mle", progress=silent)
    after = trainable(model.backbone, model.head)
    changed = [k for k, v in before.items() if not v.allclose(after[k], 0, 0, equal_nan=True)]
    assert changed == []


def test_rows_that_were_learnt_choose_nothing(make, clear, starts):
    with pytest.raises(ConfigError, match=r"temperature=auto is chosen .* not seen as val"):
        fit(make("temperature"), clear, start=starts / "mle", progress=silent)


def test_there_is_nothing_to_resume(make, clear, starts, tmp_path):
    with pytest.raises(ConfigError, match="no training to resume"):
        fit(make("tfb"), clear, start=starts / "mle", out=tmp_path, resume=True, progress=silent)


def test_a_backbone_of_other_weights_is_refused(make, clear, starts, tied_base):
    model = make("tfb", base=str(tied_base))
    with pytest.raises(BayestuneError, match="another backbone"):
        fit(model, clear, start=starts / "mle", progress=silent)


def test_a_damaged_start_is_refused(make, clear, unseen, starts, tmp_path):
    shutil.copytree(starts / "mle", tmp_path / "mle")
    file = tmp_path / "mle" / "model" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="adapter_model"):
        fit(make("tfb"), clear, val=unseen, start=tmp_path / "mle", progress=silent)


def test_the_command_takes_the_recipe_from_the_run(cli, starts, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", topic_rows(60))
    options = ("train", "--data", rows, "--from", starts / "mle", "--out", tmp_path / "tfb")
    result = cli(*options, "--method", "tfb", "weights.anchors=20")
    assert result.exit_code == 0, result.stderr
    made = load(tmp_path / "tfb")
    sigma = made.notes["chosen"]["weights"]["sigma"]
    words = f"chosen: KL weight 0, sigma {sigma:.3g}, anchors 20, temperature 1"
    assert result.stdout.splitlines()[0] == words
    assert made.recipe.weights["anchors"] == 20
    assert made.recipe.adapter == load(starts / "mle").recipe.adapter
    assert recipe_of(tmp_path / "tfb") == recipe_of(starts / "mle")
    replacing = cli(*options, "--method", "blob", "--overwrite", code=2)
    assert "trains its adapter" in complaint(replacing)
    assert load(tmp_path / "tfb").recipe.method == "tfb"
    assert "already holds a run" in complaint(cli(*options, "--method", "tfb", code=2))
    assert "no training" in complaint(cli(*options, "--method", "tfb", "--dry-run", code=2))
    missing = ("train", "--data", rows, "--from", tmp_path / "no", "--out", tmp_path / "x")
    assert str(tmp_path / "no") in complaint(cli(*missing, "--method", "tfb", code=2))
