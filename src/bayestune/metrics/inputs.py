"""What the metrics accept: tensors, arrays or lists, checked once and moved to float64."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bayestune.errors import ConfigError, DataError, nearest

ArrayLike: TypeAlias = Tensor | np.ndarray | list | tuple

ROW_SUM_TOLERANCE = 1e-3
NEGATIVE_TOLERANCE = 1e-6


def as_tensor(values: ArrayLike, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return the values as a detached tensor on the CPU.

    Metrics run on the CPU: their sums are then the same on every machine, and some accelerators
    have no float64.

    Args:
        values: a tensor of any dtype and device, a NumPy array or a (nested) list of numbers.
        name: what the values are, for the message.
        dtype: the dtype to convert to; ``None`` keeps what was given.

    Returns:
        The same values; a list of Python floats goes straight to ``dtype``, not through float32.

    Raises:
        DataError: if the values are not a rectangular array of real numbers.
    """
    if isinstance(values, Tensor):
        tensor = values.detach()
        if tensor.is_complex():
            raise DataError(f"{name}: complex numbers given, expected real ones.")
        # Two steps, because a device without float64 could not convert on its own side.
        tensor = tensor.to("cpu")
        return tensor if dtype is None else tensor.to(dtype)
    try:
        if isinstance(values, np.ndarray):
            # A copy, because torch refuses negative strides and warns about read-only memory.
            values = values.copy()
        return torch.as_tensor(values, dtype=dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: a {type(values).__name__} that is not a rectangular array of numbers "
            f"({error}); pass a tensor, a NumPy array or a list of numbers."
        ) from error


def as_vector(values: ArrayLike, name: str) -> Tensor:
    """Return finite real values as a float64 vector.

    Args:
        values: numbers, (N,).
        name: what they are, for the message.

    Returns:
        float64 tensor (N,) with N ≥ 1.

    Raises:
        DataError: if the shape is not (N,), N is 0 or a value is NaN or infinite.
    """
    vector = as_tensor(values, name, torch.float64)
    if vector.ndim != 1:
        raise DataError(f"{name}: shape {tuple(vector.shape)} given, expected (N,).")
    if vector.numel() == 0:
        raise DataError(f"{name}: no rows given, expected at least one.")
    finite = torch.isfinite(vector)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        raise DataError(f"{name}: row {row} is {vector[row].item()}, expected finite numbers.")
    return vector


def as_correct(values: ArrayLike, name: str = "correct") -> Tensor:
    """Return indicators of a right prediction as a float64 vector of zeros and ones.

    Args:
        values: booleans or the numbers 0 and 1, (N,).
        name: what they are, for the message.

    Returns:
        float64 tensor (N,).

    Raises:
        DataError: if the shape is not (N,), N is 0 or a value is neither 0 nor 1.
    """
    vector = as_vector(values, name)
    other = (vector != 0) & (vector != 1)
    if bool(other.any()):
        row = int(torch.nonzero(other)[0])
        raise DataError(f"{name}: row {row} is {vector[row].item()}, expected 0 or 1.")
    return vector


def as_labels(values: ArrayLike, num_classes: int, name: str = "labels") -> Tensor:
    """Return class indices as an int64 vector.

    Args:
        values: integers in [0, ``num_classes``), (N,).
        num_classes: number of classes K.
        name: what they are, for the message.

    Returns:
        int64 tensor (N,).

    Raises:
        DataError: if the shape is not (N,), N is 0, the dtype is not an integer one or a label is
            out of range.
    """
    labels = as_tensor(values, name)
    if labels.ndim != 1:
        raise DataError(f"{name}: shape {tuple(labels.shape)} given, expected (N,).")
    if labels.numel() == 0:
        raise DataError(f"{name}: no rows given, expected at least one.")
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"{name}: dtype {labels.dtype} given, expected integers; pass class ids.")
    labels = labels.to(torch.int64)
    outside = (labels < 0) | (labels >= num_classes)
    if bool(outside.any()):
        row = int(torch.nonzero(outside)[0])
        raise DataError(
            f"{name}: row {row} is {int(labels[row])}, expected 0 to {num_classes - 1}; "
            "drop rows without a known label before scoring."
        )
    return labels


def as_probabilities(values: ArrayLike, name: str = "probs") -> Tensor:
    """Return class probabilities as a float64 matrix, checked but never repaired.

    Args:
        values: probabilities (N, K) of K ≥ 2 classes.
        name: what they are, for the message.

    Returns:
        float64 tensor (N, K); nothing is clipped or renormalised.

    Raises:
        DataError: if the shape is not (N, K), N is 0, K is below 2, an entry is NaN, infinite or
            below -1e-6, or a row does not sum to 1 within 1e-3.
    """
    probs = as_tensor(values, name, torch.float64)
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise DataError(
            f"{name}: shape {tuple(probs.shape)} given, expected (N, K) with K ≥ 2; "
            "give a binary probability p as the two columns 1 - p and p."
        )
    if probs.shape[0] == 0:
        raise DataError(f"{name}: no rows given, expected at least one.")
    bad = ~torch.isfinite(probs) | (probs < -NEGATIVE_TOLERANCE)
    if bool(bad.any()):
        row, column = torch.nonzero(bad)[0].tolist()
        raise DataError(
            f"{name}: row {row}, class {column} is {probs[row, column].item()}, expected a "
            "probability; pass softmax outputs, not logits."
        )
    wrong = (probs.sum(1) - 1).abs() > ROW_SUM_TOLERANCE
    if bool(wrong.any()):
        row = int(torch.nonzero(wrong)[0])
        raise DataError(
            f"{name}: row {row} sums to {probs[row].sum().item():.6g}, expected 1 within "
            f"{ROW_SUM_TOLERANCE:g}; apply softmax over the classes in float32 or better."
        )
    return probs


def as_predictions(probs: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return checked probabilities (N, K) in float64 and labels (N,) in int64.

    Raises:
        DataError: as :func:`as_probabilities` and :func:`as_labels`, and if their rows differ.
    """
    p = as_probabilities(probs)
    y = as_labels(labels, p.shape[1])
    same_rows(p, y, "probs", "labels")
    return p, y


def same_rows(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    """Raise DataError unless both tensors have the same number of rows."""
    if first.shape[0] != second.shape[0]:
        raise DataError(
            f"{first_name} has {first.shape[0]} rows and {second_name} has {second.shape[0]}, "
            "expected the same number."
        )


def check_count(value: int, name: str) -> int:
    """Return a positive integer option, or raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} = {value!r} given, expected an integer of at least 1.")
    return value


def check_choice(value: str, name: str, valid: tuple[str, ...]) -> str:
    """Return an option that is one of the valid names, or raise ConfigError."""
    if value not in valid:
        raise ConfigError(f"{name} = {value!r} is not known.{nearest(value, valid)}")
    return value


def count_for_share(share: float, rows: int, name: str) -> int:
    """Return the smallest k with k / rows ≥ share.

    The quotient is compared, not the product, because 0.07 · 100 is above 7 in floating point
    while 7 / 100 is exactly the number that 0.07 stands for.

    Args:
        share: wanted share in (0, 1].
        rows: number of rows N.
        name: what the share is, for the message.

    Returns:
        k in [1, N].

    Raises:
        ConfigError: if the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"{name} = {share!r} given, expected a share above 0 and at most 1.")
    k = max(1, int(share * rows))
    while k / rows < share:
        k += 1
    return k
