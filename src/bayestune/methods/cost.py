"""What a method costs beside LoRA, counted on a model without its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from bayestune.backbone import Backbone, Source, outline
from bayestune.config import Recipe
from bayestune.data import LabelSet, Task
from bayestune.finalize import FAMILY_OF
from bayestune.head.families import FAMILIES
from bayestune.methods.contract import Method


@dataclass(frozen=True)
class Cost:
    """Numbers of one method on one model.

    Attributes:
        trained: numbers that training moves, head included.
        stored: numbers kept beside adapter and mean head: what defines the distribution, as it
            is trained or, of a point head, as its refresh delivers it.
        passes: what a prediction runs.
    """

    trained: int
    stored: int
    passes: str


def cost(method: Method, recipe: Recipe, source: Source, classes: int = 4) -> Cost:
    """Count what a method trains and stores on a model.

    Args:
        method: the method.
        recipe: its recipe; which layers are adapted, and at what rank.
        source: the model; its configuration is all that is read.
        classes: K.

    Raises:
        ModelError: if the model has no usable configuration.
    """
    names = tuple(str(k) for k in range(classes))
    task = Task("classification", (), LabelSet(names, names))
    made = method.build(outline(source, classes), source, None, task, recipe)
    found = counted(made.backbone, made.head)
    if made.head.point and recipe.finalize.refresh in FAMILY_OF:
        family = FAMILIES[FAMILY_OF[recipe.finalize.refresh]]
        shapes = family.shapes(classes, made.head.in_features, 0).values()  # pyright: ignore
        return replace(found, stored=found.stored + sum(math.prod(shape) for shape in shapes))
    return found


def counted(backbone: Backbone, head: nn.Module) -> Cost:
    """Count what a model trains and stores."""
    weights = backbone.weights
    seen = {id(p): p for part in (backbone, head) for p in part.parameters()}
    kept = {} if weights is None else weights.tensors()
    kept |= {f"head.{k}": v for k, v in head.posterior_tensors().items() if v.numel() > 1}  # pyright: ignore
    return Cost(
        trained=sum(p.numel() for p in seen.values() if p.requires_grad),
        stored=sum(t.numel() for t in kept.values()),
        passes="1" if weights is None else weights.passes,
    )
