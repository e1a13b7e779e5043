"""What a model says of some texts: labels or numbers, and what their uncertainty is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bayestune.guarantees import Guarantees, selective, sets
from bayestune.posterior.predictive import Predictive
from bayestune.posterior.regression import RegressionPredictive


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
        members: which classes are in the prediction set of each text, bool ``(N, K)``; None where
            the model was not calibrated for sets.
        abstain: which texts are too uncertain to be answered, bool ``(N,)``; None where the model
            was not calibrated for a risk.
    """

    probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    ood_score: Tensor
    names: tuple[str, ...]
    members: Tensor | None = None
    abstain: Tensor | None = None

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

    @property
    def sets(self) -> list[list[str]] | None:
        """The names in the set of each text, most probable first; None as `members`."""
        if self.members is None:
            return None
        order = self.probs.argsort(dim=1, descending=True, stable=True)
        ordered = zip(order.tolist(), self.members.gather(1, order).tolist(), strict=True)
        return [
            [self.names[k] for k, inside in zip(*row, strict=True) if inside] for row in ordered
        ]

    def under(self, guarantees: Guarantees, u: Tensor) -> Prediction:
        """Return the same with the sets and abstentions that a calibrated model guarantees.

        Args:
            guarantees: from `bayestune.calibrate`.
            u: `guarantees.uniforms` of the texts ``(N,)``.
        """
        choose, rule = guarantees.sets, guarantees.abstain
        return replace(
            self,
            members=None if choose is None else sets.apply(choose, self.probs, u),
            abstain=None if rule is None else selective.apply(rule, SCORES[rule.by](self), u),
        )

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
            self._promises(),
            strict=True,
        )
        for name, label, probs, confidence, entropy, aleatoric, epistemic, score, more in columns:
            yield {
                "id": name,
                "label": label,
                "probs": dict(zip(self.names, probs, strict=True)),
                "confidence": confidence,
                "entropy": entropy,
                "aleatoric": aleatoric,
                "epistemic": epistemic,
                "ood_score": score,
                **more,
            }

    def _promises(self) -> list[dict[str, Any]]:
        """Return what a calibrated model adds to each row."""
        found: list[dict[str, Any]] = [{} for _ in range(len(self))]
        abstain = None if self.abstain is None else self.abstain.tolist()
        for key, values in (("set", self.sets), ("abstain", abstain)):
            for row, value in zip(found, values or (), strict=False):
                row[key] = value
        return found


#: Scores of unfamiliarity by name: the higher, the less familiar.
SCORES: Mapping[str, Callable[[Prediction], Tensor]] = {
    "max_prob": lambda p: -p.confidence,
    "entropy": lambda p: p.entropy,
    "mutual_information": lambda p: p.epistemic,
    "density": lambda p: p.ood_score,
}


@dataclass(frozen=True)
class RegressionPrediction:
    """Predicted numbers of N texts, in the unit of the training targets, float64.

        std² = aleatoric² + epistemic²

    All three are standard deviations. The distribution is Gaussian where ``dof`` is None, else
    Student-t with this mean and standard deviation.

    Attributes:
        mean: predicted number ``(N,)``.
        std: its standard deviation ``(N,)``.
        aleatoric: standard deviation of the noise ``(N,)``, which more data would not remove.
        epistemic: standard deviation of the mean under the posterior ``(N,)``; 0 for point methods.
        ood_score: squared distance of the feature to the training features ``(N,)``; the higher,
            the less familiar. The epistemic deviation where no density was fitted.
        dof: degrees of freedom ``(N,)``; None stands for infinity.
    """

    mean: Tensor
    std: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    ood_score: Tensor
    dof: Tensor | None = None

    @classmethod
    def of(
        cls, predictive: RegressionPredictive, ood_score: Tensor | None = None
    ) -> RegressionPrediction:
        """Put the out-of-distribution score beside a predictive in the user's unit."""
        return cls(
            mean=predictive.mean,
            std=predictive.std,
            aleatoric=predictive.aleatoric,
            epistemic=predictive.epistemic,
            ood_score=predictive.epistemic if ood_score is None else ood_score,
            dof=predictive.dof,
        )

    def __len__(self) -> int:
        return self.mean.shape[0]

    def rows(self, ids: Sequence[str | int]) -> Iterator[dict[str, Any]]:
        """Yield one JSON-ready row per text, in order.

        Args:
            ids: N identifiers.
        """
        names = ("mean", "std", "aleatoric", "epistemic", "ood_score")
        columns = (getattr(self, name).tolist() for name in names)
        for id, *numbers in zip(ids, *columns, strict=True):
            yield {"id": id, **dict(zip(names, numbers, strict=True))}
