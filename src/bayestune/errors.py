"""The one family of errors: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BayestuneError(Exception):
    """Root of every error that bayestune raises on purpose; the command line exits with 2."""


class ConfigError(BayestuneError, ValueError):
    """A recipe, override or argument has an unknown key, a wrong type or a value out of range."""


class DataError(BayestuneError, ValueError):
    """A data file or row cannot be used; the message names the file and the line."""


class ModelError(BayestuneError, ValueError):
    """A backbone cannot be loaded or does not have what the recipe asks of it."""


class StoreError(BayestuneError, OSError):
    """A saved run is missing, incomplete, damaged or of another format version."""


class ServerError(BayestuneError, ConnectionError):
    """Another server cannot be reached, refuses, or answers something else than was asked."""


class NumericsError(BayestuneError, ArithmeticError):
    """A loss, gradient or feature is NaN or infinite."""


def nearest(given: object, valid: Iterable[object]) -> str:
    """Return a closing sentence that names the valid value nearest to the given one.

    Args:
        given: what the user wrote.
        valid: what would have been accepted.

    Returns:
        ``" Did you mean 'x'?"`` where one is close, else the valid names, else an empty string.
    """
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(repr(n) for n in names[:12]) + (", …" if len(names) > 12 else "")
    return f" Valid: {shown}."
