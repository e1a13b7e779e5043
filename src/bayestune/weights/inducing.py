"""Weights that follow a small inducing matrix: the posterior of Bayesian-LoRA.

A factor W of LoRA is the block of a larger matrix of independent standard normals, of which a
p × q matrix is observed through two frames with orthonormal rows:

    W = σ E[:m, :n],   E (m + p, n + q),   u = G_r E G_cᵀ
    G = R⁻¹ [Z  D],    R Rᵀ = Z Zᵀ + D²  (Cholesky),   D diagonal and positive

A priori u is standard normal. Given u, Matheron's rule turns a draw of E into one of W:

    W | u = σ (E + G_rᵀ (u − G_r E G_cᵀ) G_c)[:m, :n]

The posterior replaces the prior of u and scales what u leaves open by λ:

    q(u) = flow(N(m, diag sd²)),    q(W | u) = σ (T(u) + λ (E − T(G_r E G_cᵀ)))[:m, :n]
    KL   = KL(q(u) ‖ N(0, I)) + m n (½ λ² − log λ − ½),    T(u) = G_rᵀ u G_c

One Z serves everywhere, and nothing needs a jitter: the frames exist for any Z while D > 0.

Source: Lin et al. 2026 (arXiv 2601.21003); Matheron's rule: Wilson et al. 2021 (arXiv 2011.04026).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayestune.geometry.stiefel import wide_dtype
from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.flow import AffineFlow
from bayestune.weights.gaussian import gaussian_kl
from bayestune.weights.site import Site

#: Where D starts.
_SMALL = 1e-3


@dataclass(frozen=True)
class Inducing:
    """The shape of a posterior through inducing matrices.

    Attributes:
        size: p and q, at most the factor's own sizes.
        flow: hidden units of the flow; 0 leaves q(u) Gaussian.
        prior_scale: σ is this over √n.
        max_std: sd stays below it; the prior's is 1.
        max_noise: λ stays below it; the prior's is 1.
        start: where sd and λ start.
    """

    size: int
    flow: int
    prior_scale: float
    max_std: float
    max_noise: float
    start: float


def frame(z: Tensor, d: Tensor) -> Tensor:
    """Return ``G = R⁻¹ [Z  D]`` with ``R Rᵀ = Z Zᵀ + D²``, whose rows are orthonormal.

    Args:
        z: Z, ``(p, n)``.
        d: the diagonal of D, positive, ``(p,)``.

    Returns:
        ``(p, n + p)``, in float64 where the device has it.
    """
    wide = wide_dtype(z.device)
    both = torch.cat([z.to(wide), d.to(wide).diag()], dim=1)  # (p, n + p)
    root = torch.linalg.cholesky(both @ both.T)
    return torch.linalg.solve_triangular(root, both, upper=False)


class InducedFactor(nn.Module):
    """A random matrix ``(m, n)`` through an inducing matrix ``(p, q)``.

    Args:
        rows: m.
        columns: n.
        shape: the posterior's shape.
        spread: the standard deviation of the whitened means' start; 0 starts W at 0.

    Attributes:
        mean: σ times the mean of u, ``(p, q)``: in units of the weights, so that the adapter's
            learning rate means what it does for them.
    """

    def __init__(self, rows: int, columns: int, shape: Inducing, *, spread: float) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.sigma = shape.prior_scale / math.sqrt(columns)
        self.max_std, self.max_noise = shape.max_std, shape.max_noise
        p, q = min(shape.size, rows), min(shape.size, columns)
        self.z_rows = nn.Parameter(torch.randn(p, rows) / math.sqrt(rows))
        self.z_columns = nn.Parameter(torch.randn(q, columns) / math.sqrt(columns))
        small = math.log(math.expm1(_SMALL))
        self.d_rows = nn.Parameter(torch.full((p,), small))
        self.d_columns = nn.Parameter(torch.full((q,), small))
        self.mean = nn.Parameter(spread * self.sigma * torch.randn(p, q))
        self.std_logit = nn.Parameter(torch.full((p, q), _logit(shape.start / self.max_std)))
        self.noise_logit = nn.Parameter(torch.tensor(_logit(shape.start / self.max_noise)))
        self.flow = AffineFlow(q, shape.flow) if shape.flow else None

    @property
    def std(self) -> Tensor:
        """The standard deviations of u before the flow, ``(p, q)``."""
        return self.max_std * self.std_logit.sigmoid()

    @property
    def noise(self) -> Tensor:
        """λ, a scalar."""
        return self.max_noise * self.noise_logit.sigmoid()

    def frames(self) -> tuple[Tensor, Tensor]:
        """Return ``G_r`` ``(p, m + p)`` and ``G_c`` ``(q, n + q)``."""
        rows = frame(self.z_rows, F.softplus(self.d_rows))
        return rows, frame(self.z_columns, F.softplus(self.d_columns))

    def centre(self) -> Tensor:
        """Return W ``(m, n)`` at the mean of u before the flow: all noise set to 0."""
        return self._weight(*self.frames(), torch.zeros_like(self.mean), None)

    def sample(self, random: torch.Generator | None = None) -> Tensor:
        """Return one draw of W ``(m, n)``, from torch's own random numbers where none are given."""
        rows, columns = self.frames()

        def normal(*shape: int) -> Tensor:
            # A generator of our own is on the CPU, whatever the model runs on.
            where = self.mean.device if random is None else "cpu"
            return torch.randn(*shape, generator=random, device=where).to(self.mean)

        whole = normal(rows.shape[1], columns.shape[1])  # (m + p, n + q)
        return self._weight(rows, columns, normal(*self.mean.shape), whole)

    def kl(self) -> Tensor:
        """Return KL(q(W, u) ‖ p(W, u)) in nats; under a flow an estimate by one draw of u."""
        std, noise = self.std, self.noise
        left_open = self.rows * self.columns * (0.5 * noise.square() - noise.log() - 0.5)
        if self.flow is None:
            return left_open + gaussian_kl(self.mean / self.sigma, std, 1.0)
        before = self.mean / self.sigma + std * torch.randn_like(std)
        u, log_det = self.flow(before)
        # The entropy before the flow is known; only what the flow does to it is drawn.
        return left_open - std.log().sum() - log_det.sum() + 0.5 * (u.square() - 1).sum()

    def _weight(self, rows: Tensor, columns: Tensor, noise: Tensor, whole: Tensor | None) -> Tensor:
        u = self.mean / self.sigma + self.std * noise  # (p, q)
        if self.flow is not None:
            u, _ = self.flow(u)
        u = u.to(rows)
        if whole is not None:
            u = u - self.noise * (rows @ whole.to(rows) @ columns.T)
        value = (rows[:, : self.rows].T @ u @ columns[:, : self.columns]).to(self.mean)  # (m, n)
        if whole is not None:
            value = value + self.noise * whole[: self.rows, : self.columns]
        return self.sigma * value


class InducedWeights(WeightDistribution):
    """A posterior through inducing matrices over both factors of LoRA.

    It takes the place of LoRA's own parameters: these hold the value at the centre whenever nothing
    is being trained, and get no gradients. ΔW starts at 0, the centre of B.

    Args:
        sites: LoRA's A and B.
        shape: the posterior's shape.
        rate: learning rate of sd and λ.
    """

    has_kl = True

    def __init__(self, sites: Mapping[str, Site], shape: Inducing, *, rate: float) -> None:
        super().__init__(sites)
        self.rate = rate
        self.factors = nn.ModuleDict()
        for name, site in self.sites.items():
            site.weight.requires_grad_(False)
            spread = 0.0 if name.endswith(".B") else 1.0
            rows, columns = site.weight.shape
            factor = InducedFactor(rows, columns, shape, spread=spread)
            self.factors[key(name)] = factor.to(site.weight)
        self.train(False)

    def factor(self, site: str) -> InducedFactor:
        """Return what a site's weight follows."""
        return self.factors[key(site)]  # pyright: ignore[reportReturnType]

    def own_rates(self) -> dict[str, float]:
        """Return the learning rates of the deviations."""
        names = (name for name, _ in self.named_parameters())
        return {name: self.rate for name in names if name.endswith(("std_logit", "noise_logit"))}

    @torch.no_grad()
    def train(self, mode: bool = True) -> InducedWeights:
        """Switch to draws, or write the centre into the adapter's own weights."""
        super().train(mode)
        if not mode and "factors" in self._modules:
            for name, site in self.sites.items():
                site.weight.copy_(self.factor(name).centre())
        return self

    @torch.no_grad()
    def draw(self, site: str, random: torch.Generator) -> Tensor:
        """Return the difference of one draw from the centre, ``(out, in)``."""
        return self.factor(site).sample(random) - self.sites[site].weight

    def train_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Return the value under one draw for the whole batch."""
        return F.linear(x, self.factor(site).sample())

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) over all sites in nats."""
        return torch.stack([self.factor(name).kl() for name in self.sites]).sum()


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
