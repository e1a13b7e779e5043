"""One prediction out of those under several draws of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bayestune.posterior.predictive import Predictive
from bayestune.posterior.regression import RegressionPredictive
from bayestune.prediction import Prediction, RegressionPrediction


def mixture(
    parts: Sequence[Prediction | RegressionPrediction],
) -> Prediction | RegressionPrediction:
    """Return the equal mixture of S predictions of the same texts.

        p = mean p_s,   aleatoric = mean H_s;   of numbers
        aleatoric² = mean a_s²,   epistemic² = mean e_s² + var m_s

    What the draws disagree about is epistemic. The out-of-distribution score is their mean.

    Args:
        parts: S predictions of N texts each.
    """
    if len(parts) == 1:
        return parts[0]
    score = torch.stack([part.ood_score for part in parts]).mean(0)
    classes = [part for part in parts if isinstance(part, Prediction)]
    if classes:
        probs = torch.stack([part.probs for part in classes]).mean(0)  # (N, K)
        aleatoric = torch.stack([part.aleatoric for part in classes]).mean(0)  # (N,)
        return Prediction.of(Predictive.split(probs, aleatoric), classes[0].names, score)
    numbers = [part for part in parts if isinstance(part, RegressionPrediction)]
    mean, a, e = (
        torch.stack([getattr(part, name) for part in numbers])  # (S, N)
        for name in ("mean", "aleatoric", "epistemic")
    )
    noise = a.square().mean(0)
    spread = e.square().mean(0) + mean.var(0, correction=0)
    dof = None
    if numbers[0].dof is not None:
        # Of the noise alone, and back to the law of the same first four moments.
        each = torch.stack([part.dof for part in numbers if part.dof is not None])
        share = a.square() / (a.square() + e.square())
        excess = ((each - 4) * share.square()).mean(0)
        dof = 4 + excess * ((noise + spread) / noise).square()
    found = RegressionPredictive(mean.mean(0), noise.sqrt(), spread.sqrt(), dof)
    return RegressionPrediction.of(found, score)
