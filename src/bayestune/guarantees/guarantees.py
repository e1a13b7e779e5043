"""All that a calibrated model promises, as it is stored with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bayestune.guarantees.selective import AbstainRule
from bayestune.guarantees.sets import SetRule


@dataclass(frozen=True)
class Guarantees:
    """The rules of a model, and what they were calibrated with.

    Attributes:
        sets: which classes are in a row's set; None where there are no sets.
        abstain: which rows are answered; None where all are.
        data: hash of the calibration rows (`Task.hash`).
        settings: of the model whose predictions were calibrated (`BayesModel.settings`); it holds
            for those of no others.
    """

    sets: SetRule | None
    abstain: AbstainRule | None
    data: str
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON; a threshold that is infinite is null."""
        found = asdict(self)
        if self.sets is not None and math.isinf(self.sets.threshold):
            found["sets"]["threshold"] = None
        if self.abstain is not None:
            found["abstain"]["thresholds"] = [
                None if math.isinf(t) else t for t in self.abstain.thresholds
            ]
        return found

    def report(self) -> dict[str, Any]:
        """Return the same with what follows from it: bounds by threshold, the one chosen."""
        found = self.to_json()
        if self.abstain is not None:
            found["abstain"] |= {"bounds": list(self.abstain.bounds), "chosen": self.abstain.chosen}
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Guarantees:
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        sets, abstain = data["sets"], data["abstain"]
        if sets is not None:
            sets = SetRule(**{**sets, "threshold": _finite_or_all(sets["threshold"])})
        if abstain is not None:
            curve = {name: tuple(abstain[name]) for name in ("ties", "accepted", "errors")}
            thresholds = tuple(_finite_or_all(t) for t in abstain["thresholds"])
            abstain = AbstainRule(**{**abstain, **curve, "thresholds": thresholds})
        return cls(sets, abstain, data["data"], dict(data["settings"]))


def _finite_or_all(threshold: float | None) -> float:
    return math.inf if threshold is None else float(threshold)
