"""Serving trained models: an HTTP server of their own, and what stands beside vLLM.

Every name is loaded on first use: the client of another server needs nothing of ours.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayestune.serve.app import make_app
    from bayestune.serve.client import VllmClient
    from bayestune.serve.limits import Limits
    from bayestune.serve.runs import Runs
    from bayestune.serve.server import listen, serve

__all__ = ["Limits", "Runs", "VllmClient", "listen", "make_app", "serve"]

_HOME = {
    "Limits": "limits",
    "Runs": "runs",
    "VllmClient": "client",
    "listen": "server",
    "make_app": "app",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
