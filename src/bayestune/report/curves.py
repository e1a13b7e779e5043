"""Curves of one row, over its seeds: small enough to travel in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayestune import metrics
from bayestune.bench.table import Estimate
from bayestune.files import under
from bayestune.report.contents import Bins, Unfamiliar

#: Bins of a reliability diagram, as many as those of the ECE.
BINS = 15
#: Bins of a histogram of scores.
COLUMNS = 24
#: Shares of test rows that are answered.
COVERAGES = tuple(k / 50 for k in range(1, 51))
#: Shares of test rows that are taken for others, closer where curves are steep.
RATES = (
    *(k / 200 for k in range(10)),
    *(k / 100 for k in range(5, 20)),
    *(k / 20 for k in range(4, 21)),
)
#: Mutual information in nats that only rounding leaves: that of a point estimate is 0.
_NOTHING = 1e-6

Arrays = Mapping[str, Tensor]


def is_point(seeds: Sequence[Arrays]) -> bool:
    """Return whether predictions have no epistemic uncertainty at all, as a point estimate's."""
    return all(float(a["score.mutual_information"].abs().max()) < _NOTHING for a in seeds)


def reliability(seeds: Sequence[Arrays]) -> Bins:
    """Return the reliability diagram of the predictions of all seeds together."""
    pairs = [metrics.top_label(a["probs"], a["targets"]) for a in seeds]
    confidence, correct = (torch.cat(each) for each in zip(*pairs, strict=True))
    found = metrics.reliability(confidence, correct, BINS)
    means = (found.confidence, found.accuracy)
    return Bins(
        tuple(found.counts.tolist()),
        *(tuple(None if math.isnan(v) else v for v in mean.tolist()) for mean in means),
    )


def risk(seeds: Sequence[Arrays]) -> tuple[float, ...]:
    """Return the share of errors among the most confident rows at `COVERAGES`, mean over seeds."""
    found = []
    for arrays in seeds:
        curve = metrics.risk_coverage_curve(*metrics.top_label(arrays["probs"], arrays["targets"]))
        # The smallest number of rows whose share is at least the coverage.
        k = torch.searchsorted(curve.coverage, curve.coverage.new_tensor(COVERAGES) - 1e-12)
        found.append(curve.risk[k])
    return tuple(torch.stack(found).mean(0).tolist())


def unfamiliar(seeds: Sequence[Arrays]) -> dict[str, dict[str, Unfamiliar]]:
    """Return by set of other rows and by score how the two are told apart."""
    found: dict[str, dict[str, Unfamiliar]] = {}
    for key in under("ood.", seeds[0]):
        name, _, score = key.rpartition(".")
        pairs = [(a[f"score.{score}"].double(), a[f"ood.{key}"].double()) for a in seeds]
        found.setdefault(name, {})[score] = _apart(pairs)
    return found


def _apart(pairs: Sequence[tuple[Tensor, Tensor]]) -> Unfamiliar:
    rates = torch.tensor(RATES, dtype=torch.float64)
    roc = torch.stack([metrics.roc_curve(*pair).at(rates) for pair in pairs]).mean(0)
    auroc = Estimate.of([metrics.auroc(*pair) for pair in pairs])
    first = pairs[0]
    low = min(float(each.min()) for each in first)
    # Few scores are very large: what lies beyond shares the last bin.
    high = max(float(each.quantile(0.99)) for each in first)
    if high <= low:
        high = low + 1.0
    inside, outside = (
        torch.bincount(
            ((each - low) / (high - low) * COLUMNS).long().clamp(0, COLUMNS - 1), minlength=COLUMNS
        )
        for each in first
    )
    return Unfamiliar(
        low,
        high,
        tuple(inside.tolist()),
        tuple(outside.tolist()),
        tuple(roc.tolist()),
        (auroc.mean, auroc.error),
    )
