"""A network of a few float64 weights whose sites see several positions, and its reader."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.finalize import Rows
from bayestune.head import LinearHead
from bayestune.weights import LaplaceWeights, Site
from bayestune.weights.jacobian import pulled, recorded

IN, RANK, HIDDEN = 5, 2, 6


class Toy(nn.Module):
    """``φ = mean_t m(tanh(base a_t + B A a_t))`` with m mixing positions; it is its own reader."""

    def __init__(self, rows: int, positions: int, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inputs = torch.randn(rows, positions, IN, dtype=torch.float64)
            self.base = nn.Linear(IN, HIDDEN, dtype=torch.float64).requires_grad_(False)
            self.A = nn.Linear(IN, RANK, bias=False, dtype=torch.float64)
            self.B = nn.Linear(RANK, HIDDEN, bias=False, dtype=torch.float64)
            start = torch.randn(classes, HIDDEN)
            head = LinearHead(in_features=HIDDEN, num_classes=classes, rows=start)
            self.labels = torch.randint(classes, (rows,))
        self.head = head.double()
        self.encoded: Any = SimpleNamespace(ids=list(range(rows)), lengths=[positions] * rows)

    @property
    def backbone(self) -> Toy:
        return self

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.base(x) + self.B(self.A(x)))  # (B, T, H)
        return (h * h.cumsum(1)).mean(1) + h.mean(1)

    def batch(self, encoded: Any, rows: list[int]) -> Tensor:
        return self(self.inputs[[encoded.ids[i] for i in rows]])

    def rows(self, mask: Tensor | None = None, weights: Tensor | None = None) -> Rows:
        return Rows(self.encoded, self.labels, mask, weights)

    def sites(self, *names: str) -> dict[str, Site]:
        found = {"A": Site(self.A, self.A.weight), "B": Site(self.B, self.B.weight)}
        found["head"] = Site(self.head, self.head.weight)
        return {name: found[name] for name in names}

    def laplace(self, *names: str, columns: int = 99) -> LaplaceWeights:
        return LaplaceWeights(self.sites(*names), columns=columns)

    def jacobians(self, *names: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, K)`` and their derivatives ``(N, K, out, in)``, row by row by autograd."""
        weights = [site.weight for site in self.sites(*names).values()]
        logits, found = [], []
        for row in range(len(self.inputs)):
            f = self.head(self(self.inputs[row : row + 1]))[0]
            logits.append(f.detach())
            found.append([torch.autograd.grad(one, weights, retain_graph=True) for one in f])
        stacked = {
            name: torch.stack([torch.stack([of[i] for of in row]) for row in found])
            for i, name in enumerate(names)
        }
        return torch.stack(logits), stacked

    def gauss_newton(self, *names: str) -> dict[str, Tensor]:
        """The exact Gauss-Newton block Σ_n JᵀHJ of every site, ``(out · in, out · in)``."""
        logits, J = self.jacobians(*names)
        p = logits.softmax(-1)
        H = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        return {
            name: torch.einsum("nkp,nkl,nlq->pq", of.flatten(2), H, of.flatten(2))
            for name, of in J.items()
        }

    def pulls(self, *names: str) -> dict[str, Tensor]:
        """What `pulled` says of the same derivatives, ``(N, K, out, in)``."""
        with recorded(self.sites(*names)) as calls:
            logits = self.head(self(self.inputs))
        eye = torch.eye(logits.shape[1], dtype=torch.float64)
        each = [pulled(logits, calls, one.expand_as(logits)) for one in eye]
        return {name: torch.stack([of[name] for of in each], 1) for name in names}
