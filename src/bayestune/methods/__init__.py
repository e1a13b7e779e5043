"""Methods by name. Adding one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from bayestune.config import Recipe, from_mapping, merge
from bayestune.errors import ConfigError, nearest
from bayestune.methods import (
    bayesian_lora,
    blob,
    c_lora,
    ensemble,
    ivon,
    laplace_lora,
    last_layer_laplace,
    lora_vbll,
    map,
    mc_dropout,
    mle,
    polar_blob,
    polar_laplace,
    polar_mle,
    polar_vbll,
    scalabl,
    swag,
    temperature,
    tfb,
)
from bayestune.methods.contract import Method, Parts, Terms
from bayestune.methods.parts import at_mean

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        polar_vbll,
        lora_vbll,
        mle,
        polar_mle,
        map,
        temperature,
        last_layer_laplace,
        mc_dropout,
        ensemble,
        blob,
        polar_blob,
        tfb,
        scalabl,
        laplace_lora,
        polar_laplace,
        swag,
        ivon,
        bayesian_lora,
        c_lora,
    )
}


def get(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ConfigError: if there is none, with the nearest one.
    """
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}.{nearest(name, METHODS)}")
    return METHODS[name]


def recipe(method: str, *layers: Mapping[str, Any]) -> Recipe:
    """Return a method's defaults with nested values laid over them, later ones winning.

    Raises:
        ConfigError: for an unknown method, key or a value of a wrong type.
    """
    return checked(from_mapping(merge(get(method).defaults, *layers, {"method": method})))


def checked(recipe: Recipe) -> Recipe:
    """Return a recipe with its method's own options complete.

    Raises:
        ConfigError: for an unknown method, an option that it does not have, a wrong value or what
            the method does not do.
    """
    method = get(recipe.method)
    options = from_mapping(recipe.weights, method.options, "weights.")
    recipe = replace(recipe, weights=asdict(options))
    method.check(recipe)
    return recipe


__all__ = ["METHODS", "Method", "Parts", "Terms", "at_mean", "checked", "get", "recipe"]
