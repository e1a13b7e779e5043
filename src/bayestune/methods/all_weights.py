"""What methods share whose posterior is over all that is trained: LoRA's A and B, and the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.finalize import REFRESHES
from bayestune.methods import parts
from bayestune.methods.contract import Parts
from bayestune.weights import Site, sites

#: The name of the head's site.
HEAD = "head"


def check(recipe: Recipe) -> None:
    """Refuse what is not LoRA with a linear head.

    Raises:
        ConfigError: for PoLAR, whose frames are no points of a vector space, for another head and
            for a refresh, which would put another distribution over the head.
    """
    name = recipe.method
    if recipe.adapter.kind != "lora":
        raise ConfigError(
            f"adapter.kind={recipe.adapter.kind}: {name} puts a Gaussian over all that is trained, "
            "and PoLAR's orthonormal frames cannot be Gaussian; use adapter.kind=lora (or blob, "
            "which puts one over PoLAR's core)."
        )
    if recipe.head.kind != "linear":
        raise ConfigError(
            f"head.kind={recipe.head.kind}: {name} brings its own distribution over the head's "
            "weights; use head.kind=linear."
        )
    if recipe.finalize.refresh in REFRESHES:
        raise ConfigError(
            f"finalize.refresh={recipe.finalize.refresh} would replace the distribution of {name} "
            "over the head; use none."
        )


def build(
    base: Base, source: Source, tokenizer: object, task: Task, recipe: Recipe
) -> tuple[Parts, dict[str, Site]]:
    """Adapt the base; return what was built and all its sites.

    Raises:
        ConfigError: if the task is a regression, whose noise would be left out.
    """
    if task.kind == "regression":
        raise ConfigError(f"{recipe.method} predicts classes; for numbers use polar_vbll or mle.")
    backbone, head = parts.build(base, source, tokenizer, task, recipe)
    head = head.to(backbone.device)
    where = sites(backbone.peft_model, "A", "B")
    where[HEAD] = Site(head, head.weight)  # pyright: ignore[reportArgumentType]
    return Parts(backbone, head), where


def deviations(std: Callable[[str], Tensor], where: Iterable[str]) -> dict[str, float]:
    """Return the root mean square deviation of the weights of the adapter, and of the head."""
    squares: dict[str, list[Tensor]] = {"adapter": [], HEAD: []}
    for name in where:
        squares[HEAD if name == HEAD else "adapter"].append(std(name).detach().square().flatten())
    return {name: float(torch.cat(each).mean().sqrt()) for name, each in squares.items()}
