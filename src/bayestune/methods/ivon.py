"""IVON: variational learning of all that is trained, at the cost of Adam.

    q = Π N(m_i, 1/(λ(h_i + δ))),   λ = N/κ,   λδ = 1/σ_p²

One draw of LoRA's A and B and of the head a step; mean and variance follow from its gradient
(`optim.Ivon`). With ``weights.ess=auto`` q is the variational posterior, its divergence weighing κ.
The published LoRA runs use λ from 1e6 to 1e8, a thousand times the examples: a posterior that is
colder by as much, with ``weights.ess``. Noise on B makes ΔW = s B A random at the very start, where
it would be zero otherwise; that is in the method, and ``weights.init_std`` says how much.

Source: Shen et al. 2024 (arXiv 2402.17641); on LoRA Cong et al. 2024 (arXiv 2411.04421).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.methods import parts as pieces
from bayestune.methods.checks import (
    require_classes,
    require_lora,
    require_point_head,
    require_positive,
)
from bayestune.methods.contract import Parts
from bayestune.weights import IvonWeights, head_site, sites


@dataclass(frozen=True)
class Options:
    """Options of IVON."""

    prior_std: float = 0.1  # σ_p of the adapter's weights
    init_std: float = 0.01  # their σ at the start
    beta2: float = 0.999  # the curvature forgets its start within some 1/(1 − β₂) steps
    clip: float = 1e-3  # share of the first σ at which a preconditioned gradient has its full step
    ess: float | Literal["auto"] = "auto"  # λ; auto: N/κ

    def __post_init__(self) -> None:
        require_positive(self, "prior_std", "init_std", "clip")
        if self.init_std >= self.prior_std:
            raise ConfigError(
                f"weights.init_std is {self.init_std}; expected less than weights.prior_std "
                f"({self.prior_std}), which is what remains without any data."
            )
        if not 0 <= self.beta2 < 1:
            raise ConfigError(f"weights.beta2 is {self.beta2}; expected a number in [0, 1).")
        if not isinstance(self.ess, str):
            require_positive(self, "ess")


def check(recipe: Recipe) -> None:
    """Refuse what is not LoRA with a linear head, and what would undo the optimiser's mathematics.

    Raises:
        ConfigError: naming the key.
    """
    require_lora(recipe)
    require_point_head(recipe)
    train, head = recipe.train, recipe.head
    if train.kl == 0:
        raise ConfigError("train.kl=0 leaves ivon without a posterior; expected above 0.")
    if recipe.weights["ess"] != "auto" and isinstance(train.kl, str):
        raise ConfigError(
            "weights.ess as a number is all that κ decides: give a number for train.kl, too."
        )
    if train.schedule != "joint":
        raise ConfigError("ivon steps head and adapter on one draw: use train.schedule=joint.")
    if train.clip > 0:
        raise ConfigError(
            "train.clip would shrink the curvature that ivon reads from the gradient: use "
            "train.clip=0; weights.clip bounds the step."
        )
    if train.weight_decay > 0:
        raise ConfigError(
            "ivon's weight decay is its prior: use train.weight_decay=0 and weights.prior_std."
        )
    if head.init_scale**2 >= 2 * head.prior_scale:
        raise ConfigError(
            f"head.init_scale={head.init_scale} is no less than the prior's deviation of a logit, "
            f"√(2 · head.prior_scale): lower it."
        )


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base and put the Gaussian over all that is trained."""
    require_classes(recipe, task)
    backbone, head = pieces.build(base, source, tokenizer, task, recipe)
    options = Options(**recipe.weights)
    backbone.weights = IvonWeights(
        sites(backbone.peft_model, "A", "B") | head_site(head),
        prior_std=options.prior_std,
        init_std=options.init_std,
        prior_scale=recipe.head.prior_scale,
        init_scale=recipe.head.init_scale,
        beta2=options.beta2,
        clip=options.clip,
        ess=None if isinstance(options.ess, str) else options.ess,
    )
    return Parts(backbone, head)


METHOD = pieces.compose(
    "ivon",
    "Gaussian over LoRA and head, learnt by its optimiser; S passes of the adapted layers",
    "arXiv 2411.04421",
    pieces.POINT,
    {"train": {"lr": 1e-3, "kl": "auto", "schedule": "joint", "clip": 0.0}},
    build=build,
    check=check,
    options=Options,
)
