"""Settings of the PoLAR adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft import PeftConfig

from bayestune.errors import ConfigError, nearest
from bayestune.peft.register import method_key

__all__ = ["Init", "PolarConfig"]

Init = Literal["orthogonal"]


@dataclass
class PolarConfig(PeftConfig):
    """Settings of PoLAR: ``ΔW = (alpha / r) · X Θ Yᵀ`` with orthonormal columns in X and Y.

    Args:
        r: rank, the number of columns of X and Y.
        alpha: scale; the update is multiplied by ``alpha / r``.
        dropout: probability of zeroing an input feature of the adapter during training.
        target_modules: names of the linear layers to adapt, matched with the end of the module
            path; a string is a regular expression for the whole path, or ``"all-linear"``; None
            takes PEFT's default for the architecture (query and value projections).
        exclude_modules: names (or a regular expression) never to adapt.
        layers_to_transform: indices of the transformer layers to adapt; None adapts all.
        layers_pattern: name of the module list that the indices count, where it is not obvious.
        modules_to_save: modules trained in full and saved beside the adapter, such as a head.
        init: start of X and Y; ``"orthogonal"`` draws them uniformly, Θ is zero, so that ΔW = 0.

    Raises:
        ConfigError: a value has the wrong type or is out of range.

    Source: Lion, Zhang, Li and He, "PoLAR", 2025 (arXiv 2506.03133).
    """

    r: int = field(default=8, metadata={"help": "Rank."})
    alpha: float = field(default=8.0, metadata={"help": "The update is scaled by alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names of the linear layers to adapt, or 'all-linear'."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names of modules never to adapt."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the transformer layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that the indices count."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained in full and saved with the adapter."}
    )
    init: Init = field(default="orthogonal", metadata={"help": "Start of X and Y."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = method_key("POLAR")
        # PEFT matches names in sets, and extends modules_to_save in place: both become our copies.
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        if self.modules_to_save is not None:
            self.modules_to_save = list(dict.fromkeys(self.modules_to_save))
        self._validate()

    def _validate(self) -> None:
        if not _is_int(self.r) or self.r < 1:
            raise ConfigError(f"r must be a whole number of at least 1, got {self.r!r}.")
        if not _is_real(self.alpha) or not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha must be a positive finite number, got {self.alpha!r}.")
        if not _is_real(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout!r}.")
        if self.init not in get_args(Init):
            raise ConfigError(f"init {self.init!r} is unknown.{nearest(self.init, get_args(Init))}")
        indices = self.layers_to_transform
        if indices is not None and not all(
            _is_int(i) and i >= 0 for i in (indices if isinstance(indices, list) else [indices])
        ):
            raise ConfigError(
                f"layers_to_transform must be layer indices from 0 on, got {indices!r}."
            )
        is_pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if is_pattern and (indices is not None or self.layers_pattern is not None):
            raise ConfigError(
                "layers_to_transform and layers_pattern need target_modules as a list of names "
                f"or 'all-linear', got the regular expression {self.target_modules!r}. Put the "
                "layer indices into the expression, or pass a list."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, sets sorted so that saved files are stable."""
        return {**stable(super().to_dict()), "peft_type": method_key("POLAR").value}


def stable(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with their sets sorted, so that they are the same text every time."""
    return {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}


def _as_set(names: Any) -> Any:
    return set(names) if isinstance(names, list | tuple) else names


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
