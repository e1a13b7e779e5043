"""How uncertain weights are, in two numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bayestune.weights.site import Site


def spread(std: Callable[[str], Tensor], sites: Mapping[str, Site]) -> dict[str, float]:
    """Return the root mean square standard deviation of the adapter's weights and of the head's.

    Args:
        std: gives the standard deviations at a site, of any shape.
        sites: where.
    """
    squares: dict[str, list[Tensor]] = {}
    for name, site in sites.items():
        part = "adapter" if site.layer is not None else "head"
        squares.setdefault(part, []).append(std(name).detach().square().flatten())
    return {part: float(torch.cat(each).mean().sqrt()) for part, each in squares.items()}
