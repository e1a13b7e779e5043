"""Gradients that must arrive."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from bayestune.errors import ModelError

_LOST = "(?s).*an autograd kernel was not registered"


@contextmanager
def gradients_required() -> Iterator[None]:
    """Refuse a backward pass that stops at a kernel without gradients, where PyTorch only warns.

    What lies below such a kernel would stay as it was, and the training look like one.

    Raises:
        ModelError: naming the kernel.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _LOST, UserWarning)
        try:
            yield
        except UserWarning as warning:
            kernel = str(warning).partition(": an autograd kernel")[0]
            raise ModelError(
                f"Gradients stop at {kernel}, a kernel of the backbone that has none (of a "
                "quantised layer?), so that adapters below would not be trained; quantise the "
                "backbone otherwise, or use it whole."
            ) from warning
