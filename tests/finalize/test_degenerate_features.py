"""Whatever the features are: finite numbers, probabilities, a positive covariance, a true split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayestune.config import HeadConfig, Recipe, TrainConfig
from bayestune.errors import NumericsError
from bayestune.finalize import Features
from bayestune.head import GaussianHead, LinearHead, OrdinalHead
from bayestune.methods.parts import finalize, predict
from bayestune.metrics import density_score, fit_density
from bayestune.posterior import Predictive

FAMILIES = ("diagonal", "low_rank", "kronecker", "eigen", "dense")
PATTERNS = ("plain", "duplicate", "constant", "separable", "extreme", "tiny")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(count: int) -> settings:
    """Return settings: so many cases, always the same."""
    phases = (Phase.explicit, Phase.generate)  # shrinking a failure would take minutes
    return settings(max_examples=count, deadline=None, derandomize=True, phases=phases)


shapes = st.tuples(st.integers(2, 1000), st.integers(1, 8192)).filter(lambda s: s[0] * s[1] < 2e5)
small = st.tuples(st.integers(2, 12), st.integers(1, 24))


def features(pattern: str, N: int, K: int, D: int, seed: int, dtype: torch.dtype) -> Features:
    """N labelled rows, rounded to what a backbone of a dtype gives."""
    g = torch.Generator().manual_seed(seed)
    phi, labels = torch.randn(N, D, generator=g), torch.randint(K, (N,), generator=g)
    match pattern:
        case "duplicate":
            phi = phi[:1].expand(N, D).clone()
        case "constant":
            phi = torch.full((N, D), 3.0)
        case "separable":
            phi = 1e-3 * phi
            phi[torch.arange(N), labels % D] += 30.0
        case "extreme":
            phi = 1e4 * phi
        case "tiny":
            phi = 1e-4 * phi
    return Features(phi.to(dtype).float(), labels)


def check(found: Predictive, K: int) -> None:
    assert found.probs.shape[1] == K
    for field in (found.probs, found.entropy, found.aleatoric, found.epistemic):
        assert torch.isfinite(field).all()
    assert (found.probs >= 0).all()
    assert (found.probs.double().sum(-1) - 1).abs().max() <= 1e-6
    assert (found.epistemic >= 0).all()
    assert (found.entropy >= found.epistemic).all()
    assert (found.entropy <= math.log(K) + 1e-5).all()


def positive(head: nn.Module, phi: Tensor) -> None:
    """Look whether the weights' covariance is positive definite, as their logits show it."""
    row: Any = head.row if isinstance(head, OrdinalHead) else head
    if not isinstance(row, GaussianHead):
        return
    D = row.in_features
    probes = torch.cat([torch.eye(D)[: min(D, 8)], torch.ones(1, D), phi[:1] + 1e-3])
    with torch.no_grad():
        var = row.moments(probes)[1]
    if var.ndim == 3:
        assert torch.linalg.eigvalsh(var.double()).min() > -1e-6 * var.abs().max()
        var = var.diagonal(dim1=1, dim2=2)
    assert torch.isfinite(var).all() and (var > 0).all()


def train(head: Any, rows: Features, steps: int = 3) -> None:
    """Start a head and follow its bound a little, as an optimiser would."""
    head.start(rows.phi, rows.labels)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -head.bound(rows.phi, rows.labels).mean() + head.kl() / len(rows)
        assert torch.isfinite(loss)
        loss.backward()
        gradients = [p.grad for p in head.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        optimizer.step()


def finished(head: Any, rows: Features, held_out: Features, kind: str = "linear", **options: Any):
    """Finish a head by the default recipe, and look at what it then says."""
    recipe = Recipe(head=HeadConfig(kind=kind), train=TrainConfig(kl=1.0))  # type: ignore
    recipe = replace(recipe, finalize=replace(recipe.finalize, **options))
    head, report = finalize(head, rows, held_out, recipe)
    assert math.isfinite(report["temperature"]) and report["temperature"] > 0
    for phi in (rows.phi, held_out.phi, 1e4 * held_out.phi):
        found = predict(head, phi, recipe.predict)
        assert isinstance(found, Predictive)
        check(found, head.num_classes)
    positive(head, rows.phi)


everything = {
    "pattern": st.sampled_from(PATTERNS),
    "N": st.sampled_from([1, 2, 7, 40]),
    "seed": st.integers(0, 99),
    "dtype": st.sampled_from(DTYPES),
}


@cases(15)
@given(shape=shapes, **everything)
@example(shape=(1000, 8192), pattern="plain", N=1, seed=0, dtype=torch.float32)
@example(shape=(2, 1), pattern="constant", N=1, seed=0, dtype=torch.float32)
def test_the_default_posterior(shape, pattern, N, seed, dtype) -> None:
    K, D = shape
    rows, held_out = (features(pattern, n, K, D, s, dtype) for n, s in ((N, seed), (3, seed + 1)))
    head = GaussianHead(in_features=D, num_classes=K)
    train(head, rows, steps=2)
    positive(head, rows.phi)
    with torch.no_grad():
        check(Predictive.from_moments(*head.moments(rows.phi)), K)
    if K * D < 3e4:
        finished(head, rows, held_out)


@pytest.mark.parametrize("family", FAMILIES)
@cases(8)
@given(shape=small, **everything)
def test_every_trained_family(family, shape, pattern, N, seed, dtype) -> None:
    K, D = shape
    rows, held_out = (features(pattern, n, K, D, s, dtype) for n, s in ((N, seed), (5, seed + 1)))
    head = GaussianHead(in_features=D, num_classes=K, covariance=family, learn_prior=True)
    train(head, rows)
    head.update_prior()
    positive(head, rows.phi)
    finished(head, rows, held_out, refresh="none")


@pytest.mark.parametrize("refresh", ["diagonal", "eigen", "block", "kronecker", "full"])
@cases(8)
@given(shape=small, **everything)
def test_every_refresh(refresh, shape, pattern, N, seed, dtype) -> None:
    K, D = shape
    rows, held_out = (features(pattern, n, K, D, s, dtype) for n, s in ((N, seed), (5, seed + 1)))
    head = LinearHead(in_features=D, num_classes=K)
    head.start(rows.phi, rows.labels)
    finished(head, rows, held_out, refresh=refresh)


@pytest.mark.parametrize("kind", ["generative", "ordinal"])
@cases(8)
@given(shape=small, **everything)
def test_heads_of_other_likelihoods(kind, shape, pattern, N, seed, dtype) -> None:
    K, D = shape
    rows, held_out = (features(pattern, n, K, D, s, dtype) for n, s in ((N, seed), (5, seed + 1)))
    if kind == "ordinal":
        head: Any = OrdinalHead(in_features=D, num_classes=K)
        train(head, rows)
        finished(head, rows, held_out, refresh="none")
    else:
        head = GaussianHead(in_features=D, num_classes=K)
        train(head, rows)
        if (rows.phi == rows.phi[0]).all():  # then no density is there to be fitted
            with pytest.raises(NumericsError, match="all equal"):
                finished(head, rows, held_out, kind="generative")
        else:
            finished(head, rows, held_out, kind="generative")


@cases(40)
@given(shape=small, **everything)
@example(shape=(3, 1500), pattern="duplicate", N=2, seed=0, dtype=torch.float32)
def test_densities(shape, pattern, N, seed, dtype) -> None:
    K, D = shape
    rows = features(pattern, N, K, D, seed, dtype)
    scores = density_score(fit_density(rows.phi, rows.labels, K), 1.1 * rows.phi + 1e-3)
    assert torch.isfinite(scores).all() and (scores >= 0).all()
