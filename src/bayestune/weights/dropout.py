"""Dropout kept on at prediction: each draw zeroes its own inputs of the adapter.

    A draw's mask depends on seed, draw, layer, the text's tokens and the position of each; the same
    text gets the same mask in any batch.

Source: Gal and Ghahramani 2016 (arXiv 1506.02142).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayestune.errors import ModelError
from bayestune.weights.distribution import Drawing, WeightDistribution, block_rows
from bayestune.weights.noise import generator
from bayestune.weights.site import Site


class DropoutWeights(WeightDistribution):
    """Bernoulli masks on the inputs of LoRA's A; PEFT's own dropout while training.

    Args:
        sites: the dropout modules of LoRA layers, see `dropout_sites`.
        rate: probability of zeroing an input.
    """

    def __init__(self, sites: Mapping[str, Site], *, rate: float) -> None:
        super().__init__(sites)
        self.rate = rate

    def held_forward(self, site: str, x: Tensor, out: Tensor, held: Drawing) -> Tensor:
        """Return inputs ``((1 + S) · B, T, in)``, all but the first B of them masked."""
        if held.mask is None or x.ndim != 3:
            raise ModelError(
                f"MC dropout needs inputs (B, T, in) at {site}, got {tuple(x.shape)}: the layer "
                "mixes positions of texts; adapt others."
            )
        keep = torch.zeros(len(held.draws), *held.mask.shape, x.shape[-1])  # (S, B, T, in)
        for s, draw in enumerate(held.draws):
            for b, (text, tokens) in enumerate(zip(held.keys, held.mask.cpu(), strict=True)):
                uniform = torch.rand(
                    int(tokens.sum()),
                    x.shape[-1],
                    generator=generator(held.seed, draw, site, text),
                )
                keep[s, b, tokens] = (uniform >= self.rate).float() / (1 - self.rate)
        if not held.blocks:
            return x * keep[0].to(x) if held.draws else x
        rows = block_rows(site, x, held)
        noisy = x[rows:] * keep.flatten(0, 1).to(x)  # (S · B, T, in)
        return torch.cat([x[:rows], noisy])


def dropout_sites(peft_model: nn.Module, adapter: str = "default") -> dict[str, Site]:
    """Return the dropout modules of all LoRA layers, by the path of the layer.

    Raises:
        ModelError: if there is none.
    """
    found: dict[str, Site] = {}
    for path, layer in peft_model.named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_dropout:
            A: Any = layer.lora_A[adapter]
            name = f"{path.removeprefix('base_model.model.')}.dropout"
            found[name] = Site(layer.lora_dropout[adapter], A.weight, layer)
    if not found:
        raise ModelError("The adapter has no LoRA layer whose dropout could be kept on.")
    return found
