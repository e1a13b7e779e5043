"""What several processes can train together, said before they start."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from bayestune.config import to_mapping
from bayestune.errors import ConfigError
from bayestune.model import BayesModel
from bayestune.processes import Processes
from bayestune.weights import WeightDistribution


def require_together(model: BayesModel, processes: Processes) -> None:
    """Refuse what would not be the training of one process, cut into shares.

    Raises:
        ConfigError: naming the key, or the engine that was asked to cut the parameters.
    """
    if processes.alone:
        return
    for engine in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"accelerate was started with {engine}, which would flatten parameters; factors "
                "with orthonormal columns have to stay matrices. Start it as MULTI_GPU or "
                "MULTI_CPU, or use bayestune train --launch."
            )
    recipe, weights = model.recipe, model.backbone.weights
    if recipe.adapter.dropout > 0:
        raise ConfigError(
            f"adapter.dropout={recipe.adapter.dropout:g} draws a mask for each row, which several "
            "processes would draw otherwise than one; set it to 0, or train with one process."
        )
    if weights is not None and type(weights).train_forward is not WeightDistribution.train_forward:
        raise ConfigError(
            f"The method {recipe.method!r} draws adapter weights anew for every pass, which "
            "several processes would draw otherwise than one; train it with one process."
        )
    if model.backbone.sharded and recipe.cache.prefix == "on":
        raise ConfigError(
            "cache.prefix=on: processes that share the layers of a backbone run the same passes, "
            "and a cache would save some of them theirs; set it to auto or off, or use ddp."
        )
    if recipe.train.nonfinite == "skip":
        raise ConfigError(
            "train.nonfinite=skip: a process that leaves out a batch would lose step with the "
            "others; train with one process, or let it stop."
        )
    if recipe.train.batch_size < processes.size:
        raise ConfigError(
            f"train.batch_size is {recipe.train.batch_size}, that of all processes together; "
            f"{processes.size} of them need at least {processes.size}."
        )


def require_same(model: BayesModel, facts: Mapping[str, Any], processes: Processes) -> None:
    """Refuse processes that were given different recipes or rows.

    Raises:
        ConfigError: on all of them.
    """
    text = json.dumps([to_mapping(model.recipe), dict(facts)], sort_keys=True, default=str)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    if not processes.agree(number):
        raise ConfigError(
            "The processes of this training were given different recipes or rows; start all of "
            "them with one command, and with the same files on every machine."
        )
