"""Percentile bootstrap intervals over rows.

The intervals describe what another sample of test rows would change, not another training seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.metrics.inputs import ArrayLike, as_tensor, as_vector, check_count, same_rows

_BLOCK = 2**21  # row indices drawn at once: 16 MiB
_APART = 0x9E3779B97F4A7C15  # between the seeds of samples that are drawn independently


@dataclass(frozen=True)
class Interval:
    """A statistic and its percentile interval.

    Attributes:
        estimate: value on the rows as given.
        low: lower end.
        high: upper end.
        level: coverage that the interval aims at, for example 0.95.
    """

    estimate: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class PairedDifference:
    """The mean of ``a - b`` over the same rows, and its percentile interval.

    Attributes:
        mean: mean difference.
        low: lower end of the interval.
        high: upper end of the interval.
        level: coverage that the interval aims at, for example 0.95.
        excludes_zero: whether 0 lies outside the interval; false for a single row, whose interval
            has no width and says nothing.
    """

    mean: float
    low: float
    high: float
    level: float
    excludes_zero: bool


def bootstrap_interval(
    statistic: Callable[..., float | Tensor],
    *arrays: ArrayLike,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    together: bool = True,
) -> Interval:
    """Return the percentile bootstrap interval of any statistic of rows.

    Draws N of the N rows with replacement, the same rows from every array, and takes the
    ``(1 ± level) / 2`` quantiles of ``statistic(*drawn)``. Arrays that are samples of their own,
    such as the scores of in-distribution and of other rows, are drawn from each on its own.

    For a mean of per-row values :func:`mean_interval` gives the same interval much faster, and
    statistics of one row's confidence are cheaper on those vectors than on (N, K) probabilities:
    for the ECE pass ``lambda c, a: reliability(c, a).ece`` and the two results of ``top_label``.

    Args:
        statistic: function of the arrays to one number, such as :func:`bayestune.metrics.ece`.
        arrays: one or more arrays with the same first dimension N (of any length each where they
            are not drawn together); given to the statistic as tensors of their own dtype.
        level: coverage to aim at, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws; the result is a function of the arguments alone.
        together: whether a row is the same unit in every array; False for independent samples.

    Returns:
        The estimate on all rows and both ends. Biased statistics (a calibration error is biased
        upwards, and more so on drawn rows) may lie near or below the lower end.

    Raises:
        DataError: if no array is given, one is empty, or rows that are drawn together differ in
            number.
        ConfigError: if level, resamples or seed is out of range.
        NumericsError: if the statistic is not a finite number.
    """
    _check(level, resamples, seed)
    if not arrays:
        raise DataError("bootstrap_interval: no array given, expected at least one.")
    tensors = [as_tensor(values, f"array {i}") for i, values in enumerate(arrays)]
    for i, tensor in enumerate(tensors):
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise DataError(f"array {i}: shape {tuple(tensor.shape)} given, expected N ≥ 1 rows.")
        if together:
            same_rows(tensors[0], tensor, "array 0", f"array {i}")
    estimate = _number(statistic(*tensors), "on all rows")
    values: list[float] = []
    for drawn in zip(*_rows(tensors, resamples, seed, together=together), strict=True):
        sample = (tensor[rows] for tensor, rows in zip(tensors, drawn, strict=True))
        values.append(_number(statistic(*sample), "on a bootstrap resample"))
    low, high = _ends(torch.tensor(values, dtype=torch.float64), level)
    return Interval(estimate, low, high, level)


def mean_interval(
    per_item: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean of per-row values.

    The same draws as :func:`bootstrap_interval`, all means at once.

    Args:
        per_item: one value per row (N,), such as ``nll(..., reduction="none")``.
        level: coverage to aim at, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        The mean and both ends; of width 0 for a single row.

    Raises:
        DataError: if the values are empty, not a vector or not finite.
        ConfigError: if level, resamples or seed is out of range.
    """
    _check(level, resamples, seed)
    values = as_vector(per_item, "per_item")
    means = [values[block].mean(1) for block in _draws(values.numel(), resamples, seed)]
    low, high = _ends(torch.cat(means), level)
    return Interval(values.mean().item(), low, high, level)


def paired_difference(
    per_item_a: ArrayLike,
    per_item_b: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Return the mean difference of two per-row values over the same rows, with its interval.

    ``1/N Σ_i (a_i - b_i)``. Pairing removes what the rows have in common, so two models whose own
    intervals overlap may still differ.

    Args:
        per_item_a: one value per row (N,), such as ``nll(..., reduction="none")`` of one model.
        per_item_b: the values of the other model on the same rows, in the same order (N,).
        level: coverage to aim at, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        The mean difference, both ends and whether 0 is excluded.

    Raises:
        DataError: if the values are empty, of different lengths, not vectors or not finite.
        ConfigError: if level, resamples or seed is out of range.
    """
    a, b = as_vector(per_item_a, "per_item_a"), as_vector(per_item_b, "per_item_b")
    same_rows(a, b, "per_item_a", "per_item_b")
    found = mean_interval(a - b, level=level, resamples=resamples, seed=seed)
    return PairedDifference(
        mean=found.estimate,
        low=found.low,
        high=found.high,
        level=level,
        excludes_zero=a.numel() > 1 and (found.low > 0 or found.high < 0),
    )


def _check(level: float, resamples: int, seed: int) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level = {level!r} given, expected a number between 0 and 1.")
    check_count(resamples, "resamples")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed = {seed!r} given, expected an integer from 0 to 2^63 - 1.")


def _draws(rows: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Yield row indices (b, N) in blocks that make up all resamples."""
    generator = torch.Generator().manual_seed(seed)
    per_block = max(1, _BLOCK // rows)
    for start in range(0, resamples, per_block):
        count = min(per_block, resamples - start)
        yield torch.randint(rows, (count, rows), generator=generator)


def _rows(
    tensors: list[Tensor], resamples: int, seed: int, *, together: bool
) -> list[Iterator[Tensor]]:
    """Return for every array an iterator over the row indices of all resamples."""
    return [
        chain.from_iterable(
            _draws(tensor.shape[0], resamples, seed if together else (seed + i * _APART) % 2**63)
        )
        for i, tensor in enumerate(tensors)
    ]


def _number(value: float | Tensor, where: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise NumericsError(
            f"The statistic is {number} {where}, expected a finite number; "
            "check that it is defined for every draw of rows."
        )
    return number


def _ends(values: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
