"""What the optimiser accepts: options in range, Stiefel parameters that can be orthonormal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayestune.errors import ConfigError, nearest
from bayestune.geometry import check_point
from bayestune.optim.layout import here, layout, sharded_by_rows, total_of

MANIFOLDS = ("euclidean", "stiefel", "core")
CORE_STEPS = ("spectral", "adam")
UPDATES = ("retract", "landing", "safe_landing")

# How far from the manifold a parameter may start. The landing field comes back from anywhere by
# itself; with the safe step, only from where its bound promises anything.
START_TOLERANCE = {"retract": 1e-2, "landing": float("inf"), "safe_landing": 0.5}


def check_options(group: dict[str, Any]) -> None:
    """Raise ConfigError where an option of a parameter group is unknown or out of range."""
    for key, valid in (("manifold", MANIFOLDS), ("update", UPDATES)):
        if group[key] not in valid:
            raise ConfigError(
                f"{key}={group[key]!r} of optimiser group {group_name(group)} is unknown."
                f"{nearest(group[key], valid)}"
            )
    for key in ("lr", "eps", "weight_decay", "penalty"):
        if not float(group[key]) >= 0:
            raise ConfigError(
                f"{key}={group[key]!r} of optimiser group {group_name(group)} must not be negative"
            )
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ConfigError(
            f"betas={group['betas']!r} of optimiser group {group_name(group)} must lie in [0, 1)"
        )
    if group["manifold"] == "stiefel" and group["eps"] == 0:
        raise ConfigError(
            f"eps=0 of Stiefel group {group_name(group)} would divide 0 by 0 where a gradient has "
            "no tangent part; set it to a small positive number such as 1e-8"
        )
    if group["manifold"] == "stiefel" and group["weight_decay"] != 0:
        raise ConfigError(
            f"weight_decay={group['weight_decay']!r} of Stiefel group {group_name(group)} would "
            "pull its orthonormal factors towards 0; set it to 0 and decay the core Θ instead"
        )


def check_start(group: dict[str, Any]) -> None:
    """Raise ConfigError where a parameter of a Stiefel group cannot be trained from its value."""
    for p in group["params"]:
        check_shape(group, p)
        if p.dtype in (torch.float16, torch.bfloat16):
            raise ConfigError(
                f"a parameter of Stiefel group {group_name(group)} is {p.dtype}, which cannot "
                "hold XᵀX = I; keep the adapter in float32 (PEFT does so on a half-precision "
                "backbone with autocast_adapter_dtype=True)"
            )
        if p.is_meta:
            continue
        ok, reason = check_point(here(p.detach()), START_TOLERANCE[group["update"]], total_of(p))
        if not ok and group["update"] != "landing":
            raise ConfigError(
                f"a parameter of Stiefel group {group_name(group)} does not start on the manifold: "
                f"{reason}; initialise it with bayestune.geometry.random_point, or put it there "
                "with retract_polar"
            )


def check_shape(group: dict[str, Any], p: Tensor) -> None:
    """Raise ConfigError where a Stiefel factor is not a tall matrix, or a core is no matrix."""
    kind = "Stiefel" if group["manifold"] == "stiefel" else group["manifold"]
    shape = tuple(p.shape)
    if p.ndim < 2:
        raise ConfigError(
            f"a parameter of {kind} group {group_name(group)} has shape {shape}; a matrix (n, r) "
            "was expected. Probably DeepSpeed ZeRO or FSDP1 has flattened it before the optimiser "
            "could see it: train with DDP, FSDP2 or ZeRO stage 0, which keep matrices"
        )
    if p.shape[-1] > p.shape[-2]:
        raise ConfigError(
            f"a parameter of {kind} group {group_name(group)} has shape {shape}, more columns "
            "than rows; store the factor as (n, r), transposed, or lower the rank r to n or below"
        )
    if not sharded_by_rows(p):
        raise ConfigError(
            f"a parameter of {kind} group {group_name(group)} is a DTensor placed as "
            f"{layout(p)[1]}; each process must hold whole rows: use Shard({p.ndim - 2}) or "
            "Replicate() on every dimension of the mesh"
        )


def group_name(group: dict[str, Any]) -> str:
    """Return the quoted name of a parameter group for a message."""
    return repr(group.get("name", "(without a name)"))
