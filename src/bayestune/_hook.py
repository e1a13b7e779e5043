"""Registers bayestune's adapters with PEFT once PEFT is imported, without importing it itself.

PEFT has no plug-in discovery, so an adapter folder of an out-of-tree method loads only after the
method is registered. A finder at the head of ``sys.meta_path`` waits for the top-level import of
``peft`` and registers directly after it; when PEFT is there already, registration is immediate.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

_TARGET = "peft"
_PLUGIN = "bayestune.peft"


class _PeftFinder:
    """Finds ``peft`` through the other finders and asks its loader to register afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TARGET:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec = find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._register_after(spec.loader)
                return spec
        return None

    def _register_after(self, loader: Loader) -> None:
        # The instance attribute shadows the method for this one load, so that nothing of the hook
        # stays on the module: resources, source and reload see PEFT's own loader.
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            vars(loader).pop("exec_module", None)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = exec_module


def _register() -> None:
    if _PLUGIN in sys.modules:
        # It is the one importing PEFT, and registers when its own import ends.
        return
    try:
        importlib.import_module(_PLUGIN)
    except (ImportError, ValueError) as error:
        # A plug-in must not take PEFT itself away from code that does not use the plug-in.
        warnings.warn(
            f"bayestune could not register its adapters with PEFT: {error}. Folders saved by "
            "bayestune will not load; run `import bayestune.peft` to see the full error.",
            RuntimeWarning,
            stacklevel=2,
        )


def install() -> None:
    """Register now if PEFT is imported, else directly after its import; safe to call again."""
    module = sys.modules.get(_TARGET)
    if module is None:
        if not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _PeftFinder())  # pyright: ignore[reportArgumentType]
    elif not getattr(module.__spec__, "_initializing", False):
        _register()
