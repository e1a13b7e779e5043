"""What became, on labelled rows, of what a calibrated model promises."""

from __future__ import annotations

from torch import Tensor

from bayestune import metrics
from bayestune.metrics import Interval
from bayestune.prediction import Prediction


def kept(prediction: Prediction, targets: Tensor) -> tuple[dict[str, float], dict[str, Interval]]:
    """Return how often the promises of a prediction were kept, and 95 % bootstrap intervals.

    Args:
        prediction: of N labelled rows.
        targets: their class indices ``(N,)``.

    Returns:
        ``set_coverage``, the share of rows whose set holds the true class, and ``set_size``, the
        mean number of classes in a set; ``accepted``, the share of rows that are answered, and
        ``selective_risk``, the share of errors among them, absent where none is. Nothing where the
        model was not calibrated.
    """
    rows: dict[str, Tensor] = {}
    if prediction.members is not None:
        rows["set_coverage"] = prediction.members.gather(1, targets[:, None])[:, 0]  # (N,)
        rows["set_size"] = prediction.members.sum(1)
    if prediction.abstain is not None:
        rows["accepted"] = ~prediction.abstain
        wrong = (prediction.indices != targets)[~prediction.abstain]
        rows |= {"selective_risk": wrong} if len(wrong) else {}
    ends = {name: metrics.mean_interval(values.double()) for name, values in rows.items()}
    return {name: values.double().mean().item() for name, values in rows.items()}, ends
