"""The pieces that methods compose: model, objective, finaliser, predictor."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.backbone import Base, Source, adapt, output_rows
from bayestune.config import PredictConfig, Recipe
from bayestune.data import Example, Task, label_token_ids, render
from bayestune.errors import ConfigError
from bayestune.finalize import (
    REFRESHES,
    Features,
    finish_regression,
    generative_head,
    given_temperature,
    predictive_at,
    probs_of_mean,
    regression_predictive,
    require_rows,
    rows_at_once,
    search_temperature,
    select,
    to_generative,
)
from bayestune.head import GaussianHead, GenerativeHead, LinearHead, Noise, OrdinalHead
from bayestune.methods.contract import Parts, Terms
from bayestune.posterior.predictive import Predictive
from bayestune.posterior.regression import RegressionPredictive
from bayestune.progress import Progress, silent


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Make the recipe's head, put it into the model and adapt the model around it."""
    head = make_head(base, source, tokenizer, task, recipe)
    if recipe.head.kind in ("generative", "ordinal"):
        # No bias-free linear score says what these say: better no classifier for stock PEFT.
        base = replace(base, model=base.transformer)
    return Parts(*adapt(base, head, recipe.adapter, recipe.head))


def make_head(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> nn.Module:
    """Return the head of a recipe; answer letters start from the LM head's own rows.

    Raises:
        ConfigError: if pretrained rows are asked for where the classes are not answer letters.
    """
    letters = task.kind == "choice" and base.decoder
    prior = recipe.head.prior
    if prior == "auto":
        prior = "pretrained" if letters else "zero"
    rows: Tensor | None = None
    if prior == "pretrained":
        if not letters:
            raise ConfigError(
                "head.prior=pretrained needs a decoder and a multiple-choice task, whose classes "
                "are answer letters of the vocabulary; use head.prior=zero."
            )
        names = list(task.labels)
        example = Example(id=0, question="?", choices=tuple(names))
        prompt = str(render(example, recipe.prompt, decoder=True, tokenizer=tokenizer))
        rows = output_rows(source, base, label_token_ids(tokenizer, prompt, names))
    kind, noise = recipe.head.kind, _make_noise(base, task, recipe)
    common: dict[str, Any] = {"in_features": base.width, "num_classes": task.outputs}
    if kind == "generative":
        if recipe.head.joint:
            return generative_head(recipe, **common)
        kind = "linear" if recipe.train.kl == 0 else "gaussian"  # until training has ended
    if kind == "linear":
        return LinearHead(**common, rows=rows, noise=noise)
    common |= {
        "prior_scale": recipe.head.prior_scale,
        "init_scale": recipe.head.init_scale,
        "covariance": recipe.head.covariance,
        "columns": recipe.head.columns,
        "learn_prior": recipe.head.learn_prior,
    }
    if kind == "ordinal":
        _require_order(task)
        return OrdinalHead(**common, point=recipe.train.kl == 0)
    return GaussianHead(**common, prior=prior, rows=rows, bound=recipe.head.bound, noise=noise)


def _make_noise(base: Base, task: Task, recipe: Recipe) -> Noise | None:
    """Return what is around a predicted number; None for classes.

    Raises:
        ConfigError: if the recipe asks of one kind of task what only the other has.
    """
    config = recipe.head
    if task.kind == "regression":
        if config.kind not in ("gaussian", "linear"):
            raise ConfigError(
                f"head.kind={config.kind} is about classes; a number takes gaussian or linear."
            )
        if config.bound != "jensen":
            raise ConfigError(
                f"head.bound={config.bound} is about classes; a number's likelihood needs none."
            )
        return Noise(config.noise, in_features=base.width)
    if config.noise != "gaussian":
        raise ConfigError(
            f"head.noise={config.noise} is about numbers; ask for regression (--task regression)."
        )
    return None


def loss(head: nn.Module, batch: Features) -> Terms:
    """Return ``−mean bound`` and the KL of the head; the KL of a point head is 0."""
    bound = head.bound(batch.phi, batch.labels, batch.mask, batch.weights)  # pyright: ignore
    return Terms(-bound.mean(), head.kl())  # pyright: ignore[reportCallIssue]


def finalize(
    head: nn.Module,
    fit: Features,
    held_out: Features | None,
    recipe: Recipe,
    progress: Progress = silent,
) -> tuple[nn.Module, dict[str, Any]]:
    """Choose the covariance and fold one temperature into the posterior, as the recipe says.

    A point that is to be refreshed becomes a Gaussian around the same mean; with
    ``head.kind=generative`` a generative head takes the place of the one that was trained. For
    numbers the temperature is a factor on the predictive standard deviations.
    """
    config = recipe.finalize
    report: dict[str, Any] = {"covariance": "none", "value": None}
    generative = recipe.head.kind == "generative"
    if head.point and config.refresh in REFRESHES and not generative:
        if isinstance(head, OrdinalHead):
            head.row = _gaussian_around(head.row, fit, head.prior_scale)  # pyright: ignore
        else:
            head = _gaussian_around(head, fit, recipe.head.prior_scale)  # pyright: ignore
    if generative:
        head, report = to_generative(head, fit, held_out, recipe)
        temperature = report["temperature"]
    elif isinstance(head, GaussianHead | LinearHead) and head.noise is not None:
        tried, chosen = finish_regression(head, fit, held_out, config, progress)
        temperature = chosen.temperature
        if isinstance(head, GaussianHead):
            report = {**vars(chosen), "family": head.family, "tried": [vars(c) for c in tried]}
        with torch.no_grad():
            std = float(head.noise.variance(fit.phi).mean().sqrt()) * temperature * fit.unit
        report["noise"] = {"kind": head.noise.kind, "std": std, "dof": head.noise.dof}
    elif isinstance(head, GaussianHead | OrdinalHead) and not head.point:
        tried, chosen = select(
            head, fit, held_out, config, recipe.predict, progress, kl=recipe.train.kl
        )
        family = head.row.family if isinstance(head, OrdinalHead) else head.family
        report = {**vars(chosen), "family": family, "tried": [vars(c) for c in tried]}
        temperature = chosen.temperature
    else:
        require_rows(config, held_out)
        temperature = given_temperature(config)
        if config.temperature == "auto" and held_out is not None:
            temperature, _ = search_temperature(probs_of_mean(head, held_out), held_out.labels)
    head.fold_temperature(temperature)  # pyright: ignore[reportCallIssue]
    report["temperature"] = temperature
    return head, report


def predict(
    head: nn.Module, phi: Tensor, config: PredictConfig, mask: Tensor | None = None
) -> Predictive | RegressionPredictive:
    """Return the predictive of features ``(B, D)``: a point for point heads, else averaged."""
    if isinstance(head, GaussianHead | LinearHead) and head.noise is not None:
        return regression_predictive(head, phi)
    with torch.no_grad():
        if isinstance(head, GenerativeHead):
            samples = None if config.samples == "auto" else int(config.samples)
            return head.predictive(phi, mask, samples)
        if isinstance(head, OrdinalHead):
            return head.predictive(phi)
        if isinstance(head, LinearHead):
            return predictive_at(head(phi), None, 1.0, mask, config)
        # Covariances (B, K, K) of all rows at once would not fit for many texts and classes.
        size = rows_at_once(head.num_classes) if head.correlated else max(1, len(phi))  # pyright: ignore
        masks = itertools.repeat(None) if mask is None else mask.split(size)
        return Predictive.concatenate(
            [
                predictive_at(*head.moments(rows), 1.0, exists, config)  # pyright: ignore
                for rows, exists in zip(phi.split(size), masks, strict=False)
            ]
        )


def _require_order(task: Task) -> None:
    """Raise ConfigError where the order of a task's classes is nobody's choice."""
    values = task.labels.values
    names = ", ".join(list(task.labels)[:8])
    if task.kind == "choice":
        raise ConfigError("head.kind=ordinal needs classes in an order; answer letters have none.")
    if len(values) > 2 and isinstance(values[0], str) and list(values) == sorted(map(str, values)):
        raise ConfigError(
            f"head.kind=ordinal: the classes are in alphabetical order ({names}). Write the labels "
            "as integers, or give the names in order: labels=[...] when the rows are read, or a "
            "labels.json beside them."
        )


def _gaussian_around(head: LinearHead, fit: Features, prior_scale: float) -> GaussianHead:
    """Return a Gaussian head with the same mean, its prior in the units of these features."""
    weight = head.weight.detach()
    gaussian = GaussianHead(
        in_features=weight.shape[1], num_classes=weight.shape[0], prior_scale=prior_scale
    )
    gaussian.set_feature_energy(fit.phi)
    gaussian.noise = head.noise  # as trained; the energy would set it anew
    gaussian = gaussian.to(weight.device)
    with torch.no_grad():
        gaussian.weight.copy_(weight)
    return gaussian
