"""Whether what a recipe asks for can be had: asked before a training, which would be lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from torch import nn

from bayestune.config import FinalizeConfig, Recipe
from bayestune.errors import ConfigError
from bayestune.finalize.refresh import BLOCK_LIMIT, REFRESHES, Head, form_of
from bayestune.head import GaussianHead, GenerativeHead, LinearHead, OrdinalHead
from bayestune.weights import WeightDistribution


def require_possible(
    recipe: Recipe, head: nn.Module, rows: int, weights: WeightDistribution | None = None
) -> None:
    """Raise ConfigError where a recipe asks for what its head cannot have.

    Args:
        recipe: its sections ``head``, ``train``, ``finalize`` and ``predict``.
        head: as it is trained.
        rows: how many training rows there are.
        weights: what is random of the adapter.
    """
    _require_effects(recipe, chain(_needs(recipe, head), _needs_of(weights, recipe, head)))
    config, still = recipe.finalize, recipe.train.kl == 0
    if isinstance(head, OrdinalHead) and head.point != still:
        raise ConfigError(
            f"train.kl is {recipe.train.kl!r} and the ordinal head was built with"
            f"{'' if head.point else 'out'} train.kl=0, which makes it a point: build it anew."
        )
    if isinstance(head, GenerativeHead) and still and config.refresh == "none":
        raise ConfigError(
            "train.kl=0 trains a posterior without its prior, and finalize.refresh=none would keep "
            "it: with head.joint take finalize.refresh=auto (the exact posterior), or a KL."
        )
    if recipe.head.kind == "generative":
        require_generative(config)
    elif isinstance(head, GaussianHead | LinearHead) and head.noise is not None:
        require_numbers(config)
    elif not head.point or config.refresh in REFRESHES:
        _require_classes(recipe, head, rows)  # pyright: ignore[reportArgumentType]


def _require_effects(recipe: Recipe, needs: Iterable[tuple[str, bool, str]]) -> None:
    """Raise ConfigError where an option was set that nothing would look at."""
    for key, applies, why in needs:
        section, name = key.split(".")
        value, default = (getattr(getattr(r, section), name) for r in (recipe, Recipe()))
        if not applies and value != default:
            raise ConfigError(f"{key}={str(value).lower()} would do nothing: {why}.")


def _needs(recipe: Recipe, head: nn.Module) -> Iterator[tuple[str, bool, str]]:
    """Yield options, whether they apply to what a recipe trains and delivers, and why not."""
    config, generative = recipe.finalize, recipe.head.kind == "generative"
    for key in ("head.joint", "head.axes"):
        yield key, generative, "it is about head.kind=generative"
    gaussian = isinstance(head, GaussianHead)
    yield "head.bound", gaussian, "only a Gaussian head over classes is trained by one of them"
    rows = gaussian or (isinstance(head, OrdinalHead) and not head.point)
    yield "head.covariance", rows, "no Gaussian over weights is trained (head.kind, train.kl)"
    if generative:
        why = "with head.kind=generative the posterior is exact"
    elif config.refresh == "none":
        why = "finalize.refresh=none brings no covariance"
    else:
        why = "a point gets a covariance where finalize.refresh names one, and not by auto"
    fresh = not generative and (
        config.refresh in REFRESHES or (config.refresh == "auto" and not head.point)
    )
    for key in ("finalize.refit", "finalize.precision", "finalize.groups"):
        yield key, fresh, why
    yield "finalize.scale", not generative, why
    scaled = not head.point or config.refresh in REFRESHES or config.scale == 1
    yield "finalize.scale", scaled, "a point has no deviations to scale"
    ascent = config.refit == "ascent"
    yield "finalize.precision", not ascent, "finalize.refit=ascent keeps the prior of the training"


def require_predictive(
    recipe: Recipe, head: nn.Module, weights: WeightDistribution | None, classes: int
) -> None:
    """Raise ConfigError where Gaussian logits would be integrated as they cannot be.

    Args:
        recipe: of the model.
        head: its last layer.
        weights: what is random of its adapter.
        classes: K.
    """
    config = recipe.predict
    drawn = weights is not None and weights.is_drawn
    point = isinstance(head, LinearHead) and recipe.finalize.refresh == "none"
    if config.samples == 1 and not drawn and not (point and weights is None):
        raise ConfigError("predict.samples=1 integrates nothing: give 0 (the mean) or 2 and more.")
    coupled = weights is not None and weights.is_random and not drawn
    if coupled and config.predictive == "exact" and classes > 2:
        raise ConfigError(
            f"predict.predictive=exact integrates independent logits, and {recipe.method} couples "
            f"those of {classes} classes; take predict.predictive=sample."
        )


def _needs_of(
    weights: WeightDistribution | None, recipe: Recipe, head: nn.Module
) -> Iterator[tuple[str, bool, str]]:
    """Yield what depends on the distributions over adapter and head, as `_needs` does."""
    drawn = weights is not None and weights.is_drawn
    moments = weights is not None and weights.is_random and not drawn
    fresh = isinstance(head, LinearHead) and recipe.finalize.refresh in REFRESHES
    gaussian = fresh or (isinstance(head, GaussianHead) and recipe.head.kind != "generative")
    why = "probabilities of draws are averaged" if drawn else "no logits are Gaussian"
    numbers = getattr(head, "noise", None) is not None
    yield "predict.predictive", moments or (gaussian and not numbers), why
    divergence = not head.point or (weights is not None and weights.has_kl)
    yield "train.kl", divergence or recipe.train.kl == 0, "nothing random is trained"


def require_generative(config: FinalizeConfig) -> None:
    """Raise ConfigError where the refresh is not one of a generative head."""
    if config.refresh not in ("auto", "none"):
        raise ConfigError(
            f"finalize.refresh={config.refresh} is the covariance of a linear layer; with "
            "head.kind=generative it is auto (the exact posterior) or none."
        )


def require_numbers(config: FinalizeConfig) -> None:
    """Raise ConfigError where what only classes have is asked for numbers."""
    if config.refit == "ascent" or config.groups != "shared":
        raise ConfigError(
            "finalize.refit=ascent and finalize.groups are about classes: a number's refreshed "
            "posterior is exact already, with one precision."
        )


def require_groups(config: FinalizeConfig, head: Head | LinearHead) -> None:
    """Raise ConfigError where precisions of groups would go unused, or their blocks be too large.

    Args:
        config: how the precisions are chosen and whether the mean moves.
        head: gives the shape.
    """
    if config.groups == "shared":
        return
    if config.precision != "evidence" or config.refit != "mode":
        raise ConfigError(
            f"finalize.groups={config.groups} gives precisions to the mode that the evidence "
            "finds: it goes with finalize.precision=evidence and finalize.refit=mode."
        )
    K, D = head.weight.shape
    if config.refresh == "auto" and K * D * D > BLOCK_LIMIT:
        raise ConfigError(
            f"finalize.groups={config.groups} keeps a dense block of {D} × {D} for each of {K} "
            f"classes, {4e-9 * K * D * D:.1f} GB; finalize.refresh=block asks for them all the "
            "same, finalize.groups=shared needs none."
        )


def _require_classes(recipe: Recipe, head: Head | LinearHead, rows: int) -> None:
    config, K = recipe.finalize, len(head.weight)
    require_groups(config, head)
    if config.refresh in REFRESHES:
        form_of(config.refresh, head, rows)
    if config.refresh in ("full", "kronecker") and K > 2 and recipe.predict.predictive == "exact":
        raise ConfigError(
            f"predict.predictive=exact integrates independent logits, and finalize.refresh="
            f"{config.refresh} couples those of {K} classes; take predict.predictive=sample."
        )
