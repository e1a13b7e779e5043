"""Runs on numbers: saved, resumed, loaded by stock PEFT, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from number_tasks import number_task
from tiny_bases import save_bert
from toy_tasks import foreign_texts, number_rows
from transformers import AutoTokenizer

import bayestune.store as store
from bayestune.data import Scaling, Task
from bayestune.errors import ConfigError, DataError, StoreError
from bayestune.evaluation import evaluate
from bayestune.model import BayesModel, build
from bayestune.progress import silent
from bayestune.training import fit
from bayestune.training.loop import Loop


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("polar_vbll", {}),
        ("mle", {}),
        ("mle", {"refresh": "block", "temperature": "auto"}),
        ("polar_vbll", {"noise": "student", "refresh": "none", "epochs": 2}),
        ("polar_vbll", {"noise": "heteroscedastic", "refresh": "diagonal", "epochs": 2}),
    ],
)
def test_it_comes_back_bit_by_bit(fitted_numbers, numbers_test, method, options) -> None:
    model, _, out = fitted_numbers(method, **options)
    loaded = store.load(out)
    assert loaded.scaling == model.scaling and loaded.task.kind == "regression"
    some = numbers_test.select(range(20))
    for name, value in vars(model.predict(some)).items():
        other = getattr(loaded.predict(some), name)
        assert value is other is None or torch.equal(value, other), name


def test_stock_peft_loads_the_mean_in_units_that_the_card_names(fitted_numbers) -> None:
    from peft import AutoPeftModelForSequenceClassification

    model, _, out = fitted_numbers()
    folder = out / "model"
    stock = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    inputs = AutoTokenizer.from_pretrained(folder)("find my parcel\nLabel:", return_tensors="pt")
    target = torch.tensor([2.0])
    with torch.no_grad():
        output = stock(input_ids=inputs["input_ids"], labels=target)
    assert stock.score.modules_to_save["default"].weight.shape == (1, 32)
    (logit,) = output.logits.flatten().tolist()
    # With one label stock transformers takes the task for a regression by itself.
    assert float(output.loss) == pytest.approx((logit - 2.0) ** 2, rel=1e-4)
    mean, std = model.scaling.mean, model.scaling.std
    predicted = float(model.predict(["find my parcel"]).mean)
    assert predicted == pytest.approx(mean + std * logit, rel=1e-4)
    text = (folder / "README.md").read_text()
    assert f"{mean!r} + {std!r} × the one logit" in text and "num_labels=1" in text


def test_a_damaged_scaling_is_noticed(fitted_numbers, tmp_path) -> None:
    _, _, out = fitted_numbers()
    folder = shutil.copytree(out / "model", tmp_path / "model")
    manifest = folder / "bayestune.json"
    manifest.write_text(manifest.read_text().replace('"scaling"', '"skaling"'))
    with pytest.raises(StoreError, match="damaged"):
        store.load(folder)


def test_it_resumes_bit_by_bit(make, tmp_path, monkeypatch) -> None:
    task, options = number_task(60), {"epochs": 3, "noise": "student"}
    fit(whole := make(labels=task, **options), task, out=tmp_path / "a", progress=silent)
    run_epoch, done = Loop.run_epoch, []

    def until_the_third(self, *arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return run_epoch(self, *arguments)

    monkeypatch.setattr(Loop, "run_epoch", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        fit(make(labels=task, **options), task, out=tmp_path / "b", progress=silent)
    monkeypatch.setattr(Loop, "run_epoch", run_epoch)
    again = make(labels=task, **options)
    run = fit(again, task, out=tmp_path / "b", resume=True, progress=silent)
    assert len(run.history) == 3
    texts = foreign_texts(5)
    assert torch.equal(again.predict(texts).std, whole.predict(texts).std)


# choices and refusals ----------------------------------------------------------------------------


def test_the_kl_weight_is_chosen_for_numbers_too(make, numbers) -> None:
    model = make(labels=numbers, kl="auto", epochs=2, noise="heteroscedastic")
    run = fit(model, numbers, progress=silent)
    assert set(run.chosen["kl_tried"]) == {"1.0", "0.3", "0.1"}


def test_encoders_and_pairs(tmp_path, numbers) -> None:
    base = save_bert(tmp_path / "bert")
    rows = [{**r, "text2": "today again"} for r in number_rows(60)]
    task = Task.from_rows(rows, kind="regression")
    assert task.fields.text2 == "text2"
    model = build(base=str(base), labels=task, rank=2, layers="all", kl=1.0, epochs=2)
    fit(model, task, out=tmp_path / "run", progress=silent)
    prediction = store.load(tmp_path / "run").predict([("find my parcel", "again")])
    assert torch.equal(prediction.mean, model.predict([("find my parcel", "again")]).mean)


def test_what_is_about_classes_is_refused(make, clear, numbers) -> None:
    with pytest.raises(ConfigError, match=r"head.bound=exact"):
        make(labels=numbers, bound="exact")
    with pytest.raises(ConfigError, match=r"head.noise=student"):
        make(noise="student")
    with pytest.raises(ConfigError, match=r"train.class_weights=balanced"):
        fit(make(labels=numbers, class_weights="balanced"), numbers, progress=silent)
    with pytest.raises(DataError, match="regression"):
        fit(make(labels=numbers), clear, progress=silent)
    with pytest.raises(DataError, match="classification"):
        make().predict(numbers)


def test_bad_targets(make, numbers) -> None:
    same = Task.from_rows([{"text": f"a {i}", "label": 2.5} for i in range(20)], kind="regression")
    with pytest.raises(DataError, match=r"every number is 2\.5"):
        fit(make(labels=same), same, progress=silent)
    model: BayesModel = make(labels=numbers)
    assert model.scaling == Scaling()
    unlabelled = Task.from_rows([{"id": "x", "text": "a"}], like=numbers, require_labels=False)
    with pytest.raises(DataError, match="'x' has no label"):
        evaluate(model, unlabelled)
    with pytest.raises(ConfigError, match="held-out rows, and there are none"):
        fit(model, numbers, hold_out=0.0, progress=silent)


def test_without_choices_nothing_is_held_out(make, numbers) -> None:
    model = make(labels=numbers, epochs=1)
    fixed = {"refresh": "block", "precision": 0.1, "temperature": "none"}
    run = fit(model, numbers, hold_out=0.0, progress=silent, finalize=fixed)
    assert "val_nll" not in run.history[0] and run.chosen["value"] == 0.1
