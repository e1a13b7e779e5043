"""How parameters lie: in stacks of one shape, and with their rows on one process or on several.

A parameter with rows on several processes, as FSDP2 and tensor parallelism leave it, is a DTensor.
The step works on the rows that are here; a product over rows is summed over the processes, and of
an r × r core all rows are gathered. Nothing else is sent.

DTensors are told by their attributes, as importing their class takes a second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bayestune.geometry.stiefel import Total, all_here

# Numbers of one stack of factors: small enough for a processor cache, large enough for a GPU.
_STACK_NUMEL = {"cpu": 2**17, "other": 2**24}


def layout(p: Tensor) -> tuple[Any, ...]:
    """Return the device mesh and the placements of a DTensor, () of a tensor that is all here."""
    return (p.device_mesh, p.placements) if hasattr(p, "placements") else ()  # type: ignore[attr-defined]


def stacks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group parameters of one shape, type, device and layout into stacks of bounded size."""
    alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for p in params:
        alike[p.shape, p.dtype, p.device, layout(p)].append(p)
    for (_, _, device, _), members in alike.items():
        numel = _STACK_NUMEL["cpu" if device.type == "cpu" else "other"]
        size = max(1, numel // max(1, members[0].numel()))
        for first in range(0, len(members), size):
            yield members[first : first + size]


def sharded_by_rows(p: Tensor) -> bool:
    """Return whether every process holds all of some rows, or all there is."""
    return all(
        at.is_replicate() or getattr(at, "dim", None) == p.ndim - 2
        for at in getattr(p, "placements", ())
    )


def here(p: Tensor) -> Tensor:
    """Return the rows that are here ``(..., k, r)``, sharing memory with the parameter."""
    return p.to_local() if layout(p) else p  # type: ignore[attr-defined]


def gradient_here(p: Tensor) -> Tensor:
    """Return the gradient of the rows that are here; the parameter is known to have one."""
    grad = p.grad if p.grad is not None else torch.zeros_like(p)
    if layout(grad) != layout(p):
        # Automatic differentiation may leave a sum over processes open.
        grad = grad.redistribute(*layout(p))  # type: ignore[attr-defined]
    return here(grad)


def total_of(p: Tensor) -> Total:
    """Return what sums a tensor over the processes that hold other rows of a parameter."""
    if not layout(p):
        return all_here
    mesh, placements = layout(p)
    groups = [mesh.get_group(dim) for dim, at in enumerate(placements) if not at.is_replicate()]

    def total(S: Tensor) -> Tensor:
        S = S.clone(memory_format=torch.contiguous_format)
        for group in groups:
            torch.distributed.all_reduce(S, group=group)
        return S

    return total


def gather_rows(p: Tensor, rows: Tensor) -> Tensor:
    """Return all rows of what is laid out like a parameter, given those that are here."""
    if not layout(p):
        return rows
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows, *layout(p), run_check=False, shape=p.shape, stride=p.stride()
    ).full_tensor()


def own_rows(p: Tensor, whole: Tensor) -> Tensor:
    """Return those rows of a matrix, known here as a whole, that are here of a parameter."""
    if not layout(p):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = layout(p)
    copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(mesh, placements).to_local()
