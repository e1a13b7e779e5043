"""What the card of a saved model shows can be run, and what it states is true of that model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from number_tasks import number_task
from transformers import AutoTokenizer

from bayestune.calibration import calibrate
from bayestune.evaluation import Evaluation, evaluate, record
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.store import load, save_guarantees, write_card
from bayestune.store.card import card
from bayestune.training import fit

#: Their folders are feature extractors to stock PEFT.
FEATURES = ["encoder", "generative", "ordinal"]


@pytest.mark.parametrize("kind", ["diagonal", "point", "choice", *FEATURES])
def test_its_code_loads_the_model_here_and_by_stock_peft(saved_kind, kind) -> None:
    model, out = saved_kind(kind)
    text = (out / "model" / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {  # the base is a folder here, which is none of the Hub's
        "library_name": "peft",
        "pipeline_tag": "multiple-choice" if kind == "choice" else "text-classification",
        "tags": ["bayestune", "uncertainty", model.method.name],
    }
    here, stock = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    if kind == "encoder":  # reads pairs
        here = here.replace('["…"]', '[("…", "…")]')
    names: dict[str, object] = {}
    exec(here.replace("PATH", str(out / "model")), names)
    assert len(names["pred"].labels) == 1  # pyright: ignore
    exec(stock.replace("PATH", str(out / "model")), names)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    with torch.no_grad():
        output = names["model"].eval()(**tokenizer("a b", return_tensors="pt"))  # pyright: ignore
    if kind in FEATURES:
        assert output.last_hidden_state.shape[-1] == model.head.in_features
    else:
        assert output.logits.shape == (1, len(model.labels))


def test_many_classes_are_counted_and_not_listed(make, tmp_path) -> None:
    make(labels=[f"class {i}" for i in range(20)]).save(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert '"class 11" and 8 more.' in text and "class 12" not in text
    assert "held-out rows" not in text  # it was never trained


def test_a_base_on_the_hub_is_named_there(copied) -> None:
    manifest = json.loads((copied() / "bayestune.json").read_text())
    assert "base_model" not in ModelCard(card(manifest, True)).data.to_dict()
    manifest["base"] |= {"name": "ORG/some-7B", "revision": "c0ffee"}
    found = ModelCard(card(manifest, True))
    assert found.data.to_dict()["base_model"] == "ORG/some-7B"
    assert "license" not in found.data.to_dict()
    assert "# polar_vbll on some-7B" in found.text
    assert "| backbone | ORG/some-7B at c0ffee, float32 |" in found.text


def test_it_states_how_it_was_trained(saved_kind) -> None:
    model, out = saved_kind("diagonal")
    text = (out / "model" / "README.md").read_text(encoding="utf-8")
    data = model.notes["data"]
    assert data["train_rows"] + data["val_rows"] == 120
    assert f"| rows | {data['train_rows']} (hash `{data['train_hash'][:16]}`) |" in text
    assert f"| held-out rows | {data['val_rows']} (hash `{data['val_hash'][:16]}`), NLL " in text
    for line in ("| epochs | 2 |", "| seed | 0 |", f"torch {torch.__version__}", "polar, rank 4"):
        assert line in text
    assert "Not measured yet" in text and "Nothing: `bayestune calibrate" in text
    assert str(out) not in text and "/" not in text.split("# ")[1].splitlines()[0]


@pytest.fixture
def measured(copied, clear_test) -> tuple[BayesModel, Path, Evaluation]:
    folder = copied()
    model = load(folder)
    found = evaluate(model, clear_test)
    assert isinstance(found, Evaluation)
    record(model, found, clear_test, folder)
    return model, folder, found


def test_measured_numbers_are_stated_with_what_they_were_measured_on(measured, clear_test) -> None:
    _, folder, found = measured
    card = ModelCard.load(folder / "README.md")
    (results,) = {r.dataset_name for r in card.data.eval_results}
    assert results == "The data"
    stated = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert stated == found.scalars
    digest = json.loads((folder / "bayestune.json").read_text())["digest"]
    assert f"On 150 rows of `The data` (hash `{clear_test.hash[:16]}`)" in card.text
    assert f"whose digest is `{digest[:16]}`" in card.text
    low, high = found.intervals["ece"]
    line = f"| ECE, 15 right-closed bins | {found.ece:.4g} | {low:.4g} – {high:.4g} |"
    assert line in card.text
    # The table of bins, from which the ECE follows again.
    rows = re.findall(r"^\| [\d.]+ – [\d.]+ \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", card.text, re.M)
    counts, confidence, accuracy = torch.tensor([[float(x) for x in row] for row in rows]).T
    assert counts.sum() == 150
    ece = (counts * (confidence - accuracy).abs()).sum() / 150
    assert float(ece) == pytest.approx(found.ece, abs=1e-3)


def test_what_was_measured_does_not_touch_the_model(measured, copied, clear_test) -> None:
    model, folder, _ = measured
    again = load(folder)
    assert torch.equal(again.predict(clear_test).probs, model.predict(clear_test).probs)
    (folder / "README.md").write_text("edited by hand")
    (folder / "evaluation.json").write_text("{")
    assert torch.equal(load(folder).predict(clear_test).probs, model.predict(clear_test).probs)


def test_the_figure_is_named_by_what_it_shows(measured, clear_test) -> None:
    model, folder, found = measured
    for content in (b"first", b"second"):
        record(model, found, clear_test, folder, figure=content)
        (figure,) = folder.glob("*.png")
        assert figure.read_bytes() == content
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert f"]({figure.name})" in text and "| confidence | rows |" not in text
    record(model, found, clear_test, folder)
    assert not list(folder.glob("*.png"))
    assert "| confidence | rows |" in (folder / "README.md").read_text(encoding="utf-8")


def test_no_number_outlives_the_model_it_was_measured_on(measured, make, clear, caplog) -> None:
    model, folder, _ = measured
    other = folder.parent / "other"
    make(seed=1).save(other)
    shutil.copy(folder / "evaluation.json", other)
    write_card(other)
    assert "Not measured yet" in (other / "README.md").read_text(encoding="utf-8")
    assert not caplog.records
    text = (folder / "evaluation.json").read_text().replace("test", "tset").replace("0.", "0.1")
    (folder / "evaluation.json").write_text(text)
    write_card(folder)
    assert "Not measured yet" in (folder / "README.md").read_text(encoding="utf-8")
    assert "is damaged or was changed: its numbers are not stated" in caplog.text
    model.save(folder)
    assert not (folder / "evaluation.json").exists()


def test_promises_are_stated_and_how_they_were_kept_while_they_hold(
    copied, clear_test, caplog
) -> None:
    folder = copied()
    model = load(folder)
    first, second, third = (clear_test.select(range(i, i + 50)) for i in (0, 50, 100))

    def calibrated(rows, coverage: float) -> str:
        calibrate(model, rows, coverage=coverage, max_risk=0.3)
        save_guarantees(model, folder)
        return (folder / "README.md").read_text(encoding="utf-8")

    def recorded(rows) -> str:
        record(model, evaluate(model, rows), rows, folder)
        return (folder / "README.md").read_text(encoding="utf-8")

    text = calibrated(first, 0.8)
    assert "- sets: lac" in text and "probability 0.8 or more" in text and "- abstention" in text
    assert f"By rows of the hash `{first.hash[:16]}`" in text and "Not measured yet" in text
    assert "| sets that hold the true class | " in recorded(second)
    # The rules change: what became of the old ones goes, the model's own numbers stay.
    text = calibrated(third, 0.7)
    assert "probability 0.7 or more" in text and "0.8 or more" not in text
    assert "sets that hold the true class" not in text and "| accuracy | " in text
    # On the rows that calibrated it they look better kept than they are.
    assert "sets that hold the true class" not in recorded(third)


def test_numbers_are_measured_too(make, tmp_path) -> None:
    rows = number_task(60)
    model = make(labels=rows, epochs=1)
    fit(model, rows, out=tmp_path / "run", progress=silent)
    test = number_task(40, 3)
    found = evaluate(model, test)
    record(model, found, test, tmp_path / "run")
    card = ModelCard.load(tmp_path / "run/model/README.md")
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == found.scalars
    assert "| RMSE | " in card.text and "What it promises" not in card.text
    assert "confidence | rows" not in card.text
