"""What an evaluation of the Trainer reports of class probabilities."""

from __future__ import annotations

from typing import Any

import torch

from bayestune import metrics


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Return the proper scores and the calibration of predicted classes, for any Trainer.

    Args:
        prediction: an ``EvalPrediction`` whose ``predictions`` are logits or log-probabilities
            ``(N, K)`` (the first of them where there are several) and whose ``label_ids`` are
            class indices ``(N,)``.

    Returns:
        ``nll`` in nats, ``ece`` over 15 bins, ``brier`` and ``accuracy``; a Trainer puts ``eval_``
        before each.

    Raises:
        DataError: they are not the logits of classes with labels in range.
    """
    found, labels = prediction.predictions, prediction.label_ids
    logits = torch.as_tensor(found[0] if isinstance(found, tuple) else found).double()
    probs = logits.softmax(-1)
    return {
        "nll": metrics.nll(probs, labels),
        "ece": metrics.ece(probs, labels),
        "brier": metrics.brier(probs, labels),
        "accuracy": metrics.accuracy(probs, labels),
    }
