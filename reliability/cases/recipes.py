"""Recipes: YAML files and ``key=value``; what is accepted comes back as it was written."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from bayestune.cli.recipe import layers, resolved
from bayestune.config import from_mapping, keys, parse_overrides, to_mapping
from bayestune.recipes import names, shipped
from reliability.cases.damage import ODD, TEXTS, respell, spoil, text
from reliability.cases.harness import must
from reliability.cases.world import World

#: Small files that a careless reader makes much of, or runs.
_BOMBS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "method: *i\n",
    "method: &a [*a]\n",
    "adapter: &a\n  rank: *a\n",
    "adapter: &a {kind: *a}\n",
    "weights: &a {x: *a}\n",
    "<<: &a {<<: *a}\n",
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "!!python/object/apply:os.system [touch pwned]\n",
    "!!python/name:os.system\n",
    "train: {lr: !!float 1e99999}\n",
    "seed: " + "9" * 5000 + "\n",
    "seed: 1:59:59:59:59\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "2024-02-31: x\n",
    "train:\n\tlr: 1\n",
    "a: 1\n---\nb: 2\n",
    "\ufeffmethod: mle\n",
    "weights: {1: 2}\n",
    "weights: {a: {b: [{c: d}]}}\n",
)


def checked(recipe: Any) -> None:
    """Raise unless a recipe survives being written and read."""
    written = yaml.safe_dump(to_mapping(recipe), sort_keys=False)  # as a run's folder has it
    must(from_mapping(yaml.safe_load(written)) == recipe, "a recipe is another one when read again")


class Yaml:
    """Recipe files."""

    name, title = "yaml", "recipes"

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.file = folder, folder / "recipe.yaml"
        self.shipped = [shipped(name).read_bytes() for name in names()]

    def case(self, rng: random.Random) -> bool:
        """Read a recipe as ``bayestune train --config`` does."""
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.choice(_BOMBS).encode()
        elif kind == 1:
            whole = yaml.safe_load(rng.choice(self.shipped))
            data = yaml.safe_dump(respell(rng, whole, _yaml_value)).encode()
        else:
            data = spoil(rng, rng.choice(self.shipped))
        self.file.write_bytes(data)
        recipe = resolved(layers(str(self.file), {}, ()))
        must(not (self.folder / "pwned").exists(), "a recipe ran a command")
        checked(recipe)
        return True


class Overrides:
    """``key=value`` pairs."""

    name, title = "overrides", "KEY=VALUE changes"

    def __init__(self, folder: Path, world: World) -> None:
        self.keys = [*keys(), "rank", "lr", "r", "base", "weights.samples", "nothing", "", "train"]

    def case(self, rng: random.Random) -> bool:
        """Read pairs as the command line does."""
        pairs = [self._pair(rng) for _ in range(rng.randint(1, 3))]
        nested = parse_overrides(pairs)
        must(isinstance(nested, dict), "no mapping")
        checked(resolved(layers(None, {}, pairs)))
        return True

    def _pair(self, rng: random.Random) -> str:
        key = rng.choice(self.keys)
        value = rng.choice((*TEXTS, *map(str, ODD), *_BOMBS, *_VALUES, text(rng)))
        pair = f"{key}{rng.choice(('=', '=', '=', '==', ' = ', ''))}{value}"
        if rng.random() < 0.3:
            pair = spoil(rng, pair.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        return pair


_VALUES = (
    "1",
    "8",
    "0.1",
    "1e-3",
    "auto",
    "none",
    "null",
    "~",
    "off",
    "[a, b]",
    "all",
    "top:2",
    "mle",
)


def _yaml_value(rng: random.Random) -> Any:
    found = rng.choice(ODD)
    return "x" if isinstance(found, str) and not found.isprintable() else found
