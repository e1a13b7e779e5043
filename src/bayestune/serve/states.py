"""Pooled states from another server: whether they are those that a side-car was made for."""

from __future__ import annotations

import torch
from torch import Tensor

from bayestune.data import Encoded
from bayestune.errors import ConfigError, NumericsError
from bayestune.store import Sidecar

#: Of SmolLM2-135M bfloat16 is .02 away from float32, no adapter .6 to .96, another run .16 to .46.
TOLERANCE = 0.05


def with_probe(sidecar: Sidecar, encoded: Encoded) -> list[list[int]]:
    """Return the prompts of a request: the side-car's probe, then the rows.

    Raises:
        ConfigError: if the rows are pairs of an encoder that tells the two apart.
    """
    if encoded.token_type_ids is not None:
        raise ConfigError(
            "This encoder tells the texts of a pair apart by token types, for which a server that "
            "takes token ids has no place; use bayestune serve."
        )
    return [list(ids) for ids in (sidecar.probe.ids, *encoded.ids)]


def without_probe(sidecar: Sidecar, states: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return the states of the rows, once the probe's shows that they are the right ones.

        ‖φ − φ*‖ ≤ tolerance · ‖φ*‖

    φ* is what the exported adapter made of the probe. Another adapter, none, another pooling or
    another base are farther away, unless they compute almost the same.

    Args:
        sidecar: whose probe stands first.
        states: pooled states of `with_probe`'s prompts ``(1 + N, D)``.
        tolerance: relative distance that rounding may make.

    Returns:
        States ``(N, D)`` in fp32.

    Raises:
        ConfigError: if they are of another width, normalised, or of another adapter.
        NumericsError: if one is not finite.
    """
    wanted = sidecar.probe.state
    if states.shape[-1] != len(wanted):
        raise ConfigError(
            f"The server returns states of {states.shape[-1]} features, the side-car was made for "
            f"{len(wanted)}: serve the base that was trained, and ask for no other dimensions."
        )
    states = states.float()
    if not torch.isfinite(states).all():
        raise NumericsError("The server returned a state that is NaN or infinite.")
    norms = states.norm(dim=-1)
    if (norms - 1).abs().max() < 1e-2 and abs(float(wanted.norm()) - 1) > 2e-2:
        raise ConfigError(
            "The server returns states scaled to length 1, whose length is lost. Ask for them as "
            "they are: in vLLM use_activation: false; a server that cannot do so cannot be used."
        )
    gap = float((states[0] - wanted).norm() / wanted.norm())
    if gap > tolerance:
        raise ConfigError(
            f"The server's state of the side-car's probe is {gap:.2g} of its length away from the "
            f"exported adapter's; {tolerance:g} may be. The request's model (vLLM's name of the "
            "adapter) is another one than the side-car's, or base, pooling or precision differ "
            "from the export's."
        )
    return states[1:]
