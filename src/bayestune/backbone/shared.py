"""One copy of a backbone's weights under several models that were trained on it."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain

import torch

from bayestune.backbone.assemble import SCORE, Base, load_base
from bayestune.backbone.identity import identity
from bayestune.backbone.source import Source


class SharedBases:
    """Backbones by what they are: the first that is asked for is loaded, later ones share it.

    Adapters go around frozen layers and never into their weights, so that models can stand on the
    same tensors, each with its own layers, adapters and head around them.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, torch.dtype, str], tuple[Base, str]] = {}

    def load(
        self,
        source: Source,
        classes: int,
        device: torch.device,
        dtype: torch.dtype,
        quantize: str = "none",
    ) -> tuple[Base, Source]:
        """Return a backbone of one's own modules over shared weights, and its source.

        Args:
            source: where from.
            classes: K.
            device: where to.
            dtype: of the weights.
            quantize: as `load_base`.

        Raises:
            ModelError: as `load_base`.
        """
        key = (source.fingerprint, str(device), dtype, quantize)
        if key not in self._held:
            base = load_base(source, classes, device, dtype, quantize)
            self._held[key] = base, identity(base.transformer)
        base, weights = self._held[key]
        return twin(base, classes), replace(source, weights=weights)


def twin(base: Base, classes: int) -> Base:
    """Return another backbone over the same tensors.

    Args:
        base: as it was loaded, not adapted.
        classes: K of the other one.
    """
    shared = {id(t): t for t in chain(base.model.parameters(), base.model.buffers())}
    model = copy.deepcopy(base.model, shared)
    if base.model is base.transformer:
        return replace(base, model=model, transformer=model)
    model.config.num_labels = classes
    # The classifier has as many rows as the first model has classes; a head takes its place.
    setattr(model, SCORE, torch.nn.Identity())
    return replace(base, model=model, transformer=getattr(model, model.base_model_prefix))
