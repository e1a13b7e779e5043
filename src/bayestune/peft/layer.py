"""The PoLAR layer: a low-rank update with orthonormal factors and a free core."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayestune.errors import ModelError
from bayestune.geometry.stiefel import random_point
from bayestune.peft.additive import AdditiveLinear
from bayestune.peft.config import PolarConfig

__all__ = ["PolarLinear"]


class Core(nn.Module):
    """The map Θ by itself, a module so that a distribution over Θ can hook into it."""

    def forward(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return ``Θ x`` for ``(..., r)``."""
        return F.linear(x, theta)


class PolarLinear(AdditiveLinear):
    """A linear layer with ``ΔW = s · X Θ Yᵀ``, ``s = alpha / r``.

    X ``(out, r)`` and Y ``(in, r)`` have orthonormal columns, Θ ``(r, r)`` is free and starts at
    zero. The layer only stores X and Y; keeping them on the Stiefel manifold is the optimiser's
    task, which reads their manifold from `manifolds`.

    Source: Lion, Zhang, Li and He, "PoLAR", 2025 (arXiv 2506.03133), section 3.
    """

    adapter_layer_names = ("polar_X", "polar_theta", "polar_Y")
    other_param_names = ("r", "scaling", "dropout", "core")
    manifolds: ClassVar[dict[str, str]] = {
        "polar_X": "stiefel",
        "polar_theta": "core",
        "polar_Y": "stiefel",
    }

    polar_X: nn.ParameterDict  # noqa: N815
    polar_theta: nn.ParameterDict
    polar_Y: nn.ParameterDict  # noqa: N815
    r: dict[str, int]
    scaling: dict[str, float]
    dropout: dict[str, float]
    core: dict[str, Core]

    def update_layer(self, adapter_name: str, config: PolarConfig, **_: Any) -> None:
        """Create the factors of one adapter.

        Args:
            adapter_name: its name, the key in the parameter dictionaries.
            config: its settings.

        Raises:
            ModelError: the rank is larger than the layer's input or output.
        """
        if config.r > min(self.in_features, self.out_features):
            raise ModelError(
                f"Rank r={config.r} does not fit a layer with {self.in_features} inputs and "
                f"{self.out_features} outputs; orthonormal columns need r ≤ both."
            )
        self.r[adapter_name] = config.r
        self.scaling[adapter_name] = config.alpha / config.r
        self.dropout[adapter_name] = config.dropout
        self.core[adapter_name] = Core()
        dtype = self.adapter_dtype()
        self.add_parameters(
            adapter_name,
            {
                "polar_X": random_point(self.out_features, config.r, dtype=dtype),
                "polar_theta": torch.zeros(config.r, config.r, dtype=dtype),
                "polar_Y": random_point(self.in_features, config.r, dtype=dtype),
            },
            inference_mode=config.inference_mode,
        )

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return ΔW as a product of two tall factors, ``ΔW = left @ right.T``.

        Returns:
            ``left = s · X Θ`` ``(out, r)`` and ``right = Y`` ``(in, r)``.
        """
        theta = self.scaling[adapter_name] * self.polar_theta[adapter_name]
        return self.polar_X[adapter_name] @ theta, self.polar_Y[adapter_name]

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        """Return ``s · X (Θ (Yᵀ dropout(x)))`` for inputs ``(..., in)`` as ``(..., out)``."""
        X, theta, Y = (getattr(self, name)[adapter_name] for name in self.adapter_layer_names)
        x = F.dropout(self._cast_input_dtype(x, Y.dtype), self.dropout[adapter_name], self.training)
        # Θ is not folded into X or Y: that saves less than r / (in + out) of the work, and only for
        # long batches, so that the last bits of a row's result would depend on the batch around it.
        inner = self.scaling[adapter_name] * (x @ Y)  # (..., in) -> (..., r)
        return F.linear(self.core[adapter_name](inner, theta), X)  # -> (..., r) -> (..., out)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return ``ΔW = s · X Θ Yᵀ`` ``(out, in)`` in the adapter's precision."""
        left, right = self.factors(adapter_name)
        return left @ right.T
