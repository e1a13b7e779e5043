"""Evaluation and prediction: posterior predictives, whichever way texts are padded."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss
from transformers import AutoModelForSequenceClassification, EvalPrediction, default_data_collator

import bayestune as bt
from bayestune.errors import ConfigError, DataError, ModelError
from bayestune.hf import compute_metrics
from bayestune.hf.pooled import head_of, pooled


@pytest.fixture
def ready(trainer):
    """A trainer whose head has a mean and deviations worth integrating over."""

    def make(model=None, **arguments):
        t = trainer(model=model, **arguments)
        t.create_optimizer()
        g = torch.Generator().manual_seed(1)
        head = t.head
        with torch.no_grad():
            head.weight.copy_(0.3 * torch.randn(head.weight.shape, generator=g))
            head.log_scale.add_(0.5 * torch.randn(head.log_scale.shape, generator=g) + 0.7)
        return t

    return make


def states(model, rows):
    """The state of each text's last token, by a pass of the bare transformer for every text."""
    bare = model.get_base_model().model
    with torch.no_grad():
        ids = [torch.tensor([row["input_ids"]]) for row in rows]
        return torch.cat([bare(input_ids=i).last_hidden_state[:, -1] for i in ids])


def test_predictions_are_log_probabilities_averaged_over_the_posterior(ready, encode):
    """Against 20,000 draws of the weights in float64, at four standard errors."""
    t, rows = ready(), encode(12, 9)
    found = t.predict(rows)
    probs = torch.from_numpy(found.predictions).double().exp()
    assert probs.sum(1) == pytest.approx(torch.ones(12).double(), abs=1e-5)
    head, g = t.head, torch.Generator().manual_seed(2)
    phi = states(t.model, rows).double()
    noise = torch.randn(20_000, *head.weight.shape, generator=g, dtype=torch.float64)
    W = head.weight.detach().double() + head.log_scale.detach().double().exp() * noise
    drawn = torch.einsum("bd,skd->sbk", phi, W).softmax(-1)  # (S, B, K)
    error = drawn.std(0) / math.sqrt(len(drawn))
    # The prediction's own draws of the logits are off by some ten thousandths.
    assert ((probs - drawn.mean(0)).abs() < 4 * error + 2e-3).all()
    at_mean = (phi @ head.weight.detach().double().T).softmax(-1)
    assert (at_mean - drawn.mean(0)).abs().max() > 0.03, "the mean would pass, too"
    expected = torch.special.entr(probs).sum(-1) - torch.special.entr(drawn).sum(-1).mean(0)
    assert found.metrics["test_epistemic"] == pytest.approx(float(expected.mean()), rel=0.02)


def test_any_compute_metrics_sees_them_beside_ours(ready, encode):
    def own(prediction):
        return {"top": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    rows = encode(40, 9)
    t = ready(ours={"compute_metrics": own})
    found = t.evaluate(rows)
    output = t.predict(rows)
    probs = torch.from_numpy(output.predictions).double().softmax(1).numpy()
    assert found["eval_nll"] == pytest.approx(log_loss(output.label_ids, probs), rel=1e-5)
    assert found["eval_loss"] == pytest.approx(found["eval_nll"], rel=1e-5)
    accuracy = accuracy_score(output.label_ids, probs.argmax(1))
    assert found["eval_top"] == found["eval_accuracy"] == pytest.approx(accuracy)


def test_rows_without_labels_are_predicted_and_batches_do_not_matter(ready, encode):
    t, rows = ready(per_device_eval_batch_size=5), encode(23, 9)
    bare = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
    output = t.predict(bare)
    assert output.label_ids is None
    assert "test_epistemic" in output.metrics
    assert "test_nll" not in output.metrics
    whole = ready(per_device_eval_batch_size=64)
    assert whole.predict(rows).predictions == pytest.approx(output.predictions, abs=1e-5)


def test_metrics_of_logits_do_not_depend_on_their_level():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=g).numpy(), torch.arange(50).numpy() % 4
    found = compute_metrics(EvalPrediction((logits + 7, logits), labels))
    probs = torch.from_numpy(logits).double().softmax(1)
    assert found["nll"] == pytest.approx(log_loss(labels, probs.numpy()))
    assert found["nll"] == pytest.approx(
        -log_softmax(logits, 1)[range(50), labels].mean(), rel=1e-5
    )
    assert found["ece"] == pytest.approx(bt.metrics.ece(probs, labels), abs=1e-6)
    assert found["brier"] == pytest.approx(bt.metrics.brier(probs, labels), rel=1e-5)
    with pytest.raises(DataError):
        compute_metrics(EvalPrediction(logits, labels + 4))


def test_a_text_that_ends_in_the_padding_token_is_read_to_its_end(ready, encode, tokenizer, caplog):
    """As with pad = eos and texts that end in eos; on either side padded."""
    t = ready()
    rows = [
        {**row, "input_ids": [*row["input_ids"], 0], "attention_mask": [1, *row["attention_mask"]]}
        for row in encode(8, 9)
    ]
    assert t.model.config.pad_token_id == tokenizer.pad_token_id == 0
    expected = states(t.model, rows)
    batch = {k: v for k, v in t.data_collator(rows).items() if k != "labels"}
    t.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(pooled(t.model, t.head, batch), expected, rtol=1e-4, atol=1e-5)
        left = {name: torch.zeros_like(value) for name, value in batch.items()}
        for i, row in enumerate(rows):
            for name in left:
                left[name][i, -len(row["input_ids"]) :] = torch.tensor(row[name])
        found = pooled(t.model, t.head, left)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        stock = t.model(**batch).logits
    mean = expected @ t.head.weight.detach().T
    assert (stock - mean).abs().max() > 0.1, "the stock forward reads one token early"
    with caplog.at_level(logging.WARNING, logger="bayestune"):
        t.predict(rows)
        t.predict(rows)
    said = [r.getMessage() for r in caplog.records if "padding token" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("8 of 8 texts end in token 0, which is also the padding token")


def test_without_a_mask_nothing_is_guessed(ready, encode):
    t = ready()
    t.data_collator = default_data_collator
    alike = [r for r in encode(60, 9) if len(r["input_ids"]) == 5]
    rows = [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in alike]
    assert len(rows) > 3
    with_mask = ready().predict(alike).predictions
    assert t.predict(rows).predictions == pytest.approx(with_mask, abs=1e-5)
    rows[1] = {**rows[1], "input_ids": [*rows[1]["input_ids"][:-1], 0]}
    with pytest.raises(DataError, match="1 rows of a batch end in the padding token 0"):
        t.predict(rows)


def test_an_encoder_predicts_from_what_its_classifier_reads(trainer, bert_base, classifier):
    model = classifier(
        bt.PolarConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"), base=bert_base
    )
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 7, (48, 6), generator=g) + 4 * (torch.arange(48) % 3)[:, None]
    rows = [
        {"input_ids": [2, *one.tolist(), 3], "attention_mask": [1] * 8, "labels": i % 3}
        for i, one in enumerate(ids)
    ]
    fast = {"optimizer_cls_and_kwargs": bt.optim.for_trainer(lr=2e-2, head_lr=0.1)}
    t = trainer(model=model, train=rows, val=rows, num_train_epochs=10, ours=fast)
    t.train()
    assert t.evaluate()["eval_nll"] < 0.95
    model.eval()
    with torch.no_grad():
        mean = model(**{k: v for k, v in t.data_collator(rows).items() if k != "labels"}).logits
        phi = t._batches.features(model, t.head, t.data_collator(rows))
        torch.testing.assert_close(phi @ t.head.weight.T, mean)


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "ours", "message"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
        ({}, {"compute_loss_func": lambda *a, **k: None}, "compute_loss_func"),
        ({"bf16_full_eval": True}, {}, "bf16_full_eval: a posterior needs float32"),
        ({"ddp_find_unused_parameters": False}, {}, "ddp_find_unused_parameters"),
        ({}, {"schedule": "turns"}, "expected alternate or joint"),
        ({}, {"kl": -1.0}, "kl is -1.0"),
        ({}, {"head_steps": 0}, "head_steps is 0"),
    ],
)
def test_what_would_be_another_objective_is_refused(arguments, ours, message, trainer):
    with pytest.raises(ConfigError, match=message):
        trainer(ours=ours, **arguments)


@pytest.mark.parametrize("deviations", ["natural", "none"])
def test_a_wrong_step_of_the_deviations_is_refused(deviations, trainer):
    with pytest.raises(ConfigError, match="deviations"):
        trainer(ours={"deviations": deviations, "kl": 0.0}).train()


def test_a_stock_optimiser_is_refused(trainer):
    with pytest.raises(ConfigError, match=r"not AdamW.*bt\.optim\.for_trainer"):
        trainer(ours={"optimizer_cls_and_kwargs": None}).train()


def test_a_model_without_our_head_is_refused(trainer, llama_base, classifier):
    stock = AutoModelForSequenceClassification.from_pretrained(llama_base, num_labels=3)
    with pytest.raises(ModelError, match=r"0 Bayesian last layers.*bt\.head\.install"):
        trainer(model=stock)
    with pytest.raises(ModelError, match="Install the head first"):
        bt.head.install(classifier())


def test_random_adapters_are_refused(trainer, make):
    model = make("blob", head={"kind": "linear"})
    with pytest.raises(ConfigError, match=r"random \(GaussianWeights\).*bayestune.fit"):
        trainer(model=model.backbone.peft_model)


def test_the_head_of_the_active_adapter_is_the_one(classifier):
    model = classifier()
    model.add_adapter("other", bt.PolarConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    heads = model.base_model.model.score.modules_to_save
    assert head_of(model) is heads["default"]
    model.set_adapter("other")
    assert head_of(model) is heads["other"]
