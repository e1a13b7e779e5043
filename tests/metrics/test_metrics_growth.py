"""A density that takes in more rows, against one that is fitted to all of them."""

from __future__ import annotations

import pytest
import torch

from bayestune.errors import ConfigError
from bayestune.metrics import Density, density_score, extend_density, fit_density

K, D = 4, 6


def rows(count: int, seed: int = 0, classes=range(K)):
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor(list(classes))[torch.randint(len(classes), (count,), generator=g)]
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = torch.randn(count, D, generator=g, dtype=torch.float64) @ mix
    return x + 3 * labels[:, None], labels


def covariance(density: Density):
    return (density.whitening @ density.whitening.T).inverse()


def same(found: Density, expected: Density):
    torch.testing.assert_close(found.means, expected.means)
    torch.testing.assert_close(covariance(found), covariance(expected))
    assert torch.equal(found.present, expected.present)
    assert torch.equal(found.counts, expected.counts)


@pytest.mark.parametrize("first", [range(K), (0, 2), (1,)])
def test_it_is_the_fit_to_all_rows_at_the_first_shrinkage(first):
    x, y = rows(30, 1, first)
    more, labels = rows(50, 2)
    old = fit_density(x, y, K, 0.2)
    found = extend_density(old, more, labels)
    same(found, fit_density(torch.cat([x, more]), torch.cat([y, labels]), K, 0.2))
    in_parts = old
    for part, which in zip(more.split(7), labels.split(7), strict=True):
        in_parts = extend_density(in_parts, part, which)
    same(in_parts, found)
    other_order = extend_density(fit_density(more, labels, K, 0.2), x, y)
    same(other_order, found)


def test_classes_of_single_rows_become_classes_with_a_spread():
    x, y = rows(40, 3)
    single = torch.tensor([int((y == k).nonzero()[0]) for k in range(K)])
    rest = torch.tensor([i for i in range(len(y)) if i not in set(single.tolist())])
    old = fit_density(x[single], y[single], K, 0.3)
    same(extend_density(old, x[rest], y[rest]), fit_density(x, y, K, 0.3))


def test_rows_of_new_kind_become_familiar_and_the_old_density_is_not_touched():
    x, y = rows(60, 4)
    old = fit_density(x, y, K)
    far, labels = rows(60, 5)
    far = far + 40
    before = old.means.clone(), density_score(old, far)
    grown = extend_density(old.stored(), far, labels)
    assert grown.means.dtype == torch.float64 and torch.equal(old.means, before[0])
    assert density_score(grown, far).median() < 0.05 * before[1].median()


def test_one_without_counts_is_refused():
    old = fit_density(*rows(20), K)
    with pytest.raises(ConfigError, match="no counts"):
        extend_density(Density(old.means, old.whitening, old.present), *rows(3))
