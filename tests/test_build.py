"""Building a model: labels, overrides, and an adapter that changes nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bayestune.config import Recipe
from bayestune.data import LabelSet, Task
from bayestune.errors import BayestuneError, ConfigError, DataError
from bayestune.model import build

NAMES = ["login", "parcel", "refund"]
TEXTS = ["find my parcel", "how can you refund this charge again please", "login", "why was that"]


@pytest.mark.parametrize("given", ["task", "label set", "names", "iterator"])
def test_labels_may_be_a_task_its_labels_or_names(make, clear, given) -> None:
    forms = {"task": clear, "label set": clear.labels, "names": NAMES, "iterator": iter(NAMES)}
    model = make(labels=forms[given])
    assert list(model.labels) == NAMES
    assert model.head.num_classes == 3
    assert model.task.kind == "classification" and len(model.task) == 0


def test_a_task_brings_its_kind_and_columns(make, choice) -> None:
    rows = [{"body": "find my parcel", "intent": "a"}, {"body": "login", "intent": "b"}]
    task = Task.from_rows(rows, text="body", label="intent")
    model = make(labels=task)
    assert model.task.fields.text == "body"
    assert len(model.predict([{"body": "find my parcel"}])) == 1
    assert make(labels=choice).task.kind == "choice"


def test_overrides_by_short_dotted_and_section_names_are_the_same(llama_base) -> None:
    base = str(llama_base)
    short = build("polar_vbll", base, NAMES, rank=3, lr=1e-4, layers="all", seed=7)
    dotted = build("polar_vbll", base, NAMES, **{"adapter.rank": 3, "train.lr": "1e-4"}, seed=7,
                   layers="all")  # fmt: skip
    section = build("polar_vbll", base, NAMES, adapter={"rank": 3, "layers": "all"},
                    train={"lr": 1e-4}, seed=7)  # fmt: skip
    assert short.recipe == dotted.recipe == section.recipe
    assert short.recipe.adapter.rank == 3 and short.recipe.train.lr == 1e-4
    assert short.recipe.model == base


def test_later_values_win_over_the_config_and_the_config_over_the_method(llama_base) -> None:
    config = {"adapter": {"rank": 5, "alpha": 4.0}}
    model = build("mle", str(llama_base), NAMES, config=config, rank=2)
    assert (model.recipe.adapter.rank, model.recipe.adapter.alpha) == (2, 4.0)
    assert model.recipe.adapter.kind == "lora"  # the method's own default stays
    again = build("mle", str(llama_base), NAMES, config=model.recipe)
    assert isinstance(model.recipe, Recipe) and again.recipe == model.recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rnk": 4}, "unknown key rnk. Did you mean 'rank'"),
        ({"adapter": {"rnk": 4}}, "unknown key adapter.rnk. Did you mean 'rank'"),
        ({"train.epoch": 4}, "unknown key train.epoch. Did you mean 'train.epochs'"),
        ({"rank": "many"}, "adapter.rank is 'many'; expected a whole number"),
        ({"rank": 0}, "adapter.rank is 0; expected a whole number of at least 1"),
        ({"method": "polar_vbl"}, "There is no method 'polar_vbl'. Did you mean 'polar_vbll'"),
    ],
)
def test_wrong_keys_and_values_name_the_nearest_right_one(make, overrides, message) -> None:
    method = overrides.pop("method", "polar_vbll")
    with pytest.raises(ConfigError, match=message):
        make(method, **overrides)


@pytest.mark.parametrize("labels", [["one"], LabelSet(("one",), ("one",)), []])
def test_a_classifier_of_one_class_is_refused(llama_base, labels) -> None:
    with pytest.raises(DataError, match=f"at least 2 classes; got {len(labels)}"):
        build(base=str(llama_base), labels=labels)


@pytest.mark.parametrize("labels", [None, "login"])
def test_labels_must_be_given_as_several(llama_base, labels) -> None:
    with pytest.raises(ConfigError, match="build needs labels"):
        build(base=str(llama_base), labels=labels)


def test_the_seed_of_build_decides_where_the_adapter_starts(make) -> None:
    def adapter(seed: int) -> torch.Tensor:
        named = make(seed=seed).backbone.named_parameters()
        return torch.cat([p.flatten() for n, p in named if "polar_X" in n])

    assert torch.equal(adapter(1), adapter(1))
    assert not torch.equal(adapter(1), adapter(2))


@pytest.mark.parametrize("method", ["polar_vbll", "mle"])
def test_a_new_model_has_the_features_of_the_plain_backbone(make, llama_base, method) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_base)
    plain = AutoModelForCausalLM.from_pretrained(llama_base)
    phi = make(method).features(TEXTS, batch_size=3)
    for text, row in zip(TEXTS, phi, strict=True):
        ids = torch.tensor([tokenizer(f"{text}\nLabel:")["input_ids"]])
        with torch.no_grad():
            hidden = plain.model(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(row, hidden, rtol=1e-5, atol=1e-5)


def test_representation_names_method_base_and_size(make, llama_base) -> None:
    assert repr(make()) == (
        f"BayesModel(method='polar_vbll', base={str(llama_base)!r}, labels=3, rank=4)"
    )


def test_a_backbone_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BayestuneError, match=r"has no config\.json"):
        build(base=str(tmp_path), labels=NAMES)
    with pytest.raises(BayestuneError, match="No model at"):
        build(base=str(tmp_path / "nowhere" / "at" / "all"), labels=NAMES)


def test_the_methods_name_may_stand_in_the_config(llama_base) -> None:
    options = {"base": str(llama_base), "labels": ["a", "b"]}
    model = build(config={"method": "mle"}, **options)
    assert model.method.name == "mle" and model.recipe.adapter.kind == "lora"
    assert build(config=model.recipe, **options).method.name == "mle"
    with pytest.raises(ConfigError, match="give one of them"):
        build("polar_vbll", config=model.recipe, **options)


def test_building_leaves_the_callers_random_state_alone(llama_base) -> None:
    before = torch.get_rng_state()
    build("mle", base=str(llama_base), labels=["a", "b"])
    assert torch.equal(before, torch.get_rng_state())
