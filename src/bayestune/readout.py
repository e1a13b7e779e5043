"""Everything right of the pooled feature: from what was observed to a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bayestune.config import PredictConfig
from bayestune.data import LabelSet, Scaling
from bayestune.head import GenerativeHead
from bayestune.methods import Method
from bayestune.methods.intervals import intervals
from bayestune.metrics import Density, density_score
from bayestune.posterior.observed import Observed
from bayestune.posterior.regression import RegressionPredictive
from bayestune.prediction import Prediction, RegressionPrediction


@dataclass(frozen=True)
class Readout:
    """What a model makes of pooled features; it needs no backbone.

    Attributes:
        method: how it predicts.
        config: the recipe's section for it.
        head: the distribution over the last layer.
        labels: the classes in order.
        density: class densities of training features; None where there are none.
        scaling: mean and standard deviation of the training targets of a regression task.
    """

    method: Method
    config: PredictConfig
    head: nn.Module
    labels: LabelSet
    density: Density | None = None
    scaling: Scaling = field(default_factory=Scaling)

    def predict(
        self, observed: Observed, mask: Tensor | None = None
    ) -> Prediction | RegressionPrediction:
        """Predict with full uncertainty.

        Args:
            observed: pooled features ``(N, D)``, or what random adapter weights say of the logits.
            mask: which classes exist for each text, bool ``(N, K)``; None where all do.

        Returns:
            Labels, probabilities, entropies in nats and out-of-distribution scores; for regression
            means and standard deviations.
        """
        device = next(self.head.parameters()).device
        phi = observed if isinstance(observed, Tensor) else observed.phi
        predictive = self.method.predict(
            self.head,
            observed.to(device),
            self.config,
            mask if mask is None else mask.to(device),
        )
        score = None
        if isinstance(self.head, GenerativeHead) and len(phi):
            with torch.no_grad():
                score = -self.head.log_density(phi.to(device)).float().cpu()
        elif self.density is not None and len(phi):
            score = density_score(self.density, phi).float()
        if isinstance(predictive, RegressionPredictive):
            scaled = predictive.affine(self.scaling.mean, self.scaling.std)
            return RegressionPrediction.of(scaled, score)
        return Prediction.of(predictive.cpu(), self.labels.names, score)

    def intervals(
        self, observed: Observed, level: float = 0.9, mask: Tensor | None = None
    ) -> Tensor | None:
        """Return where the posterior puts the probability of each class.

        Args:
            observed: pooled features ``(N, D)``, or what random adapter weights say of the logits.
            level: mass of the posterior inside, in (0, 1).
            mask: which classes exist for a text, bool ``(N, K)``; None where all do.

        Returns:
            Lower and upper ends ``(2, N, K)``; None where the probabilities do not vary, see
            `methods.intervals`.

        Raises:
            ConfigError: if the level is not in (0, 1).
        """
        device = next(self.head.parameters()).device
        mask = mask if mask is None else mask.to(device)
        found = intervals(self.head, observed.to(device), self.config, level, mask)
        return found if found is None else found.cpu()
