"""Sets of classes that hold the true one with a stated probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn.functional import one_hot

from bayestune.guarantees import aps, lac, raps
from bayestune.guarantees.quantile import check_probability, conformal_quantile
from bayestune.metrics.inputs import (
    ArrayLike,
    as_predictions,
    as_vector,
    check_choice,
    same_rows,
)

#: Scores of the classes by name: the higher, the worse a class conforms.
KINDS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"lac": lac.scores, "aps": aps.scores, "raps": raps.scores}
)
#: Of the scores, stored with the rule so that other defaults would not change it.
_OPTIONS = {"raps": {"penalty": 0.01, "free": 2}}


@dataclass(frozen=True)
class SetRule:
    """Which classes are in the set of a row: those whose score is at most the threshold.

    Attributes:
        kind: ``lac``, ``aps`` or ``raps``.
        coverage: the probability asked for, 1 − α.
        threshold: the score that is let in just yet; ∞ where all classes are in.
        n: rows that it was calibrated on.
        size: mean number of classes in the sets of these rows.
        options: of the scores.
    """

    kind: str
    coverage: float
    threshold: float
    n: int
    size: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice(self.kind, "sets", tuple(KINDS))
        check_probability(self.coverage, "coverage")


def calibrate(
    probs: ArrayLike, labels: ArrayLike, u: ArrayLike, coverage: float, kind: str = "lac"
) -> SetRule:
    """Return the rule whose sets hold the true class of a further row with a probability.

        P(y ∈ C(x)) ≥ 1 − α

    marginally: over the draw of the calibration rows and of a further row exchangeable with them;
    not for each class, each text or one given draw of calibration rows. The threshold is the
    conformal quantile of the true classes' scores.

    Args:
        probs: class probabilities of n rows ``(n, K)``; 0 for choices that a row does not have.
        labels: their true classes ``(n,)``.
        u: their `uniforms` ``(n,)``.
        coverage: 1 − α in (0, 1).
        kind: ``lac``, ``aps`` or ``raps``.

    Raises:
        ConfigError: if the coverage or the kind is none.
        DataError: if the rows are no probabilities with their labels.
    """
    p, y = as_predictions(probs, labels)
    v = as_vector(u, "u")
    same_rows(p, v, "probs", "u")
    rule = SetRule(kind, coverage, math.inf, len(y), 0.0, _OPTIONS.get(kind, {}))
    true = _scores(rule, p, v).gather(1, y[:, None])[:, 0]  # (n,)
    rule = replace(rule, threshold=conformal_quantile(true, coverage))
    return replace(rule, size=apply(rule, p, v).sum(1).double().mean().item())


def apply(rule: SetRule, probs: Tensor, u: Tensor) -> Tensor:
    """Return which classes are in the set of each row.

        C(x) = { k : s_k(x) ≤ q } ∪ { argmax_k p_k }

    The most probable class is always in, which can only raise the coverage: an empty set would
    name no label where one is predicted. A class of probability 0 never is, whatever the threshold:
    it is a choice that the row does not have.

    Args:
        rule: from `calibrate`.
        probs: class probabilities ``(N, K)``.
        u: `uniforms` of the rows ``(N,)``.

    Returns:
        bool ``(N, K)``.
    """
    best = one_hot(probs.argmax(1), probs.shape[1]).bool()
    return (_scores(rule, probs, u) <= rule.threshold) & (probs > 0) | best


def _scores(rule: SetRule, probs: Tensor, u: Tensor) -> Tensor:
    """Return the scores of all classes, ∞ for those that are never in a set."""
    return KINDS[rule.kind](probs, u, **rule.options).masked_fill(probs <= 0, math.inf)
