"""Predicting: what comes out depends on the text and on nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from tiny_bases import move
from toy_tasks import choice_rows, foreign_texts

from bayestune.backbone import Backbone, Reader
from bayestune.data import Task
from bayestune.errors import DataError
from bayestune.head import GaussianHead, LinearHead
from bayestune.model import BayesModel
from bayestune.progress import silent
from bayestune.store import load
from bayestune.training import fit

TEXTS = ["find my parcel", "how can you refund this charge again please", "login", "why was that"]
FIELDS = ("probs", "entropy", "aleatoric", "epistemic", "ood_score")


def same(a: object, b: object, tolerance: float = 1e-5) -> None:
    for name in FIELDS:
        # Squared distances are no fractions: theirs is a relative tolerance.
        relative = tolerance if name == "ood_score" else 0
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), rtol=relative, atol=tolerance
        )


# predicting -------------------------------------------------------------------------------------


def test_one_text_a_list_rows_and_a_task_predict_the_same(trained) -> None:
    listed = trained.predict(TEXTS)
    assert len(listed) == 4
    same(listed, trained.predict([{"text": text} for text in TEXTS]), 0)
    same(listed, trained.predict(Task.from_texts(TEXTS, like=trained.task)), 0)
    same(listed, trained.predict(tuple(TEXTS)), 0)
    alone = trained.predict(TEXTS[0])
    assert len(alone) == 1
    torch.testing.assert_close(alone.probs[0], listed.probs[0], rtol=0, atol=1e-5)


def test_rows_may_carry_labels_known_or_not(trained) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, "abcd", strict=True)]
    same(trained.predict(rows), trained.predict(TEXTS), 0)


@pytest.mark.parametrize("nothing", [[], (), Task.from_texts([])])
def test_nothing_predicts_nothing(trained, nothing) -> None:
    prediction = trained.predict(nothing)
    assert len(prediction) == 0 and prediction.labels == []
    assert prediction.probs.shape == (0, 3)
    assert all(getattr(prediction, name).shape == (0,) for name in FIELDS[1:])
    assert trained.features(nothing).shape == (0, 32)


def test_nothing_predicts_nothing_for_questions_either(make, choice) -> None:
    assert make(labels=choice).predict([]).probs.shape == (0, 4)


@pytest.mark.parametrize("which", ["trained", "trained_mle"])
def test_the_batch_size_does_not_matter(request, clear_test, which) -> None:
    model: BayesModel = request.getfixturevalue(which)
    some = clear_test.select(range(33))
    whole = model.predict(some, batch_size=33)
    for size in (1, 4, 16):
        same(model.predict(some, batch_size=size), whole)
        phi = model.features(some, batch_size=size)
        torch.testing.assert_close(phi, model.features(some), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(trained, clear_test) -> None:
    texts = [example.text for example in clear_test][:6]
    together = trained.predict(texts)
    reversed_ = trained.predict(texts[::-1])
    among_others = trained.predict([*foreign_texts(10), *texts])
    torch.testing.assert_close(together.probs, reversed_.probs.flip(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.probs, among_others.probs[10:], rtol=0, atol=1e-5)
    assert trained.predict([texts[0]] * 3).probs.unique(dim=0).shape[0] == 1


@pytest.mark.parametrize("base", ["llama_base", "bert_base"])
def test_the_padding_side_does_not_matter(request, make, base) -> None:
    model = make(base=str(request.getfixturevalue(base)), layers="top:1")
    move(model)
    encoded = model.encode(model.read(TEXTS))
    assert len(set(encoded.lengths)) > 1
    alone = model.features(TEXTS, batch_size=1)
    for side in ("right", "left") if base == "llama_base" else ("right",):
        phi = Reader(model.backbone, 0, None, side).features(encoded)
        torch.testing.assert_close(phi, alone, rtol=1e-5, atol=1e-5)


def test_an_encoder_reads_pairs_and_tells_the_two_texts_apart(make, bert_base, pairs) -> None:
    model = make(base=str(bert_base), labels=pairs, layers="all")
    move(model)
    a, b = TEXTS[0], TEXTS[1]
    both = model.predict([(a, b), (b, a)])
    assert not torch.allclose(both.probs[0], both.probs[1], atol=1e-4)
    same(both, model.predict([{"text": a, "text2": b}, {"text": b, "text2": a}]), 0)
    same(both, model.predict([(a, b), (b, a)], batch_size=1))
    with pytest.raises(DataError, match="expected a pair of texts"):
        model.predict([a])


def test_total_uncertainty_is_aleatoric_plus_epistemic(trained, clear_test) -> None:
    prediction = trained.predict(clear_test)
    assert torch.equal(prediction.entropy, prediction.aleatoric + prediction.epistemic)
    assert bool((prediction.epistemic > 0).any()) and bool((prediction.epistemic >= 0).all())
    by_hand = torch.special.entr(prediction.probs.double()).sum(1)
    torch.testing.assert_close(prediction.entropy.double(), by_hand, rtol=0, atol=1e-5)
    torch.testing.assert_close(prediction.probs.sum(1), torch.ones(len(clear_test)))


def test_a_point_method_has_no_epistemic_uncertainty(trained_mle, clear_test) -> None:
    prediction = trained_mle.predict(clear_test)
    assert isinstance(trained_mle.head, LinearHead)
    assert bool((prediction.epistemic == 0).all())
    assert torch.equal(prediction.entropy, prediction.aleatoric)
    expected = trained_mle.head(trained_mle.features(clear_test)).softmax(1)
    torch.testing.assert_close(prediction.probs, expected, rtol=0, atol=1e-6)


def test_a_model_without_density_scores_by_epistemic_uncertainty(make) -> None:
    prediction = make().predict(TEXTS)
    assert torch.equal(prediction.ood_score, prediction.epistemic)


def test_every_kind_of_predictive_can_be_asked_for(make) -> None:
    means = {}
    for kind in ("sample", "exact", "probit", "laplace_bridge"):
        model = make(predictive=kind)
        assert isinstance(model.head, GaussianHead)
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
        means[kind] = model.predict(TEXTS).probs
    torch.testing.assert_close(means["sample"], means["exact"], rtol=0, atol=0.01)
    for kind in ("probit", "laplace_bridge"):
        assert not torch.equal(means[kind], means["exact"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([1, 2], "text 1"),
        (["fine", ("a", "pair")], "text 2: got 2 texts; expected one text"),
        ([{"body": "no text"}], "text"),
        ([{"text": None}], "text"),
    ],
)
def test_what_is_not_a_text_is_refused_by_its_number(trained, texts, message) -> None:
    with pytest.raises(DataError, match=message):
        trained.predict(texts)


def test_a_task_of_another_kind_or_size_is_refused(make, trained, choice) -> None:
    with pytest.raises(DataError, match="The model reads classification tasks; The data is choice"):
        trained.predict(choice)
    small = make(labels=Task.from_rows(choice_rows(6, choices=(2, 3))))
    with pytest.raises(DataError, match="a row has 4 choices; the model was built for at most 3"):
        small.predict(choice)


def test_the_training_task_says_how_rows_are_read(make, pairs, tmp_path) -> None:
    # Built from the labels alone, a model learns columns and label values in fit and keeps them.
    rows = [
        {"a": e.text, "b": e.text2, "y": 10 + e.label, "y_name": pairs.labels.names[e.label]}
        for e in pairs
    ]
    task = Task.from_rows(rows, text="a", text2="b", label="y")
    model = make(labels=list(task.labels), kl=1.0, epochs=1)
    fit(model, task, out=tmp_path / "run", progress=silent)
    again = load(tmp_path / "run")
    for one in (model, again):
        assert one.task.schema() == task.schema()
        torch.testing.assert_close(one.predict(rows).probs, one.predict(task).probs)
        one.predict([("left", "right")])
    first_alone = Task.from_rows(rows, text="a", label="y")
    assert (again.predict(task).probs - again.predict(first_alone).probs).abs().max() > 1e-4


def test_an_encoder_reads_no_further_than_its_positions(make, bert_base, tmp_path) -> None:
    base = shutil.copytree(bert_base, tmp_path / "bert")
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["model_max_length"]  # as some tokenizers on the Hub have it
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    model = make(base=str(base), layers="all")
    assert model.tokenizer.model_max_length > 10**6 and model.backbone.positions == 64
    assert model.predict(["parcel " * 300]).probs.shape == (1, 3)


@pytest.mark.parametrize(
    ("config", "network", "expected"),
    [
        (transformers.RobertaConfig, transformers.RobertaModel, 62),  # two before the first
        (transformers.OPTConfig, transformers.OPTModel, 64),
        (transformers.LlamaConfig, transformers.LlamaModel, None),
    ],
)
def test_learned_positions_are_counted(config, network, expected) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"vocab_size": 50, "max_position_embeddings": 64, "intermediate_size": 32}
    if config is transformers.OPTConfig:
        small |= {"ffn_dim": 32, "word_embed_proj_dim": 32}
    core = network(config(**small))
    backbone = Backbone(core, core, pooling="last", first_layer=0, decoder=True)
    assert backbone.positions == expected


def test_texts_may_be_empty_or_longer_than_the_model_reads(trained) -> None:
    texts = ["", "please " * 2000, "\n\t "]
    prediction = trained.predict(texts)
    assert bool(torch.isfinite(prediction.probs).all())
    assert max(trained.encode(trained.read(texts)).lengths) == 256
