"""What a BayesTrainer cannot do, said before it starts."""

from __future__ import annotations

import logging
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from torch import nn

from bayestune.errors import ConfigError, StoreError
from bayestune.hf.pooled import head_of
from bayestune.optim import StiefelAdam
from bayestune.weights import distribution_of

logger = logging.getLogger(__name__)

#: Metrics of which less is better, whatever transformers makes of their names.
_LESS = ("nll", "ece", "brier")


def require_arguments(args: Any, trainer: Any) -> None:
    """Refuse training arguments under which the objective would be another one, or none.

    Raises:
        ConfigError: naming the argument.
    """
    objective = "the objective of a BayesTrainer is the evidence lower bound"
    parallel = "use one process per GPU (torchrun, accelerate launch), or one GPU"
    half = "a posterior needs float32; load the model with dtype=torch.bfloat16 instead"
    split = "a last layer cut into pieces is not supported; use plain data parallelism"
    wrong = {
        "label_smoothing_factor": (args.label_smoothing_factor != 0, objective),
        "compute_loss_func": (trainer.compute_loss_func is not None, objective),
        "torch_compile": (args.torch_compile, "features are read by hooks, which it drops"),
        "fp16_full_eval": (args.fp16_full_eval, half),
        "bf16_full_eval": (args.bf16_full_eval, half),
        "n_gpu": (args.n_gpu > 1, parallel),
        "deepspeed": (trainer.is_deepspeed_enabled, split),
        "fsdp": (trainer.is_fsdp_enabled, split),
        "ddp_find_unused_parameters": (
            args.ddp_find_unused_parameters is False,
            "the head is reduced apart from the rest; leave it unset",
        ),
    }
    for name, (given, why) in wrong.items():
        if given:
            raise ConfigError(f"BayesTrainer does not take {name}: {why}.")


def require_model(model: nn.Module) -> None:
    """Refuse models without a classifier's head, and adapters whose weights are random.

    A distribution over adapter weights is no part of the model that a Trainer saves and resumes,
    and a prediction with it draws: `bayestune.fit` keeps it, steps it and draws from it.

    Raises:
        ModelError: the model has no Bayesian last layer.
        ConfigError: it is one of numbers, or the adapter's weights are random.
    """
    if head_of(model).noise is not None:
        raise ConfigError(
            "The head is one of numbers; BayesTrainer trains classifiers. Use bayestune.fit."
        )
    weights = distribution_of(model)
    if weights is not None:
        raise ConfigError(
            f"The adapter's weights are random ({type(weights).__name__}): a Trainer would neither "
            "save nor draw them. Train this method with bayestune.fit, or adapt with PolarConfig "
            "or LoraConfig."
        )


def require_optimizer(optimizer: Any) -> StiefelAdam:
    """Return the optimiser, which must know factors and heads by their groups.

    Raises:
        ConfigError: it does not.
    """
    groups = getattr(optimizer, "param_groups", ())
    named = any(str(group.get("name")).startswith("head") for group in groups)
    if not isinstance(optimizer, StiefelAdam) or not named:
        raise ConfigError(
            f"BayesTrainer needs the optimiser of bayestune, not {type(optimizer).__name__}: "
            "orthonormal factors and the head have steps of their own. Give "
            "optimizer_cls_and_kwargs=bt.optim.for_trainer(lr=2e-3)."
        )
    return optimizer


def rows_of(dataset: Any, given: int | None) -> int:
    """Return N, the number of training rows.

    Raises:
        ConfigError: it is not known.
    """
    if given is not None:
        if given < 1:
            raise ConfigError(f"train_rows is {given}; expected the number of training rows.")
        return given
    try:
        return len(cast(Sized, dataset))
    except TypeError:
        raise ConfigError(
            f"The number of training rows N is unknown, because {type(dataset).__name__} has no "
            "length, and the KL weighs κ/N: give train_rows=N to the trainer."
        ) from None


def settle_metric(args: Any) -> None:
    """See to it that the best NLL, ECE or Brier score is the smallest.

    transformers takes every metric for better when greater, unless its name ends with "loss".
    """
    name = args.metric_for_best_model or ""
    if name.split("_")[-1] in _LESS and args.greater_is_better:
        logger.info("of metric_for_best_model=%s the smallest is the best", name)
        args.greater_is_better = False


def require_posterior(folder: Path, head: nn.Module) -> None:
    """Refuse a checkpoint without the posterior, which would be left as it starts.

    Raises:
        StoreError: a tensor of the head is not there.
    """
    for file in (folder / "adapter_model.safetensors", folder / "model.safetensors"):
        if not file.is_file():
            continue
        with safe_open(file, framework="pt") as tensors:
            stored = {name.rsplit(".", 1)[-1] for name in tensors.keys()}  # noqa: SIM118
        missing = sorted(set(head.state_dict()) - stored)
        if missing:
            raise StoreError(
                f"{file} has no {missing[0]} of the last layer: it was not saved by a BayesTrainer "
                "with this head. Train anew, or give the head it was trained with."
            )


def require_schedule(schedule: str, kl: float, head_steps: int) -> None:
    """Refuse options of the trainer that make no sense.

    Raises:
        ConfigError: naming the option.
    """
    if schedule not in ("alternate", "joint"):
        raise ConfigError(f"schedule is {schedule!r}; expected alternate or joint.")
    if not kl >= 0:
        raise ConfigError(f"kl is {kl!r}; expected 0 or more.")
    if head_steps < 1:
        raise ConfigError(f"head_steps is {head_steps!r}; expected at least 1.")
