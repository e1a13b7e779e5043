"""Class weights: how they are written, what they do to a loss."""

from __future__ import annotations

import pytest
import torch

from bayestune.data import LabelSet, Task
from bayestune.errors import ConfigError
from bayestune.progress import silent
from bayestune.training import fit
from bayestune.training.rows import prepare, sample_weights

NAMES = LabelSet(("a", "b", "c"), ("a", "b", "c"))
LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])


def test_none_is_none() -> None:
    assert sample_weights("none", NAMES, LABELS) is None


def test_balanced_gives_every_class_the_same_say() -> None:
    weights = sample_weights("balanced", NAMES, LABELS)
    assert weights is not None and weights.mean().item() == pytest.approx(1)
    totals = [weights[k == LABELS].sum().item() for k in range(3)]
    assert totals == pytest.approx([10 / 3] * 3)
    assert weights[0].item() == pytest.approx(10 / (3 * 6))


def test_given_weights_keep_their_ratios_and_get_mean_one() -> None:
    weights = sample_weights("b=4, c = 0.5", NAMES, LABELS)
    assert weights is not None and weights.mean().item() == pytest.approx(1)
    per_class = [weights[(k == LABELS).nonzero()[0, 0]].item() for k in range(3)]
    assert per_class[1] / per_class[0] == pytest.approx(4)
    assert per_class[2] / per_class[0] == pytest.approx(0.5)
    assert weights.dtype == torch.float32


def test_a_class_without_rows_does_no_harm() -> None:
    weights = sample_weights("balanced", NAMES, LABELS[:9])
    assert weights is not None and bool(torch.isfinite(weights).all())
    assert weights.mean().item() == pytest.approx(1)


def test_names_may_hold_equals_signs_and_values_may_be_integers() -> None:
    names = LabelSet((0, 1), ("x=y", "z"))
    weights = sample_weights("x=y=3", names, torch.tensor([0, 1]))
    assert weights is not None and weights.tolist() == pytest.approx([1.5, 0.5])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("balance", r"train.class_weights: 'balance'"),
        ("d=2", r"train.class_weights: 'd=2': Unknown label 'd'. Valid: 'a', 'b', 'c'"),
        ("a=much", r"train.class_weights: 'a=much'"),
        ("a=0", "'a=0' is not name=weight"),
        ("a=-1", "'a=-1' is not name=weight"),
        ("a=nan", "'a=nan' is not name=weight"),
        ("a=inf", "'a=inf' is not name=weight"),
        ("a=2,", "train.class_weights: ''"),
    ],
)
def test_what_is_no_weight_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_weights(spec, NAMES, LABELS)


def test_held_out_rows_are_never_weighed(make, clear) -> None:
    assert prepare(make(), clear).weights is None


def test_weights_move_the_decision(make, clear) -> None:
    contrary = Task.from_rows(
        [
            {"text": e.text, "label": ("login", "parcel")[i % 4 == 0]}
            for i, e in enumerate(clear)
            if e.label != 2
        ],
        like=clear,
    )

    def share(spec: str) -> float:
        model = make(class_weights=spec, temperature="none", refresh="none")
        fit(model, contrary, progress=silent, epochs=3)
        return float(model.predict(contrary).probs[:, 1].mean())

    plain, weighed = share("none"), share("parcel=20")
    assert plain < 0.45 and weighed > plain + 0.2
