"""C-LoRA: between the factors of LoRA stands a Gaussian matrix that every token has of its own.

    y = W₀ x + s · B E A x,   q(E | token) = N(mat(e), diag σ²),   p(E) = N(I, β²)
    L = mean NLL under one draw for every token + κ/N · mean over texts of Σ_tokens KL

The mean starts as the identity, which is plain LoRA, and the prior is centred there: at the prior's
own mean the adapter is the LoRA that B and A say, and β is a deviation relative to it. A prior
around zero charges r / (2β²) nats a token for being any LoRA at all, which E can only escape by
shrinking while B, which nothing charges, grows. The published code differs in three named ways:
``weights.prior=zero``, ``weights.kl=published`` (practically none) and ``weights.init_std=0.25``.

Source: C-LoRA (arXiv 2505.17773).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bayestune.backbone import Base, Source
from bayestune.config import Recipe
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.methods import parts
from bayestune.methods.checks import require_point_head, require_positive
from bayestune.methods.contract import Parts
from bayestune.weights import ContextualWeights, sites


@dataclass(frozen=True)
class Options:
    """Options of C-LoRA."""

    prior_std: float = 0.2  # β, around a mean whose diagonal is 1
    prior: Literal["identity", "zero"] = "identity"  # the prior's mean
    init_std: float = 0.05  # σ at the start
    kl: Literal["text", "published"] = "text"  # published: times 10⁻⁶ over the adapted layers
    rate: float = 1e-3  # learning rate of the deviations' part of the network

    def __post_init__(self) -> None:
        require_positive(self, "prior_std", "rate")
        if not 0 < self.init_std < 1:
            raise ConfigError(f"weights.init_std is {self.init_std}; expected between 0 and 1.")


def check(recipe: Recipe) -> None:
    """Refuse what is not a contextual LoRA under a point head."""
    if recipe.adapter.kind != "contextual":
        raise ConfigError(
            f"c_lora is about the matrix of a contextual LoRA; adapter.kind is "
            f"{recipe.adapter.kind}, expected contextual."
        )
    require_point_head(recipe)


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Adapt the base with contextual LoRA and make its matrices random."""
    made = parts.build(base, source, tokenizer, task, recipe)
    where = sites(made.backbone.peft_model, "context")
    made.backbone.weights = ContextualWeights(where, **recipe.weights)
    return made


METHOD = parts.compose(
    "c_lora",
    "LoRA with a Gaussian matrix of every token's own inside; S passes of the adapted layers",
    "arXiv 2505.17773",
    parts.POINT,
    {"adapter": {"kind": "contextual"}, "train": {"kl": 1.0}},
    build=build,
    check=check,
    options=Options,
)
