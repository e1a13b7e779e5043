"""The masked autoregressive flow against autograd."""

from __future__ import annotations

import pytest
import torch

from bayestune.weights.flow import AffineFlow


def moved(features: int, hidden: int = 16) -> AffineFlow:
    """A flow in float64 with random weights."""
    torch.manual_seed(features)
    flow = AffineFlow(features, hidden).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return flow


def jacobian(flow: AffineFlow, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda v: flow(v)[0], x)  # pyright: ignore


@pytest.mark.parametrize("features", [1, 2, 5, 9])
def test_it_is_autoregressive_and_its_log_determinant_is_that_of_the_jacobian(features) -> None:
    flow = moved(features)
    reads = torch.zeros(features, features, dtype=torch.bool)
    for x in torch.randn(8, features, dtype=torch.float64):
        found = jacobian(flow, x)
        torch.testing.assert_close(flow(x)[1], torch.linalg.slogdet(found)[1])
        reads |= found != 0
    assert torch.equal(reads, torch.ones_like(reads).tril())  # output j reads inputs up to j


def test_rows_pass_by_themselves() -> None:
    flow, x = moved(4), torch.randn(3, 4, dtype=torch.float64)
    y, log_det = flow(x)
    assert y.shape == (3, 4) and log_det.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(flow(x[i])[0], y[i])
        torch.testing.assert_close(flow(x[i])[1], log_det[i])


def test_it_starts_as_the_identity_and_can_leave_it() -> None:
    torch.manual_seed(0)
    flow, x = AffineFlow(5, 16), torch.randn(7, 5)
    y, log_det = flow(x)
    assert torch.equal(y, x) and not log_det.any()
    target = x.roll(1, dims=1).tanh() + 2 * x
    target[:, 0] = 2 * x[:, 0]  # what comes before the first is nothing
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        loss = (flow(x)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-2
