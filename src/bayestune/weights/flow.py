"""A masked autoregressive flow: a Gaussian made any shape, its density still known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCKS = 2


class MaskedLinear(nn.Linear):
    """A linear map of which some entries are held at zero.

    Args:
        mask: which entries are there, bool ``(out, in)``.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        # Follows from the sizes, so it is not stored.
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(mask ∘ W) x + b``, ``(..., out)``."""
        return F.linear(x, self.weight * self.mask, self.bias)


class AffineFlow(nn.Module):
    """An invertible map whose j-th output is affine in the j-th input, given those before it.

        y_j = x_j exp(a_j(x_<j)) + b_j(x_<j),   log |det ∂y/∂x| = Σ_j a_j

    It starts as the identity. There is no dropout in it: under a random mask it would be another
    map each time, and the density not that of what is drawn.

    Args:
        features: q, the size of x.
        hidden: units of the network that gives a and b.

    Source: Papamakarios et al. 2017 (arXiv 1705.07057), eqs. 3 to 5; masks of Germain et al. 2015
    (arXiv 1502.03509) with residual blocks.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        # A unit of degree d sees inputs 1 to d; output j reads units of degree below j.
        inputs = torch.arange(1, features + 1)
        units = torch.arange(hidden) % max(1, features - 1) + 1
        among = units[:, None] >= units
        self.first = MaskedLinear(units[:, None] >= inputs)
        self.blocks = nn.ModuleList(MaskedLinear(among) for _ in range(2 * _BLOCKS))
        self.last = MaskedLinear((inputs[:, None] > units).repeat(2, 1))
        for outer in (*self.blocks[1::2], self.last):
            nn.init.zeros_(outer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(outer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y`` for ``x``, each ``(..., q)``, and ``log |det ∂y/∂x|``, ``(...)``."""
        h = self.first(x)
        for inner, outer in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            h = h + outer(F.gelu(inner(F.gelu(h))))
        log_scale, shift = self.last(F.gelu(h)).chunk(2, dim=-1)  # each (..., q)
        return x * log_scale.exp() + shift, log_scale.sum(-1)
