"""Checks of what a head is built from and of what is loaded into it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayestune.errors import ConfigError, ModelError, StoreError


def require_positive(name: str, value: float) -> None:
    """Raise ConfigError unless the named value is positive and finite."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be positive and finite.")


def require_sizes(num_classes: int, in_features: int) -> None:
    """Raise ConfigError unless there are two classes and one feature."""
    if num_classes < 2 or in_features < 1:
        raise ConfigError(
            f"A head over {num_classes} classes and {in_features} features was asked for; "
            "it needs at least 2 classes and 1 feature."
        )


def starting_rows(rows: Tensor | None, num_classes: int, in_features: int) -> Tensor:
    """Return the initial weights of a head, a float32 copy of the rows or zeros.

    Args:
        rows: rows of a pretrained output layer, ``(K, D)``.
        num_classes: number of classes (or of numbers) K.
        in_features: feature dimension D.

    Returns:
        Weights, ``(K, D)``.

    Raises:
        ConfigError: the rows have another shape.
    """
    if num_classes < 1 or in_features < 1:
        raise ConfigError(
            f"A head of {num_classes} outputs and {in_features} features was asked for; "
            "it needs at least 1 of each."
        )
    shape = (num_classes, in_features)
    if rows is None:
        return torch.zeros(shape)
    if tuple(rows.shape) != shape:
        raise ConfigError(f"rows have shape {tuple(rows.shape)}; the head needs {shape}.")
    return rows.detach().to("cpu", torch.float32, copy=True)


def require_classes(num_classes: int) -> None:
    """Raise ModelError where a softmax would be over a single class, which is always right."""
    if num_classes < 2:
        raise ModelError(
            "The head has 1 output; a classifier needs at least 2 classes, and a number a noise."
        )


def match(
    tensors: Mapping[str, Tensor], families: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> str:
    """Return the family whose tensors these are, by name and shape.

    Args:
        tensors: stored tensors by name.
        families: names and shapes of the tensors of each family.

    Raises:
        StoreError: no family has these names, or a shape differs.
    """
    for family, shapes in families.items():
        if set(tensors) != set(shapes):
            continue
        for name, shape in shapes.items():
            given = tuple(tensors[name].shape)
            if given != shape:
                raise StoreError(
                    f"The posterior's {name} has shape {given}; this head needs {shape}. "
                    "Load it into a head of the size it was saved from."
                )
        return family
    expected = "; ".join(f"{family}: {sorted(shapes)}" for family, shapes in families.items())
    raise StoreError(f"The posterior holds {sorted(tensors)}; expected {expected}.")
