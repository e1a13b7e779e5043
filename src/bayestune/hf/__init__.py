"""At home in transformers: a Trainer that learns adapters and a Bayesian last layer together."""

from __future__ import annotations

from bayestune.hf.adopt import to_bayes_model
from bayestune.hf.metrics import compute_metrics
from bayestune.hf.trainer import BayesTrainer, BayesTrainerMixin

__all__ = ["BayesTrainer", "BayesTrainerMixin", "compute_metrics", "to_bayes_model"]
