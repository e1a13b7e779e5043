"""The pieces that methods compose: model, objective, finaliser, predictor."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.backbone import Base, Reader, Source, adapt, output_rows
from bayestune.config import PredictConfig, Recipe, merge
from bayestune.data import Example, Task, answers, bare_token_ids, label_token_ids, render
from bayestune.errors import ConfigError
from bayestune.finalize import (
    REFRESHES,
    Features,
    Rows,
    finish_regression,
    generative_head,
    given_temperature,
    observed_at,
    predictive_at,
    regression_predictive,
    require_rows,
    rows_at_once,
    search_temperature,
    select,
    to_generative,
)
from bayestune.head import GaussianHead, GenerativeHead, LinearHead, Noise, OrdinalHead
from bayestune.methods.contract import Method, Parts, Terms
from bayestune.posterior.observed import LogitDraws, LogitMoments, Observed
from bayestune.posterior.predictive import Predictive
from bayestune.posterior.regression import RegressionPredictive
from bayestune.progress import Progress, silent

#: Recipe values of a LoRA adapter under a linear head, trained by maximum likelihood.
POINT: dict[str, Any] = {
    "adapter": {"kind": "lora"},
    "head": {"kind": "linear"},
    "train": {"lr": 5e-4, "kl": 0.0},
    "finalize": {"refresh": "none", "temperature": "none"},
}
#: The learning rate that suits PoLAR.
POLAR: dict[str, Any] = {"adapter": {"kind": "polar"}, "train": {"lr": 2e-3}}


def compose(
    name: str, summary: str, source: str, *defaults: Mapping[str, Any], **own: Any
) -> Method:
    """Return a method made of the pieces in this file, but for what is its own.

    Args:
        name: what ``--method`` takes.
        summary: one line.
        source: the paper.
        *defaults: recipe values, later ones winning.
        **own: functions (and ``options``) of the method's own.
    """
    pieces: dict[str, Any] = {"build": build, "loss": loss, "settle": settle}
    pieces |= {"finalize": finalize, "predict": predict}
    return Method(name, summary, source, **pieces | own, defaults=merge(*defaults))


def build(base: Base, source: Source, tokenizer: Any, task: Task, recipe: Recipe) -> Parts:
    """Make the recipe's head, put it into the model and adapt the model around it."""
    head = make_head(base, source, tokenizer, task, recipe)
    if recipe.head.kind in ("generative", "ordinal"):
        # No bias-free linear score says what these say: better no classifier for stock PEFT.
        base = replace(base, model=base.transformer)
    backbone, head = adapt(base, head, recipe.adapter, recipe.head)
    return Parts(backbone, head.to(backbone.device))


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
        rows = output_rows(source, base, _answer_tokens(tokenizer, task, recipe))
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


def _answer_tokens(tokenizer: Any, task: Task, recipe: Recipe) -> list[int]:
    """Return the token that answers for each class of a choice, by the convention of the prompt."""
    names, prompt = list(task.labels), recipe.prompt
    if prompt.style != "ours":
        # A loaded model has no examples; its rows are read from its files afterwards.
        first = task[0] if len(task) else Example(id=0, question="?", choices=tuple(names))
        return bare_token_ids(tokenizer, answers(first, prompt.style, names))
    example = Example(id=0, question="?", choices=tuple(names), passage="?")
    text = str(render(example, prompt, decoder=True, tokenizer=tokenizer))
    return label_token_ids(tokenizer, text, names)


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


def settle(
    parts: Parts,
    reader: Reader,
    fit: Rows,
    held_out: Rows | None,
    recipe: Recipe,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Let what is random of the adapter settle by itself, from the training alone."""
    weights = parts.backbone.weights
    return {} if weights is None else weights.settle()


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
            temperature = _temperature(head, held_out, recipe.predict)
    head.fold_temperature(temperature)  # pyright: ignore[reportCallIssue]
    report["temperature"] = temperature
    return head, report


def _temperature(head: nn.Module, held_out: Features, config: PredictConfig) -> float:
    """Return the temperature of a point head, whatever the features under it vary with."""
    if held_out.logits is None:
        with torch.no_grad():
            found = at_mean(head, held_out.phi, held_out.mask)
    else:
        found = functools.partial(_observed, held_out.logits, held_out.mask, config)
    return search_temperature(lambda t: found(t).probs, held_out.labels)[0]


def _observed(
    observed: LogitDraws | LogitMoments, mask: Tensor | None, config: PredictConfig, t: float
) -> Predictive:
    return observed_at(observed, t, mask, config)


def at_mean(
    head: nn.Module, phi: Tensor, mask: Tensor | None = None
) -> Callable[[float], Predictive]:
    """Return the predictive of a classifier's posterior mean as a function of temperature.

    Args:
        head: the head.
        phi: features ``(B, D)``.
        mask: which classes exist ``(B, K)``.
    """
    if isinstance(head, GenerativeHead):  # closed form, means averaged over
        return lambda t: Predictive.from_point(head.probs(phi, mask, t).log().clamp_min(-1e30))
    mu, _ = head.moments(phi)  # pyright: ignore[reportCallIssue]
    if isinstance(head, OrdinalHead):
        return lambda t: head.at(mu, None, t)
    return lambda t: Predictive.from_point(mu / t, mask)


def predict(
    head: nn.Module, phi: Observed, config: PredictConfig, mask: Tensor | None = None
) -> Predictive | RegressionPredictive:
    """Return the predictive of what was observed: a point for points, else averaged.

    With ``predict.samples=0`` it is that of the posterior's mean.
    """
    if isinstance(head, GaussianHead | LinearHead) and head.noise is not None:
        return regression_predictive(head, phi, at_mean=config.samples == 0)
    if not isinstance(phi, Tensor):
        return observed_at(phi, 1.0, mask, config)
    with torch.no_grad():
        if config.samples == 0:
            return at_mean(head, phi, mask)(1.0)
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
