"""Accuracy and the proper scores of class probabilities."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from bayestune.errors import ConfigError
from bayestune.metrics.inputs import ArrayLike, as_predictions, check_choice

Reduction = Literal["mean", "none"]

SMALLEST_NORMAL = torch.finfo(torch.float64).tiny


def top_label(probs: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return the confidence of the predicted class and whether it is the right one.

    ``c_i = max_k p_ik`` and ``a_i = [argmax_k p_ik = y_i]``; of equally probable classes the one
    with the lowest index is predicted.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).

    Returns:
        Confidence (N,) and correct (N,), both float64; correct is 0 or 1.

    Raises:
        DataError: if the rows are not probabilities with labels in range.
    """
    p, y = as_predictions(probs, labels)
    confidence, predicted = p.max(1)
    return confidence, (predicted == y).to(torch.float64)


@overload
def accuracy(
    probs: ArrayLike, labels: ArrayLike, *, reduction: Literal["mean"] = "mean"
) -> float: ...
@overload
def accuracy(probs: ArrayLike, labels: ArrayLike, *, reduction: Literal["none"]) -> Tensor: ...
def accuracy(
    probs: ArrayLike, labels: ArrayLike, *, reduction: Reduction = "mean"
) -> float | Tensor:
    """Return the share of rows whose most probable class is the label.

    ``1/N Σ_i [argmax_k p_ik = y_i]``, ties going to the lowest class index.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        reduction: ``"mean"`` over rows, or ``"none"`` for one value per row.

    Returns:
        A share in [0, 1], or float64 zeros and ones (N,).

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if the reduction is not known.
    """
    _, correct = top_label(probs, labels)
    return _reduce(correct, reduction)


@overload
def nll(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Literal["mean"] = "mean",
    eps: float = SMALLEST_NORMAL,
) -> float: ...
@overload
def nll(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Literal["none"],
    eps: float = SMALLEST_NORMAL,
) -> Tensor: ...
def nll(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Reduction = "mean",
    eps: float = SMALLEST_NORMAL,
) -> float | Tensor:
    """Return the negative log likelihood of the labels in nats.

    ``-1/N Σ_i ln max(p_{i, y_i}, eps)``. The default ``eps`` is the smallest normal float64, so a
    probability of zero costs 708.4 nats: a large but finite number that one confident error can
    bring into the mean. Rows that sum to slightly more than 1 are not renormalised.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        reduction: ``"mean"`` over rows, or ``"none"`` for one value per row.
        eps: lower bound on the probability of the label, in (0, 1).

    Returns:
        Nats per row, or float64 nats (N,).

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if the reduction is not known or ``eps`` is not in (0, 1).
    """
    if not 0 < eps < 1:
        raise ConfigError(f"eps = {eps!r} given, expected a number above 0 and below 1.")
    p, y = as_predictions(probs, labels)
    of_label = p.gather(1, y[:, None]).squeeze(1)  # (N,)
    return _reduce(-of_label.clamp(min=eps).log(), reduction)


@overload
def brier(probs: ArrayLike, labels: ArrayLike, *, reduction: Literal["mean"] = "mean") -> float: ...
@overload
def brier(probs: ArrayLike, labels: ArrayLike, *, reduction: Literal["none"]) -> Tensor: ...
def brier(probs: ArrayLike, labels: ArrayLike, *, reduction: Reduction = "mean") -> float | Tensor:
    """Return the Brier score: squared error of the probability vector, summed over classes.

    ``1/N Σ_i Σ_k (p_ik - [y_i = k])²``, between 0 and 2. For two classes it is twice the score
    that looks at one class only.

    Args:
        probs: class probabilities (N, K).
        labels: class indices (N,).
        reduction: ``"mean"`` over rows, or ``"none"`` for one value per row.

    Returns:
        The score, or float64 scores (N,).

    Raises:
        DataError: if the rows are not probabilities with labels in range.
        ConfigError: if the reduction is not known.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    p, y = as_predictions(probs, labels)
    target = torch.nn.functional.one_hot(y, p.shape[1])  # (N, K)
    return _reduce((p - target).square().sum(1), reduction)


def _reduce(per_row: Tensor, reduction: str) -> float | Tensor:
    check_choice(reduction, "reduction", ("mean", "none"))
    return per_row if reduction == "none" else per_row.mean().item()
