"""Feature density against scikit-learn's shrinkage, explicit inverses and degenerate features."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from bayestune.errors import ConfigError, DataError, NumericsError
from bayestune.metrics import Density, auroc, density, density_score, fit_density


def draw(rows: int, dim: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    mixing = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    means = 5 * torch.randn(classes, dim, generator=g, dtype=torch.float64)
    noise = torch.randn(rows, dim, generator=g, dtype=torch.float64) @ mixing
    return means[labels] + noise, labels


def sigma(found: Density) -> Tensor:
    return torch.linalg.inv(found.whitening @ found.whitening.T)


def residuals(x: Tensor, y: Tensor) -> Tensor:
    kept = [x[y == k] - x[y == k].mean(0) for k in y.unique() if (y == k).sum() > 1]
    return torch.cat(kept)


@pytest.mark.parametrize(("rows", "dim", "classes"), [(60, 4, 3), (30, 50, 4), (12, 30, 6)])
def test_covariance_is_sklearn_ledoit_wolf_with_degrees_of_freedom(rows, dim, classes) -> None:
    x, y = draw(rows, dim, classes)
    z = residuals(x, y)
    _, theirs = ledoit_wolf(z.numpy(), assume_centered=True)
    lam = min(1.0, theirs * rows / (rows - classes))
    S = z.T @ z / (rows - classes)
    expected = (1 - lam) * S + lam * S.trace() / dim * torch.eye(dim, dtype=S.dtype)
    torch.testing.assert_close(sigma(fit_density(x, y, classes)), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lam", [1e-6, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "dim"), [(40, 5), (10, 25)])
def test_score_is_the_nearest_mahalanobis_distance(rows: int, dim: int, lam: float) -> None:
    x, y = draw(rows, dim, 3)
    query = x[:7] + 1
    z = residuals(x, y).numpy()
    S = z.T @ z / (rows - 3)
    inverse = np.linalg.inv((1 - lam) * S + lam * np.trace(S) / dim * np.eye(dim))
    expected = []
    for q in query.numpy():
        gaps = [q - x[y == k].mean(0).numpy() for k in range(3)]
        expected.append(min(float(gap @ inverse @ gap) for gap in gaps))
    found = density_score(fit_density(x, y, 3, shrinkage=lam), query)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_score_of_rows_from_the_training_distribution_is_chi_squared() -> None:
    x, y = draw(8000, 8, 1)
    found = density_score(fit_density(x[:4000], y[:4000], 1, shrinkage=1e-6), x[4000:])
    # With 8 degrees of freedom the mean is 8 and the variance 16.
    assert found.mean().item() == pytest.approx(8, abs=4 * math.sqrt(2 * 16 / 4000))
    assert found.var().item() == pytest.approx(16, rel=0.15)


def test_score_ignores_shift_rotation_and_scale_of_the_features() -> None:
    x, y = draw(30, 12, 3)
    g = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64)).Q
    query = 3 * torch.randn(9, 12, generator=g, dtype=torch.float64)
    expected = density_score(fit_density(x, y, 3), query)
    for scale in (1e-12, 1.0, 1e12):
        moved = [scale * (a @ rotation + 100) for a in (x, query)]
        found = density_score(fit_density(moved[0], y, 3), moved[1])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_absent_and_single_row_classes() -> None:
    x, y = draw(30, 6, 3)
    single = torch.full((1, 6), 50.0, dtype=torch.float64)
    features, labels = torch.cat([x, single]), torch.cat([y, torch.tensor([4])])
    found = fit_density(features, labels, 6)
    assert found.present.tolist() == [True, True, True, False, True, False]
    # The single row adds a mean and nothing to the covariance.
    torch.testing.assert_close(found.whitening, fit_density(x, y, 3).whitening)
    torch.testing.assert_close(found.means[4], single[0])
    assert density_score(found, single).item() == pytest.approx(0.0, abs=1e-6)
    # An absent class's row of zeros is no mean to be near to.
    assert density_score(found, torch.zeros(1, 6)).item() > 0.1


def test_separates_what_mixed_classes_would_hide() -> None:
    x, y = draw(200, 10, 2, seed=3)
    between = (x[y == 0][:50] + x[y == 1][:50]) / 2  # near the overall mean, far from both classes
    found = fit_density(x, y, 2)
    assert auroc(density_score(found, x), density_score(found, between)) > 0.95


def test_fewer_rows_than_features_stays_positive_definite() -> None:
    x, y = draw(8, 200, 4)
    found = fit_density(x.bfloat16(), y, 4)
    assert torch.linalg.eigvalsh(sigma(found)).min() > 0
    assert torch.isfinite(density_score(found, 100 * x)).all()


def test_constant_features_make_a_deviation_far() -> None:
    x, y = draw(50, 5, 2)
    x[:, 3] = 0.1
    found = fit_density(x, y, 2)
    moved = x[:4].clone()
    moved[:, 3] += 1.0
    assert torch.isfinite(found.whitening).all()
    assert (density_score(found, moved) > density_score(found, x[:4])).all()


def test_mirrored_rows_have_shrinkage_zero_and_still_factorise() -> None:
    # All residuals are ±v: the estimated λ is 0 and S has rank one.
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = fit_density(torch.stack([v, -v]), [0, 0], 1)
    assert torch.isfinite(found.whitening).all()
    assert density_score(found, v[None]).item() == pytest.approx(0.5, rel=1e-4)
    # Across v the variance is λ tr S / D with the smallest λ; tr S = 2 ‖v‖² = 28.
    across = density_score(found, [[2.0, -1.0, 0.0]]).item()
    assert across == pytest.approx(5 / (1e-6 * 28 / 3), rel=1e-4)


def test_one_row_per_class_falls_back_to_scaled_euclidean_distance() -> None:
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    found = fit_density(x, [0, 1], 2)
    # Mean square deviation per feature: (4 + 4) / 4 = 2.
    assert density_score(found, [[1.0, 0.0], [2.0, 2.0]]).tolist() == pytest.approx([0.5, 4.0])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_rows_fall_back_to_euclidean_distance(value: float) -> None:
    x = torch.full((7, 3), value, dtype=torch.float64)  # a mean of 0.1 is not exactly 0.1
    found = fit_density(x, [0, 0, 0, 1, 1, 1, 2], 4)
    query = x[:2] + torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert density_score(found, query).tolist() == pytest.approx([0.0, 4.0], abs=1e-6)


def test_one_feature_and_one_row() -> None:
    found = fit_density([[1.0], [3.0], [5.0]], [0, 0, 1], 2)
    assert density_score(found, [[2.0], [5.0], [8.0]]).tolist() == pytest.approx([0.0, 0.0, 4.5])
    assert density_score(fit_density([[7.0, 1.0]], [0], 1), [[7.0, 3.0]]).item() == 4.0


def test_scores_beyond_float32_become_its_largest_number() -> None:
    x, y = draw(20, 3, 2)
    largest = torch.finfo(torch.float32).max
    found = fit_density(x, y, 2)
    assert density_score(found, [[3e38, -3e38, 3e38]]).item() == largest
    small = fit_density(1e-3 * x, y, 2)
    for query in ([1e300, -1e300, 1e300], [1.7e308, -1.7e308, 1.7e308], [-1.7e308] * 3):
        assert density_score(found, [query]).item() == largest
        assert density_score(small, [query]).item() == largest


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(50, 6, 3)
    whole = fit_density(x, y, 3)
    scores = density_score(whole, x)
    monkeypatch.setattr(density, "_BLOCK", 7)
    split = fit_density(x, y, 3)
    torch.testing.assert_close(split.whitening, whole.whitening)
    torch.testing.assert_close(density_score(split, x), scores)


def test_the_fields_survive_safetensors() -> None:
    x, y = draw(20, 4, 2)
    found = fit_density(x, y, 3)
    fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    again = Density(**load(save(fields)))
    assert torch.equal(density_score(again, x), density_score(found, x))


@pytest.mark.parametrize("shrinkage", [0.0, 1.5, -0.1, float("nan"), "oas"])
def test_shrinkage_out_of_range_is_refused(shrinkage) -> None:
    with pytest.raises(ConfigError, match="shrinkage"):
        fit_density([[1.0], [2.0]], [0, 0], 1, shrinkage=shrinkage)


def test_bad_features_are_refused() -> None:
    good = fit_density([[1.0, 2.0], [2.0, 1.0]], [0, 0], 1)
    with pytest.raises(DataError, match="fitted on 2"):
        density_score(good, [[1.0, 2.0, 3.0]])
    with pytest.raises(DataError, match="row 1 has a NaN"):
        density_score(good, [[1.0, 2.0], [1.0, float("nan")]])
    with pytest.raises(DataError, match="no rows"):
        density_score(good, torch.zeros(0, 2))
    with pytest.raises(DataError, match="expected real numbers"):
        fit_density([1.0, 2.0], [0, 0], 1)
    with pytest.raises(DataError, match="row 1 is 1, expected 0 to 0"):
        fit_density([[1.0], [2.0]], [0, 1], 1)
    with pytest.raises(DataError, match="same number"):
        fit_density([[1.0], [2.0]], [0], 1)
    with pytest.raises(ConfigError, match="num_classes"):
        fit_density([[1.0]], [0], 0)
    with pytest.raises(NumericsError, match="rescale"):
        fit_density([[1e200, 0.0], [0.0, 1e200]], [0, 0], 1)
