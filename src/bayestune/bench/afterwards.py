"""What the delivered probabilities of a cell become under what stacks on any method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch

from bayestune import metrics
from bayestune.finalize import search_temperature
from bayestune.guarantees.sets import apply, calibrate

#: Of the sets whose mean size is shown, and over how many halvings of the test rows.
COVERAGE, HALVINGS = 0.95, 20


def afterwards(arrays: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return NLL, ECE and temperature once tempered, and the size of conformal sets.

    Args:
        arrays: of a cell.
    """
    return {**tempered(arrays), "set_size": set_size(arrays)}


def tempered(arrays: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return NLL and ECE of the test rows under one temperature, and that temperature.

        p_T ∝ p^(1/T)

    on the delivered probabilities, whatever made them, T by the likelihood of the held-out rows
    (`finalize.fit_temperature`): what is left of a method's lead once everything is tempered.

    Args:
        arrays: of a cell.
    """

    def at(name: str, temperature: float) -> torch.Tensor:
        return (arrays[name].double().log() / temperature).softmax(-1)

    best, _ = search_temperature(lambda t: at("val.probs", t), arrays["val.targets"])
    probs, targets = at("probs", best), arrays["targets"]
    return {"nll": metrics.nll(probs, targets), "ece": metrics.ece(probs, targets), "T": best}


def set_size(arrays: Mapping[str, torch.Tensor]) -> float:
    """Return the mean number of classes in LAC sets that hold the true one with 95 %.

    The rule is calibrated on one half of the test rows and applied to the other, as the held-out
    rows have had their part in choosing the model. Mean over halvings, the same for every method.

    Args:
        arrays: of a cell.
    """
    probs, targets = arrays["probs"], arrays["targets"]
    if len(targets) < 2:  # nothing to calibrate on, so that every class is in
        return float(probs.shape[1])
    rows, generator = len(targets), torch.Generator().manual_seed(0)
    unused = torch.zeros(rows)  # LAC breaks no ties
    sizes = []
    for _ in range(HALVINGS):
        order = torch.randperm(rows, generator=generator)
        own, other = order[: rows // 2], order[rows // 2 :]
        rule = calibrate(probs[own], targets[own], unused[own], COVERAGE)
        sizes.append(apply(rule, probs[other], unused[other]).sum(1).double().mean().item())
    return statistics.fmean(sizes)
