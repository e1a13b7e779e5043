"""Derivatives of every row's logits by the weights at some sites, from few backward passes.

At position t of row b a site maps ``z_t = W a_t``. With ``g_t = ∂f/∂z_t`` for a function f of the
row's logits, the row's own derivative by W is a sum over all positions,

    ∂f_b/∂W = Σ_t g_bt a_btᵀ,

whatever is pooled and whichever side is padded: where no logit looks, g is 0. Rows of a batch do
not touch each other, so one backward pass of Σ_b f_b gives the g of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.errors import ModelError
from bayestune.gradients import gradients_required
from bayestune.weights.site import Site

#: By site, inputs ``(B, ..., in)`` and values ``(B, ..., out)`` of every call.
Calls = Mapping[str, list[tuple[Tensor, Tensor]]]


@contextmanager
def recorded(sites: Mapping[str, Site]) -> Iterator[Calls]:
    """Keep what passes through some sites in the forward pass within, with gradients on."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in sites}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            out = out if out.requires_grad else out.requires_grad_()
            calls[name].append((args[0].detach(), out))
            return out

        return hook

    handles = [site.module.register_forward_hook(keep(name)) for name, site in sites.items()]
    try:
        with torch.enable_grad():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def pulled(logits: Tensor, calls: Calls, cotangents: Tensor) -> dict[str, Tensor]:
    """Return ``∂(Σ_k c_bk f_bk)/∂W`` of every row b, by site, from one backward pass.

    Args:
        logits: f of a recorded forward pass, ``(B, K)``.
        calls: what passed through the sites.
        cotangents: c, ``(B, K)``.

    Returns:
        Derivatives ``(B, out, in)``, in fp32 or better.

    Raises:
        ModelError: if a site was not reached, or saw anything but one block of every row.
    """
    B = len(logits)
    for name, seen in calls.items():
        if not seen or any(len(a) != B for a, _ in seen):
            raise ModelError(
                f"{name} does not see the {B} rows of a batch one by one (a mixture of experts?), "
                "so that their derivatives cannot be told apart; adapt other modules with "
                "adapter.targets."
            )
    values = [z for seen in calls.values() for _, z in seen]
    with gradients_required():
        gradients = iter(
            torch.autograd.grad(
                logits, values, cotangents, retain_graph=True, materialize_grads=True
            )
        )
    found: dict[str, Tensor] = {}
    for name, seen in calls.items():
        each = []
        for a, _ in seen:
            a, g = (_full(t).reshape(B, -1, t.shape[-1]) for t in (a, next(gradients)))
            each.append(g.mT @ a)  # (B, out, T) (B, T, in)
        found[name] = torch.stack(each).sum(0) if len(each) > 1 else each[0]
    return found


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
