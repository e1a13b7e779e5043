"""Recipes: what a run is made of, read from YAML and overrides and checked by name and type."""

from __future__ import annotations

from bayestune.config.load import (
    ALIASES,
    from_mapping,
    keys,
    merge,
    nest,
    nest_sections,
    parse_overrides,
    read_yaml,
    to_mapping,
)
from bayestune.config.recipe import (
    AdapterConfig,
    CacheConfig,
    FinalizeConfig,
    HeadConfig,
    PredictConfig,
    PromptConfig,
    Recipe,
    TrainConfig,
)

__all__ = [
    "ALIASES",
    "AdapterConfig",
    "CacheConfig",
    "FinalizeConfig",
    "HeadConfig",
    "PredictConfig",
    "PromptConfig",
    "Recipe",
    "TrainConfig",
    "from_mapping",
    "keys",
    "merge",
    "nest",
    "nest_sections",
    "parse_overrides",
    "read_yaml",
    "to_mapping",
]
