from __future__ import annotations

import pytest
import torch

from bayestune.errors import ConfigError
from bayestune.posterior.normals import default_samples, fixed_normals

CPU = torch.device("cpu")


@pytest.mark.parametrize("K", [2, 5, 77, 150, 1000])
def test_every_class_has_exact_moments(K):
    normals = fixed_normals(K, default_samples(K), 0, torch.float64, CPU)
    assert normals.shape == (K, default_samples(K))
    assert normals.mean(1).abs().max() < 1e-12
    assert (normals.square().mean(1) - 1).abs().max() < 1e-12


def test_classes_are_nearly_uncorrelated():
    normals = fixed_normals(20, 1024, 0, torch.float64, CPU)
    correlation = normals @ normals.T / 1024 - torch.eye(20)
    # Independent draws would have 1/√1024 = 0.03 on average.
    assert correlation.square().mean().sqrt() < 0.015


def test_default_samples_is_an_even_power_within_its_limits():
    counts = {K: default_samples(K) for K in (2, 16, 77, 150, 1000)}
    assert counts == {2: 1024, 16: 1024, 77: 256, 150: 128, 1000: 128}


def test_neither_global_seed_nor_inference_mode_matters():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        normals = fixed_normals(3, 16, 77, torch.float32, CPU)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not normals.is_inference()
    assert fixed_normals(3, 16, 77, torch.float32, CPU) is normals
    assert not torch.equal(fixed_normals(3, 16, 78, torch.float32, CPU), normals)


def test_what_sobol_cannot_do_is_an_error():
    with pytest.raises(ConfigError, match="at least 2"):
        fixed_normals(3, 1, 0, torch.float32, CPU)
    with pytest.raises(ConfigError, match="exact"):
        fixed_normals(21_202, 4, 0, torch.float32, CPU)
