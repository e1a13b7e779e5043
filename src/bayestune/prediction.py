"""What a model says of some texts: labels, probabilities and what their uncertainty is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayestune.posterior.predictive import Predictive


@dataclass(frozen=True)
class Prediction:
    """Predictions of N texts over K classes, in nats where it is about uncertainty.

    Attributes:
        probs: class probabilities ``(N, K)``; rows sum to 1.
        entropy: total uncertainty H(p) ``(N,)``; aleatoric + epistemic.
        aleatoric: expected entropy under the posterior ``(N,)``.
        epistemic: mutual information of label and weights ``(N,)``; 0 for point methods.
        ood_score: squared distance of the feature to its nearest training class ``(N,)``, or its
            negative log density under a generative head; the higher, the less familiar. The mutual
            information where no density was fitted.
        names: display names of the K classes.
    """

    probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    ood_score: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, predictive: Predictive, names: Sequence[str], ood_score: Tensor | None = None
    ) -> Prediction:
        """Name the classes of a predictive and put the out-of-distribution score beside it."""
        return cls(
            probs=predictive.probs,
            entropy=predictive.entropy,
            aleatoric=predictive.aleatoric,
            epistemic=predictive.epistemic,
            ood_score=predictive.epistemic if ood_score is None else ood_score,
            names=tuple(names),
        )

    @property
    def indices(self) -> Tensor:
        """The most probable class of each text ``(N,)``."""
        return self.probs.argmax(dim=1)

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class of each text."""
        return [self.names[i] for i in self.indices.tolist()]

    @property
    def confidence(self) -> Tensor:
        """The probability of the most probable class ``(N,)``."""
        return self.probs.amax(dim=1)

    def __len__(self) -> int:
        return self.probs.shape[0]

    def rows(self, ids: Sequence[str | int]) -> Iterator[dict[str, Any]]:
        """Yield one JSON-ready row per text, in order.

        Args:
            ids: N identifiers.
        """
        columns = zip(
            ids,
            self.labels,
            self.probs.tolist(),
            self.confidence.tolist(),
            self.entropy.tolist(),
            self.aleatoric.tolist(),
            self.epistemic.tolist(),
            self.ood_score.tolist(),
            strict=True,
        )
        for name, label, probs, confidence, entropy, aleatoric, epistemic, ood_score in columns:
            yield {
                "id": name,
                "label": label,
                "probs": dict(zip(self.names, probs, strict=True)),
                "confidence": confidence,
                "entropy": entropy,
                "aleatoric": aleatoric,
                "epistemic": epistemic,
                "ood_score": ood_score,
            }
