"""The posterior over classes that is delivered: every option of the recipe, and the choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig, PredictConfig
from bayestune.errors import ConfigError
from bayestune.finalize.choice import Candidate, Choice, choose
from bayestune.finalize.features import Features
from bayestune.finalize.options import Option, grid, options
from bayestune.finalize.refresh import Head
from bayestune.finalize.temperature import item_nll, nll_of, predictive_at
from bayestune.head import OrdinalHead
from bayestune.progress import Progress, silent


@torch.no_grad()
def select(
    head: Head,
    fit: Features,
    held_out: Features | None,
    config: FinalizeConfig,
    predict: PredictConfig | None = None,
    progress: Progress = silent,
    *,
    kl: float | str = "auto",
) -> tuple[list[Candidate], Candidate]:
    """Give the head the likeliest of the posteriors that the recipe allows; see `choose`.

    Args:
        head: changed in place.
        fit: training features.
        held_out: rows the choice is made on; None where nothing is left to choose.
        config: which options, and what is fixed.
        predict: how the logits of the delivered model become probabilities.
        progress: how to report.
        kl: the recipe's weight of the KL, for ``refit="ascent"``.

    Returns:
        All candidates, and the one taken.

    Raises:
        ConfigError: if something is to be chosen and nothing is held out.
    """
    values = grid(config, kl)
    if held_out is None:
        require_held_out(config, kl)
    rows = fit.first(0) if held_out is None else held_out
    choices = (
        Choice(
            option.kind,
            option.value,
            option.cost,
            partial(_losses, head, option, rows, predict),
            partial(option.install, head),
            option.log_evidence,
            option.excess,
        )
        for option in options(head, fit, rows.phi, config, values)
    )
    return choose(choices, len(values), len(rows), config, progress)


def open_choices(config: FinalizeConfig, kl: float | str = "auto") -> list[str]:
    """Return what a recipe leaves to held-out rows about a Gaussian head, in words for people."""
    count = Counter(kind for kind, _ in grid(config, kl))
    found = ["finalize.temperature=auto"] if config.temperature == "auto" else []
    if count["trained"] and len(count) > 1:
        found.append(
            "finalize.refresh=auto (whether the trained covariance stays; by name it goes)"
        )
    if count["trained"] > 1:
        found.append("finalize.scale=auto (of the trained covariance)")
    if count["refreshed"] > 1 and config.precision != "evidence":
        found.append("finalize.precision=auto")
    if count["ascended"] > 1:
        found.append("finalize.refit=ascent (its KL weight)")
    return found


def held_out_missing(choices: Sequence[str]) -> ConfigError:
    """Return the error for choices with nothing to choose by."""
    return ConfigError(
        f"{', '.join(choices)} {'is' if len(choices) == 1 else 'are'} chosen on held-out rows, "
        "and there are none: give a validation set or train.hold_out above 0, or fix them."
    )


def require_held_out(config: FinalizeConfig, kl: float | str = "auto") -> None:
    """Raise ConfigError where a recipe leaves something to held-out rows and there are none."""
    choices = open_choices(config, kl)
    if choices:
        raise held_out_missing(choices)


def _losses(
    head: Head, option: Option, rows: Features, predict: PredictConfig | None, temperature: float
) -> Tensor:
    found, start = [], 0
    for mu, var in option.moments(rows.phi):
        part = slice(start, start + len(mu))
        start += len(mu)
        if isinstance(head, OrdinalHead):
            found.append(nll_of(head.likelihood(mu, var, rows.labels[part], temperature)))
            continue
        mask = None if rows.mask is None else rows.mask[part]
        probs = predictive_at(mu, var, temperature, mask, predict).probs
        found.append(item_nll(probs, rows.labels[part]))
    return torch.cat(found)
