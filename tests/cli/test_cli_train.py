"""``bayestune train``: precedence, what it writes, the dry run, interrupting and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_checks import complaint, files_under, write_rows
from fake_trackers import install
from toy_tasks import topic_rows

import bayestune
from bayestune.cli.recipe import layers, resolved
from bayestune.training.loop import Loop


def test_a_run_is_complete_and_reported(runs) -> None:
    out, result = runs["polar_vbll"]
    assert {"model", "recipe.yaml", "env.json", "metrics.jsonl"} <= {p.name for p in out.iterdir()}
    table = result.stdout.splitlines()
    assert table[0].split()[:3] == ["epoch", "train", "nll"]
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    for row, line in zip(epochs, table[1:4], strict=True):
        assert line.split()[:3] == [f"{row[k]:.4g}" for k in ("epoch", "train_nll", "val_nll")]
    best = min(epochs, key=lambda row: row["val_nll"])["epoch"]
    assert [line.endswith("kept") for line in table[1:4]] == [e == best for e in (1, 2, 3)]
    assert table[4].startswith("chosen: KL weight 1, covariance ")
    assert table[5].endswith(f"saved in {out}/model")
    assert "90 rows, 3 classes" in result.stderr


def test_third_parties_are_silent(runs) -> None:
    for _, result in runs.values():
        assert result.stderr.splitlines()[1].startswith("loading ")
        for noise in ("it/s", "LOAD REPORT", "Warning", "newly initialized"):
            assert noise not in result.stderr


def test_prompts_that_are_cut_are_counted(cli, train_arguments, tmp_path) -> None:
    result = cli(*train_arguments, "--out", tmp_path / "run", "epochs=1", "max_length=5")
    # 81 training rows and 9 held out of 90; none of them has 5 tokens or fewer
    for count in (81, 9):
        assert f"{count} of {count} prompts have more than 5 tokens (prompt.max_length) and" in (
            result.stderr
        )


def test_precedence(tmp_path) -> None:
    def chosen(config=None, flags=None, overrides=()):
        recipe = resolved(layers(config, flags or {}, overrides))
        return recipe.method, recipe.seed, recipe.train.lr, recipe.train.epochs

    method, seed, lr, _ = chosen()
    assert (method, seed) == ("polar_vbll", 0)
    default = resolved({"method": "mle"})
    assert chosen(flags={"method": "mle"}) == ("mle", 0, default.train.lr, default.train.epochs)
    assert default.train.lr != lr  # or the next lines would show nothing

    file = tmp_path / "mine.yaml"
    file.write_text("method: mle\nseed: 3\ntrain:\n  epochs: 7\n")
    assert chosen(str(file)) == ("mle", 3, default.train.lr, 7)  # defaults < file
    assert chosen(str(file), {"seed": 4, "method": None}) == ("mle", 4, default.train.lr, 7)
    assert chosen(str(file), {"seed": 4}, ["seed=5", "epochs=9"]) == (
        "mle",
        5,
        default.train.lr,
        9,
    )
    assert chosen(str(file), {"method": "polar_vbll"}, ["train.lr=1"]) == ("polar_vbll", 3, 1, 7)
    assert chosen(str(file), {"method": "polar_vbll"}, ["method=mle"])[0] == "mle"
    assert chosen("mle")[0] == chosen("mle.yaml")[0] == "mle"  # a shipped recipe


def test_flags_columns_limit_and_validation(cli, llama_base, tmp_path) -> None:
    rows = [{"body": r["text"], "topic": r["label"]} for r in topic_rows(60)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    val = write_rows(tmp_path / "v.jsonl", rows[:20])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: mle\nseed: 3\nadapter: {rank: 2, layers: 'top:1'}\n")
    out = tmp_path / "run"
    result = cli(
        *("train", "--model", llama_base, "--data", data, "--val", val, "--out", out),
        *("--text", "body", "--label", "topic", "--limit", 40, "--config", recipe),
        *("--seed", 4, "--device", "cpu", "--dtype", "float32", "epochs=1"),
    )
    assert f"{data}: 40 rows, 3 classes" in result.stderr
    assert f"{val}: 20 rows" in result.stderr
    model = bayestune.load(out)
    used = model.recipe
    assert (used.method, used.seed, used.device, used.dtype) == ("mle", 4, "cpu", "float32")
    assert (used.adapter.rank, used.train.epochs) == (2, 1)
    assert (model.task.fields.text, model.task.fields.label) == ("body", "topic")
    # What was trained is what the library would have trained.
    train = bayestune.Task.from_jsonl(data, text="body", label="topic", limit=40)
    twin = bayestune.build(config=used, method="mle", labels=train)
    bayestune.fit(twin, train, val=bayestune.Task.from_jsonl(val, like=train))
    expected, actual = (m.predict(["my parcel", "a volcano"]).probs for m in (twin, model))
    assert actual.equal(expected)


def test_a_run_is_not_overwritten_unless_asked_to(cli, train_arguments, tmp_path) -> None:
    out = tmp_path / "run"
    cli(*train_arguments, "--out", out, "epochs=1")
    before = files_under(out)
    sentence = complaint(cli(*train_arguments, "--out", out, "epochs=1", code=None))
    assert str(out) in sentence
    assert "--resume" in sentence
    assert "--overwrite" in sentence
    assert files_under(out) == before
    cli(*train_arguments, "--out", out, "epochs=2", "--overwrite")
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert bayestune.load(out).recipe.train.epochs == 2


def test_dry_run_writes_nothing(cli, train_arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*train_arguments, "--out", "run", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert list(lines) == ["rows", "parameters", "memory", "time", "measured", "nothing"]
    assert lines["rows"].startswith("rows        90; ")
    assert cli(*train_arguments, "--dry-run").stdout  # needs no --out


def interrupted_in(epoch: int, monkeypatch) -> None:
    """Let the user press Ctrl-C in an epoch of training, counted from 0."""
    original = Loop.run_step

    def run_step(self, batch):
        if self.epoch == epoch and self.step % self.steps_per_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Loop, "run_step", run_step)


def test_interrupted_and_resumed_equals_uninterrupted(
    cli, train_arguments, run_folder, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_in(2, patch)
        sentence = complaint(cli(*train_arguments, "--out", out, code=None), 130)
    assert "--resume" in sentence
    assert str(out) in sentence
    # What was written is there, but is no model yet; the message says what to do.
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert "--resume" in complaint(cli("predict", out, input="", code=None))
    assert "--resume" in complaint(cli(*train_arguments, "--out", out, code=None))
    cli(*train_arguments, "--out", out, "--resume")
    whole, resumed = files_under(run_folder), files_under(out)
    assert whole["metrics.jsonl"] == resumed["metrics.jsonl"]
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        assert whole[f"model/{name}"] == resumed[f"model/{name}"], name


def test_interrupted_before_anything_was_kept(cli, train_arguments, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_in(0, patch)
        sentence = complaint(cli(*train_arguments, "--out", out, code=None), 130)
    assert "before there was a state to keep" in sentence
    cli(*train_arguments, "--out", out, "--resume", "epochs=1")
    assert bayestune.load(out).recipe.train.epochs == 1


def test_resuming_needs_the_same_command(cli, train_arguments, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_in(1, patch)
        complaint(cli(*train_arguments, "--out", out, code=None), 130)
    assert "another recipe" in complaint(
        cli(*train_arguments, "--out", out, "--resume", "epochs=9", code=None)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x", "--resume", "--overwrite"], "give one of them"),
        ([], "train needs --out"),
        (["--out", "x", "stray"], "'stray' is not of the form key=value"),
        (["--out", "x", "train.lrr=1"], "unknown key train.lrr. Did you mean 'train.lr'?"),
        (["--out", "x", "rank=four"], "adapter.rank is 'four'; expected a whole number"),
        (["--out", "x", "rank=0"], "adapter.rank is 0; expected a whole number of at least 1"),
        (["--out", "x", "--method", "polar_vbl"], "Did you mean 'polar_vbll'?"),
        (["--out", "x", "--dtype", "bf16"], "dtype is 'bf16'; expected"),
        (["--out", "x", "--device", "gpu"], "The device 'gpu' cannot be used here"),
        (["--out", "x", "--track", "tensorbord"], "no tracker 'tensorbord'. Did you mean"),
        (["--out", "x", "--config", "quikstart"], "Did you mean 'quickstart'?"),
        (["--out", "x", "--config", "no/where.yaml"], "no/where.yaml does not exist"),
        (["--out", "x", "targets=q_prj"], "Did you mean 'q_proj'?"),
        (["--out", "x", "layers=top:9"], "adapter.layers is 'top:9'"),
        (["--out", "x", "rank=999"], "999"),
        (["--out", "x", "--model", "smolm2-135m"], "Did you mean 'smollm2-135m'?"),
        (["--out", "x", "--model", "./nowhere"], "./nowhere"),
        (["--out", "x", "class_weights=lgin=2"], "login"),
        (["--out", "x", "prompt.template={txt}"], "Did you mean 'text'?"),
        (["--out", "x", "--text", "txt"], "Did you mean 'text'?"),
        (["--out", "x", "--label", "lable"], "Did you mean 'label'?"),
    ],
)
def test_bad_arguments(cli, train_arguments, arguments, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in complaint(cli(*train_arguments, *arguments, code=None))
    assert not Path("x", "model").exists()


def test_bad_recipes_are_named(cli, train_arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    for text, said in (
        ("adapter:\n  rnk: 4\n", "unknown key adapter.rnk. Did you mean 'rank'?"),
        ("adapter:\n  dropout: lots\n", "adapter.dropout is 'lots'; expected a finite number"),
        ("adapter: 4\n", "adapter is 4; expected a section"),
        ("- a\n", "expected keys and values"),
        ("a: [\n", "is not valid YAML"),
    ):
        file.write_text(text)
        sentence = complaint(cli(*train_arguments, "--out", "x", "--config", file, code=None))
        assert sentence.startswith(str(file)), sentence
        assert said in sentence
    file.write_bytes(b"\xff\xfe\x00")
    assert str(file) in complaint(cli(*train_arguments, "--out", "x", "--config", file, code=None))


@pytest.mark.parametrize("asked", [["--track", "trackio"], ["--track", "trackio,trackio"]])
def test_tracked_runs_are_the_same_runs(
    asked, cli, train_arguments, tmp_path, run_folder, monkeypatch
) -> None:
    fake = install(monkeypatch, "trackio")
    cli(*train_arguments, "--out", tmp_path / "run", *asked)
    (found,) = fake.runs
    assert found.run_name == "run" and [step for step, _ in found.under("")] == [1, 2, 3]
    for name in ("metrics.jsonl", "model/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run_folder / name).read_bytes()


def test_a_tracker_that_cannot_start_is_one_sentence(
    cli, train_arguments, tmp_path, monkeypatch
) -> None:
    install(monkeypatch, "wandb", "start")
    said = complaint(cli(*train_arguments, "--out", tmp_path / "x", "--track", "wandb", code=None))
    assert "no connection to start" in said and "WANDB_MODE=offline" in said
    assert not (tmp_path / "x").exists()
