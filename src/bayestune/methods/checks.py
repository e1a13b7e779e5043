"""Checks that options of methods share."""

from __future__ import annotations

from typing import Any

from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError


def require_positive(options: Any, *keys: str) -> None:
    """Raise ConfigError unless the named options are above 0."""
    for key in keys:
        if not getattr(options, key) > 0:
            raise ConfigError(f"weights.{key} is {getattr(options, key)}; expected above 0.")


def require_lora(recipe: Recipe) -> None:
    """Raise ConfigError for an adapter other than LoRA."""
    if recipe.adapter.kind != "lora":
        raise ConfigError(
            f"{recipe.method} is about LoRA's factors; adapter.kind={recipe.adapter.kind} has none."
        )


def require_plain(recipe: Recipe) -> None:
    """Raise ConfigError for an adapter whose update depends on the token."""
    if recipe.adapter.kind not in ("lora", "polar"):
        raise ConfigError(
            f"{recipe.method} is about LoRA's factors or PoLAR's core; adapter.kind="
            f"{recipe.adapter.kind} has more."
        )


def require_linear(recipe: Recipe) -> None:
    """Raise ConfigError for a head other than a point."""
    if recipe.head.kind != "linear":
        raise ConfigError(
            f"{recipe.method} has a point for a head: use head.kind=linear, not {recipe.head.kind}."
        )


def require_point_head(recipe: Recipe) -> None:
    """Raise ConfigError for a head that is random itself, over random adapter weights."""
    require_linear(recipe)
    if recipe.finalize.refresh != "none":
        raise ConfigError(
            f"{recipe.method} averages over the adapter's weights under a point head: use "
            f"finalize.refresh=none, not {recipe.finalize.refresh}."
        )


def require_lora_under_point(recipe: Recipe) -> None:
    """Raise ConfigError for anything but LoRA under a point head."""
    require_lora(recipe)
    require_point_head(recipe)


def require_plain_under_point(recipe: Recipe) -> None:
    """Raise ConfigError for anything but LoRA or PoLAR under a point head."""
    require_plain(recipe)
    require_point_head(recipe)


def require_classes(recipe: Recipe, task: Task) -> None:
    """Raise ConfigError for a regression."""
    if task.kind == "regression":
        raise ConfigError(f"{recipe.method} predicts classes; for numbers use polar_vbll or mle.")
