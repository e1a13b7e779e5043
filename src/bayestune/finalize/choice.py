"""Choosing the posterior that is delivered, by the likelihood of held-out labels.

Every choice is judged at its own temperature. All work on cached features; the backbone is not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayestune.config import FinalizeConfig
from bayestune.finalize.temperature import best_temperature, clearly_worse, given_temperature
from bayestune.progress import Progress, silent

Kind = Literal["trained", "refreshed", "ascended"]


@dataclass(frozen=True)
class Candidate:
    """One posterior that was tried.

    Attributes:
        covariance: ``trained``, ``refreshed`` or ``ascended``, see `finalize.options`.
        value: the factor on the trained standard deviations, the precision of the refresh in units
            of the prior's, or the weight of the KL.
        temperature: fitted (or given) T.
        nll: held-out negative log-likelihood at T, in nats per row; None without held-out rows.
        log_evidence: log marginal likelihood of the training labels in nats, where the mean is the
            mode; None elsewhere.
        excess: for class blocks of two classes, the variance of the logits' difference relative to
            that under the whole curvature; None elsewhere.
    """

    covariance: Kind
    value: float
    temperature: float
    nll: float | None
    log_evidence: float | None = None
    excess: float | None = None


@dataclass(frozen=True)
class Choice:
    """One posterior that can be delivered.

    Attributes:
        kind: where its covariance comes from.
        value: see `Candidate`.
        cost: what the prior on the value charges, in nats.
        losses: negative log-likelihoods of the held-out rows at a temperature, in nats ``(N,)``.
        install: gives it to the head.
        log_evidence: see `Candidate`.
        excess: see `Candidate`.
    """

    kind: Kind
    value: float
    cost: float
    losses: Callable[[float], Tensor]
    install: Callable[[], None]
    log_evidence: float | None = None
    excess: float | None = None


@dataclass(frozen=True)
class _Tried:
    cost: float
    candidate: Candidate
    choice: Choice
    losses: Tensor


def choose(
    choices: Iterable[Choice],
    total: int,
    rows: int,
    config: FinalizeConfig,
    progress: Progress = silent,
) -> tuple[list[Candidate], Candidate]:
    """Install the likeliest of some posteriors.

        min over choices of  Σ_n −log p(y_n | x_n) + (ln τ/τ₀)² / (2 · (ln 10)²)

    where τ/τ₀ is the precision in units of the prior's, or 1/s² for a factor s on the trained
    standard deviations. Where both kinds are there, the best that is not the trained one is taken
    unless the best trained one is more likely by over one standard error of the paired difference:
    at equal likelihood a refresh tells unfamiliar inputs better. The temperature is returned, not
    folded in.

    Args:
        choices: measured one at a time; the best of either kind is kept.
        total: how many there are at most, for the progress.
        rows: how many rows are held out; with none the first choice is taken.
        config: a fixed temperature, or ``auto``.
        progress: how to report.

    Returns:
        All candidates, and the one taken.
    """
    temperature = given_temperature(config)
    tried: list[Candidate] = []
    best: dict[bool, _Tried] = {}
    with progress("choosing the covariance", total) as advance:
        for choice in choices:
            losses, nll = torch.zeros(0), None
            if rows:
                if config.temperature == "auto":
                    # The neighbour's temperature is near: half the evaluations from there.
                    temperature, _ = best_temperature(
                        lambda T, c=choice: float(c.losses(T).mean()), rows, temperature
                    )
                losses = choice.losses(temperature)
                nll = float(losses.mean())
            known = choice.log_evidence, choice.excess
            tried.append(Candidate(choice.kind, choice.value, temperature, nll, *known))
            found = _Tried(float(losses.sum()) + choice.cost, tried[-1], choice, losses)
            trained = choice.kind == "trained"
            if trained not in best or found.cost < best[trained].cost:
                best[trained] = found
            advance(1)
        advance(total - len(tried))  # the evidence chooses among many and shows one
    taken = _preferred(best)
    taken.choice.install()
    return tried, taken.candidate


def _preferred(best: dict[bool, _Tried]) -> _Tried:
    if len(best) == 1:
        return next(iter(best.values()))
    trained, other = best[True], best[False]
    return trained if clearly_worse(other.losses, trained.losses) else other
