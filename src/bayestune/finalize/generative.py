"""The generative head's posterior on the features as they are when training has ended.

Given the features it is known exactly, see `posterior.generative`: it can be taken anew, in axes
that are measured anew, without a gradient.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from bayestune.config import FinalizeConfig
from bayestune.errors import ConfigError
from bayestune.finalize.features import Features
from bayestune.finalize.temperature import clearly_worse, item_nll, search_temperature
from bayestune.head import GenerativeHead


@torch.no_grad()
def retake(
    head: GenerativeHead, fit: Features, held_out: Features | None, config: FinalizeConfig
) -> tuple[GenerativeHead, dict[str, Any]]:
    """Return the head with the exact posterior, or as trained, and what was tried.

    ``refresh="none"`` keeps what was trained; ``"auto"`` takes the exact posterior unless it is
    less likely on held-out rows by over one standard error, each at its own temperature, which is
    returned and not folded in.

    Args:
        head: as it was trained.
        fit: training features.
        held_out: rows to choose by; without them ``"auto"`` takes the exact posterior.
        config: ``refresh`` and ``temperature``.

    Raises:
        ConfigError: another refresh is asked for, or a temperature and nothing is held out.
    """
    if config.refresh not in ("auto", "none"):
        raise ConfigError(
            f"finalize.refresh={config.refresh} is the covariance of a linear layer; with "
            "head.kind=generative it is auto (the exact posterior of the class means) or none."
        )
    heads = {"trained": head}
    if config.refresh == "auto":
        exact = copy.deepcopy(head)
        exact.start(fit.phi, fit.labels, fit.weights)
        heads = {"exact": exact, "trained": head}
    if held_out is None:
        if config.temperature == "auto":
            raise ConfigError(
                "finalize.temperature is chosen on held-out rows: give a validation set or "
                "train.hold_out above 0, or fix it."
            )
        heads = dict(list(heads.items())[:1])
    tried, losses = [], {}
    for name, candidate in heads.items():
        given = config.temperature
        temperature, nll = (1.0 if isinstance(given, str) else float(given)), None
        if held_out is not None:
            probs = functools.partial(candidate.probs, held_out.phi, held_out.mask)
            if given == "auto":
                temperature, _ = search_temperature(probs, held_out.labels)
            losses[name] = item_nll(probs(temperature), held_out.labels)
            nll = float(losses[name].mean())
        tried.append({"covariance": name, "temperature": temperature, "nll": nll})
    chosen = tried[0]
    if len(tried) > 1 and clearly_worse(losses["exact"], losses["trained"]):
        chosen = tried[1]
    return heads[chosen["covariance"]], {**chosen, "value": None, "tried": tried}
