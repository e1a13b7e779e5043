"""``train``, ``predict`` and ``eval`` with the heads of other likelihoods."""

from __future__ import annotations

import json

import pytest
from cli_checks import complaint, read_lines, write_rows
from toy_tasks import foreign_texts, level_rows, topic_rows

ROWS = {"generative": topic_rows, "ordinal": level_rows}
LABELS = {"generative": {"login", "parcel", "refund"}, "ordinal": {"0", "1", "2", "3"}}
QUICK = ("rank=4", "layers=top:2", "kl=1", "epochs=4", "head_lr=0.05")


@pytest.fixture(scope="module", params=sorted(ROWS))
def trained(request, llama_base, tmp_path_factory):
    """Return kind, run folder and what ``train`` printed."""
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    folder = tmp_path_factory.mktemp(request.param)
    data = write_rows(folder / "train.jsonl", ROWS[request.param](120))
    arguments = ["train", "--model", str(llama_base), "--data", str(data), *QUICK]
    arguments += [f"head.kind={request.param}", "--out", str(folder / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return request.param, folder / "run", result.stdout


def test_train_says_what_was_chosen(trained) -> None:
    kind, _, printed = trained
    said = {"generative": "the exact posterior of the classes", "ordinal": "covariance"}[kind]
    assert f"chosen: KL weight 1, {said}" in printed


def test_predict_has_the_same_schema(cli, trained) -> None:
    kind, run, _ = trained
    texts = [{"text": row["text"]} for row in ROWS[kind](8, 3)]
    texts += [{"text": text} for text in foreign_texts(8)]
    rows = read_lines(
        cli("predict", run, input="".join(json.dumps(t) + "\n" for t in texts)).stdout
    )
    for row in rows:
        assert set(row["probs"]) == LABELS[kind] and row["label"] in LABELS[kind]
        assert sum(row["probs"].values()) == pytest.approx(1, abs=1e-5)
        assert row["entropy"] == pytest.approx(row["aleatoric"] + row["epistemic"], abs=1e-5)
    scores = [row["ood_score"] for row in rows]
    assert max(scores[:8]) < min(scores[8:])


def test_eval_measures_it(cli, trained, tmp_path) -> None:
    kind, run, _ = trained
    test = write_rows(tmp_path / "test.jsonl", ROWS[kind](100, 3))
    oos = write_rows(tmp_path / "oos.jsonl", [{"text": text} for text in foreign_texts(30)])
    printed = cli("eval", run, "--data", test, "--ood", f"oos={oos}", "--json").stdout
    found = json.loads(printed)
    assert found["n"] == 100 and found["accuracy"] > 0.6
    assert found["ood"]["oos"]["auroc_density"] > 0.95


@pytest.mark.parametrize("head", ["head.kind=generative head.joint=true", "head.kind=ordinal"])
def test_the_dry_run_knows_them(cli, llama_base, tmp_path, head) -> None:
    data = write_rows(tmp_path / "train.jsonl", level_rows(60))
    arguments = ("train", "--model", llama_base, "--data", data, *QUICK, "--dry-run", *head.split())
    assert "parameters" in cli(*arguments).stdout


def test_an_order_that_nobody_gave_is_bad_input(cli, llama_base, tmp_path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", topic_rows(60))
    arguments = ("train", "--model", llama_base, "--data", rows, "--out", tmp_path / "run", *QUICK)
    result = cli(*arguments, "head.kind=ordinal", code=2)
    assert "alphabetical order (login, parcel, refund)" in complaint(result)
    (tmp_path / "labels.json").write_text('["parcel", "login", "refund"]')
    cli(*arguments, "head.kind=ordinal", "epochs=1")
    assert (tmp_path / "run" / "model").is_dir()


def test_a_generative_posterior_may_stay_as_trained(cli, llama_base, tmp_path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", topic_rows(60))
    arguments = ("train", "--model", llama_base, "--data", rows, "--out", tmp_path / "run", *QUICK)
    options = ("head.kind=generative", "head.joint=true", "finalize.refresh=none", "epochs=1")
    assert "KL weight 1, the posterior as trained, temp" in cli(*arguments, *options).stdout
