"""Numbers on the command line: train, predict, eval, the other verbs, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cli_checks import complaint, read_lines, write_rows
from toy_tasks import foreign_texts, number_rows

from bayestune.errors import ConfigError

RECIPE = ("rank=4", "layers=top:2", "kl=1", "epochs=6", "head_lr=0.05")


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    """Training rows as CSV, test rows as JSON lines, and rows from elsewhere."""
    folder = tmp_path_factory.mktemp("numbers")
    train = folder / "train.csv"
    with train.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "hours"])
        writer.writerows([row["text"], row["label"]] for row in number_rows(150))
    test = [
        {"id": f"t{i}", "text": row["text"], "hours": row["label"]}
        for i, row in enumerate(number_rows(61, 3))
    ]
    return {
        "train": train,
        "test": write_rows(folder / "test.jsonl", test),
        "oos": write_rows(folder / "oos.jsonl", [{"text": t} for t in foreign_texts(20)]),
    }


@pytest.fixture(scope="module")
def asked(llama_base, tables) -> list[str]:
    """What every training here begins with."""
    data = ["--model", str(llama_base), "--data", str(tables["train"])]
    return ["train", *data, "--task", "regression", "--label", "hours", *RECIPE]


@pytest.fixture(scope="module")
def trained_run(asked, tmp_path_factory):
    """A finished run and what training said."""
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    out = tmp_path_factory.mktemp("run") / "run"
    result = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    return out, result


def test_training_reports_in_the_unit_of_the_numbers(trained_run) -> None:
    out, result = trained_run
    assert "150 rows, numbers from -" in result.stderr
    lines = result.stdout.splitlines()
    assert "RMSE" in lines[0] and "accuracy" not in lines[0]
    (chosen,) = (line for line in lines if line.startswith("chosen: "))
    assert ", gaussian noise of deviation 1" in chosen and ", standard deviations × " in chosen
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert 5 < epochs[-1]["val_rmse"] < 45


@pytest.mark.parametrize("batch_size", [1, 32])
def test_predict_then_eval(cli, trained_run, tables, batch_size) -> None:
    out, _ = trained_run
    size = ["--batch-size", batch_size]
    rows = read_lines(cli("predict", out, tables["test"], *size).stdout)
    truth = read_lines(tables["test"].read_text())
    assert [row["id"] for row in rows] == [f"t{i}" for i in range(61)]
    assert list(rows[0]) == ["id", "mean", "std", "aleatoric", "epistemic", "ood_score"]
    found = json.loads(cli("eval", out, "--data", tables["test"], "--json", *size).stdout)
    assert list(found)[:6] == ["n", "rmse", "mae", "nll", "crps", "coverage90"]
    errors = [row["mean"] - t["hours"] for row, t in zip(rows, truth, strict=True)]
    assert found["n"] == 61
    assert found["rmse"] == pytest.approx((sum(e * e for e in errors) / 61) ** 0.5, rel=1e-4)
    assert found["mae"] == pytest.approx(sum(map(abs, errors)) / 61, rel=1e-4)
    inside = [abs(e) < 1.6448536 * row["std"] for e, row in zip(errors, rows, strict=True)]
    assert found["coverage90"] == pytest.approx(sum(inside) / 61)
    assert found["rmse"] < 25


def test_eval_with_rows_from_elsewhere(cli, trained_run, tables, tmp_path) -> None:
    out, _ = trained_run
    arguments = ["eval", out, "--data", tables["test"], "--ood", f"oos={tables['oos']}"]
    result = cli(*arguments, "--out", tmp_path / "found.json")
    for name in ("rmse", "mae", "nll", "crps", "coverage90", "auroc_epistemic", "auroc_density"):
        assert f"\n{name} " in result.stdout
    assert json.loads((tmp_path / "found.json").read_text())["ood"]["oos"]["auroc_density"] > 0.8
    assert "--max-ece" in complaint(cli(*arguments, "--max-ece", 0.1, code=None))


def test_predict_from_a_pipe(cli, trained_run) -> None:
    out, _ = trained_run
    (row,) = read_lines(
        cli("predict", out, input='{"text": "find my parcel", "hours": "?"}\n').stdout
    )
    assert row["id"] == 1 and row["std"] > 0


def test_dry_run_and_config(cli, asked, trained_run) -> None:
    assert "parameters" in cli(*asked, "--dry-run", "noise=heteroscedastic").stdout
    assert "noise: gaussian" in cli("config", "show", trained_run[0]).stdout


def test_mle(cli, asked, tables, tmp_path) -> None:
    cli(*asked, "--method", "mle", "--out", tmp_path / "run", "kl=0", "epochs=2")
    rows = read_lines(cli("predict", tmp_path / "run", tables["test"]).stdout)
    assert {row["epistemic"] for row in rows} == {0.0}
    assert all(row["std"] == row["aleatoric"] > 0 for row in rows)


# bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["high", "nan", "inf", ""])
def test_a_bad_number_in_training(cli, llama_base, tmp_path, cell) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(f'text,label\na,1.5\nb,2\nc,"{cell}"\n')
    result = cli(
        *("train", "--model", llama_base, "--data", file),
        *("--task", "regression", "--out", tmp_path / "run"),
        code=None,
    )
    message = complaint(result)
    assert message.startswith(f"{file} line 4: 'label' ") and not (tmp_path / "run").exists()


def test_a_bad_number_in_evaluation(cli, trained_run, tmp_path) -> None:
    file = write_rows(
        tmp_path / "t.jsonl", [{"text": "a", "hours": 1}, {"text": "b", "hours": "x"}]
    )
    message = complaint(cli("eval", trained_run[0], "--data", file, code=None))
    assert f"{file} line 2: 'hours' is 'x'; expected a finite number" in message


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--task", "regresion"], "Did you mean 'regression'"),
        (["--task", "regression", "head.noise=studnt"], "head.noise"),
        (["--task", "regression", "bound=tilted"], "head.bound=tilted"),
        (["--task", "regression", "class_weights=balanced"], "class_weights"),
        (["--task", "classification", "noise=student"], "head.noise=student"),
        ([], "--task regression"),
    ],
)
def test_what_does_not_go_together(cli, llama_base, tables, tmp_path, extra, expected) -> None:
    data = ["--model", llama_base, "--data", tables["train"], "--label", "hours"]
    result = cli("train", *data, "--out", tmp_path / "run", *extra, code=None)
    assert expected in complaint(result)


def test_equal_numbers(cli, llama_base, tmp_path) -> None:
    file = write_rows(tmp_path / "t.jsonl", [{"text": f"a {i}", "label": 3} for i in range(30)])
    data = ["--model", llama_base, "--data", file, "--task", "regression"]
    message = complaint(cli("train", *data, "--out", tmp_path / "run", code=None))
    assert "every number is 3" in message


def test_figures_of_classes_are_refused(trained_run, tables) -> None:
    from bayestune import evaluate, load, plots
    from bayestune.data import Task

    model = load(trained_run[0])
    found = evaluate(model, Task.load(tables["test"], like=model.task))
    for draw in (plots.reliability_figure, plots.risk_coverage_figure):
        with pytest.raises(ConfigError, match="predicted classes"):
            draw({"a": found})  # pyright: ignore[reportArgumentType]
