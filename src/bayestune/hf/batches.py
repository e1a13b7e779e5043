"""The batches of a Trainer: their labels, their features, and those of one step."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from bayestune.backbone.pool import last_token, pick
from bayestune.errors import DataError
from bayestune.finalize import Features
from bayestune.head import GaussianHead, LinearHead
from bayestune.hf.pooled import pooled

logger = logging.getLogger(__name__)

Head = GaussianHead | LinearHead

#: Training rows whose features set the units of prior, posterior and rates.
_MEASURED = 512


@dataclass
class Step:
    """One step of the optimiser in progress.

    Attributes:
        batches: the micro-batches of this process, as the data loader gave them.
        rows: the mean number of their rows over the processes.
        seen: how many of them have begun.
        kept: features of those, where the posterior moves behind them.
    """

    batches: Sequence[Any]
    rows: float
    seen: int = 0
    kept: list[Features] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the last micro-batch has begun."""
        return self.seen == len(self.batches)


def some_rows(data: Any) -> Any:
    """Return training rows, spread evenly, or the first ones of a set without a length."""
    try:
        count = len(data)
    except TypeError:
        return list(itertools.islice(data, _MEASURED))
    return Subset(data, range(0, count, max(1, count // _MEASURED)))


class BatchReader:
    """Turns the batches of a Trainer into features with labels.

    Args:
        labels: the name of their column.
        pad: returns the id of the padding token by which the model pools; None without one. It is
            asked at every batch, because a Trainer may still set it.
    """

    def __init__(self, labels: str, pad: Callable[[], int | None]) -> None:
        self.labels, self.pad = labels, pad
        self.warned = False

    def count(self, batches: Iterable[Mapping[str, Any]]) -> int:
        """Return how many rows some batches have together."""
        return sum(len(self._labels(batch)) for batch in batches)

    def read(self, model: nn.Module, head: Head, inputs: Mapping[str, Any]) -> Features:
        """Return the features of a batch ``(B, D)`` with its labels.

        Raises:
            DataError: a label is missing, not a class or out of range; or see `features`.
        """
        labels = self._labels(inputs)
        if labels.ndim != 1 or labels.is_floating_point():
            raise DataError(
                f"Labels of shape {tuple(labels.shape)} and {labels.dtype} were given; expected a "
                "class index for each row."
            )
        if labels.min() < 0 or labels.max() >= head.num_classes:
            raise DataError(
                f"Labels go from {int(labels.min())} to {int(labels.max())}; the model has the "
                f"classes 0 to {head.num_classes - 1}. Load it with num_labels=K."
            )
        return Features(self.features(model, head, inputs), labels)

    def features(self, model: nn.Module, head: Head, inputs: Mapping[str, Any]) -> Tensor:
        """Return the features of a batch ``(B, D)``, whatever its labels.

        Raises:
            DataError: it has no attention mask and ends in padding.
            NumericsError: a feature is not finite.
        """
        rest = {name: value for name, value in inputs.items() if name != self.labels}
        self._check_padding(rest)
        return pooled(model, head, rest)

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor:
        if self.labels not in inputs:
            raise DataError(f"A batch has no {self.labels}; its columns are {sorted(inputs)}.")
        return inputs[self.labels]

    def _check_padding(self, inputs: Mapping[str, Any]) -> None:
        """Warn once of texts whose last token is the padding token."""
        ids, mask, pad = inputs.get("input_ids"), inputs.get("attention_mask"), self.pad()
        if pad is None or self.warned or ids is None:
            return
        at = last_token(torch.ones_like(ids) if mask is None else mask)
        count = int((pick(ids, at) == pad).sum())
        if count and mask is None:
            raise DataError(
                f"{count} rows of a batch end in the padding token {pad}, and there is no "
                "attention_mask to tell whether it is theirs. Let the data collator give one, as "
                "that of processing_class=tokenizer does."
            )
        if count:
            self.warned = True
            logger.warning(
                "%d of %d texts end in token %d, which is also the padding token: BayesTrainer and "
                "bt.load read them there, the stock forward pass of transformers one token early. "
                "Where stock code is to use the adapter, give the tokenizer a padding token of its "
                "own before training, or do not end texts in that token.",
                count,
                len(ids),
                pad,
            )
