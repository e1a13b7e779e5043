"""The generative head on the features as they are when training has ended.

Given features its posterior is exact, see `posterior.classes`: it is taken from counts, sums and
squares, in axes that are measured anew, and needs no head of its own kind to have been trained.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from bayestune.config import Recipe
from bayestune.finalize.checks import require_generative
from bayestune.finalize.features import Features
from bayestune.finalize.temperature import (
    given_temperature,
    item_nll,
    require_rows,
    search_temperature,
)
from bayestune.head import GenerativeHead


@torch.no_grad()
def to_generative(
    head: nn.Module, fit: Features, held_out: Features | None, recipe: Recipe
) -> tuple[GenerativeHead, dict[str, Any]]:
    """Return a generative head with the exact posterior, and what was chosen.

    A head that was trained by the generative bound (``head.joint``) is left as trained where
    ``finalize.refresh=none``: likelier labels, and no density of these features. The temperature is
    returned and not folded in.

    Args:
        head: as it was trained, of any kind.
        fit: training features.
        held_out: rows that choose the temperature.
        recipe: its sections ``head`` and ``finalize``.

    Raises:
        ConfigError: another refresh is asked for, or a temperature and nothing is held out.
    """
    config = recipe.finalize
    require_generative(config)
    require_rows(config, held_out)
    covariance = "exact"
    if not isinstance(head, GenerativeHead):
        head = generative_head(recipe, fit.phi.shape[1], head.num_classes).to(fit.phi.device)  # pyright: ignore
        head.start(fit.phi, fit.labels, fit.weights)
    elif config.refresh == "auto":
        head.start(fit.phi, fit.labels, fit.weights)
    else:
        covariance = "trained"
    temperature = given_temperature(config)
    nll = None
    if held_out is not None:
        probs = functools.partial(head.probs, held_out.phi, held_out.mask)
        if config.temperature == "auto":
            temperature, _ = search_temperature(probs, held_out.labels)
        nll = float(item_nll(probs(temperature), held_out.labels).mean())
    return head, {"covariance": covariance, "value": None, "temperature": temperature, "nll": nll}


def generative_head(recipe: Recipe, in_features: int, num_classes: int) -> GenerativeHead:
    """Return the generative head of a recipe, not started yet."""
    return GenerativeHead(
        in_features=in_features,
        num_classes=num_classes,
        axes=recipe.head.axes,
        prior_scale=recipe.head.prior_scale,
        learn_prior=recipe.head.learn_prior,
    )
