"""A Laplace posterior over the adapter: Gaussian around trained weights, by their curvature.

    q(θ) = Π_sites N(W*, (G ⊗ A + τI)⁻¹),    f(x) ~ N(f_θ*(x), V),   V = Σ_sites J (G ⊗ A + τI)⁻¹ Jᵀ

with the curvature of `weights.curvature`, a prior N(0, 1/τ) on every weight, and the model
linearised in its weights: a prediction is one forward pass and one backward pass per class, and
draws no weights.

Source: Yang, Robeyns, Wang and Aitchison 2024 (arXiv 2308.13111); Immer, Korzepa and Bauer 2021
(arXiv 2008.08216) for the linearised predictive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.data import length_grouped_batches
from bayestune.posterior import curvature
from bayestune.posterior.evidence import best_precision, log_evidence
from bayestune.posterior.logits import present
from bayestune.posterior.observed import LogitMoments
from bayestune.progress import Progress, silent
from bayestune.weights.curvature import Factors, SiteCurvature, covariance, projected, ranks
from bayestune.weights.distribution import WeightDistribution, key
from bayestune.weights.jacobian import Calls, pulled, recorded
from bayestune.weights.site import Site

#: Numbers in the derivatives of one batch that are held at once.
_NUMBERS = 2**26
#: The site that is the last layer; see `head_site`.
_HEAD = "head"


class LaplaceWeights(WeightDistribution):
    """A Kronecker-factored Laplace posterior over the weights at some sites.

    It is a point, of infinite precision, until `fit` and `set_precisions` have been called.

    Args:
        sites: where; LoRA's A and B, or PoLAR's core, and the head where it is random too.
        columns: most eigenvectors of the larger of a site's two factors.
    """

    is_drawn = False
    passes = "1, and K backward through the adapted layers"

    def __init__(self, sites: Mapping[str, Site], *, columns: int) -> None:
        super().__init__(sites)
        self.columns = columns
        # The head's prior is around what it starts from, which need not be zero.
        self.centres = {n: s.weight.detach().clone() for n, s in self.sites.items() if n == _HEAD}
        for name, site in self.sites.items():
            zeros, (out, into) = _zeros(site), ranks(site.weight, columns)
            shapes = ((out, into), (zeros.shape[0], out), (zeros.shape[1], into))
            for part, shape in zip(Factors._fields, shapes, strict=True):
                self.register_buffer(_name(name, part), zeros.new_zeros(shape))
            self.register_buffer(_name(name, "precision"), zeros.new_full((), math.inf))

    def factors(self, site: str) -> Factors:
        """Return the curvature of a site."""
        return Factors(*(self.get_buffer(_name(site, part)) for part in Factors._fields))

    def precision(self, site: str) -> Tensor:
        """Return the prior precision τ of a site's weights, a scalar."""
        return self.get_buffer(_name(site, "precision"))

    def fit(
        self,
        reader: Any,
        head: nn.Module,
        rows: Any,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> float:
        """Measure the curvature at the weights as they are, over all training rows.

        Expected over the model's own labels, exactly, in K − 1 backward passes.

        Args:
            reader: feeds the backbone.
            head: features to logits.
            rows: N encoded examples with labels, masks and sample weights.
            batch_size: texts in a pass, fewer where their derivatives would be too many numbers.
            progress: how to report.

        Returns:
            log p(D | θ*), in nats.
        """
        found = {name: SiteCurvature(_zeros(s), self.columns) for name, s in self.sites.items()}
        batches = self._passes(reader, head, rows.encoded, batch_size, 1, progress, "curvature")
        total = 0.0
        for index, _, logits, calls in batches:
            here = rows.batch(logits.detach(), index)
            log_p = present(logits.detach(), here.mask).log_softmax(-1)
            weights = torch.ones_like(log_p[:, 0]) if here.weights is None else here.weights
            likelihood = log_p.gather(1, here.labels[:, None]).flatten()
            total += float((weights * likelihood).sum())
            roots = curvature.root(log_p.exp()) * weights.sqrt()[:, None, None]  # (B, K, K − 1)
            for column in roots.unbind(-1):
                for name, J in pulled(logits, calls, column).items():
                    found[name].add(J)
        for name, site in found.items():
            for part, value in site.factors()._asdict().items():
                self.get_buffer(_name(name, part)).copy_(value)
        return total

    def groups(self, by: str) -> dict[str, list[str]]:
        """Return the sites that share a prior precision: of all layers, or of each; never the head.

        Args:
            by: ``shared`` or ``layer``.
        """
        found: dict[str, list[str]] = {}
        for name in self.sites:
            layer = name.rpartition(".")[0] if by == "layer" else "adapter"
            found.setdefault(name if name == _HEAD else layer, []).append(name)
        return found

    def evidence(self, group: Sequence[str], precision: float) -> float:
        """Return what sites add to log p(D) beyond log p(D | θ*) at a prior precision, in nats.

        −½ [ τ‖θ* − m‖² + Σ log(1 + λ/τ) ]
        """
        distance, values = self._known(group)
        origin = torch.zeros_like(distance)
        return float(log_evidence(0.0, distance.sqrt(), origin, values, precision))

    def best_precision(self, group: Sequence[str]) -> float:
        """Return the prior precision of sites at which the evidence is largest."""
        return best_precision(*self._known(group))

    def set_precisions(self, precisions: Mapping[str, float]) -> None:
        """Set prior precisions τ by site."""
        for name, value in precisions.items():
            self.precision(name).fill_(value)

    def moments(
        self,
        reader: Any,
        head: Any,
        encoded: Any,
        scales: Sequence[float] = (1.0,),
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> list[LogitMoments]:
        """Return Gaussian logits of N texts, with all prior precisions times each of some scales.

        Args:
            reader: feeds the backbone.
            head: features to logits.
            encoded: N texts.
            scales: on the precisions.
            batch_size: texts in a pass, fewer where their derivatives would be too many numbers.
            progress: how to report.

        Returns:
            Moments on the CPU, one for each scale.
        """
        order: list[int] = []
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        batches = self._passes(
            reader, head, encoded, batch_size, head.num_classes, progress, "linearised predictions"
        )
        for index, phi, logits, calls in batches:
            B, K = logits.shape
            of = [pulled(logits, calls, one.expand(B, K)) for one in torch.eye(K).to(logits)]
            total = logits.new_zeros(len(scales), B, K, K)
            for name in self.sites:
                known = self.factors(name)
                # Derivatives are let go site by site: they are most of what is held.
                inside, rest = projected(torch.stack([J.pop(name) for J in of], 1), known)
                for part, scale in zip(total, scales, strict=True):
                    part += covariance(inside, rest, known, self.precision(name) * scale)
            order += index
            parts.append((phi.detach().cpu(), logits.detach().cpu(), total.cpu()))
        back = torch.tensor(order).argsort()
        phi, mean = (torch.cat([part[i] for part in parts])[back] for i in (0, 1))
        cov = torch.cat([total for _, _, total in parts], 1)[:, back]  # (P, N, K, K)
        return [LogitMoments(phi, mean, one) for one in cov]

    def observe(
        self,
        reader: Any,
        head: nn.Module,
        encoded: Any,
        draws: int,
        seed: int,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> LogitMoments:
        """Return the Gaussian logits of encoded texts; nothing is drawn."""
        with torch.inference_mode(False):  # Jacobians are gradients
            moments = self.moments(reader, head, encoded, batch_size=batch_size, progress=progress)
        return moments[0]

    def fold_temperature(self, temperature: float) -> None:
        """Scale the head's deviations as its mean has been: precisions times T²."""
        if _HEAD in self.sites:
            self.factors(_HEAD).values.mul_(temperature**2)
            self.precision(_HEAD).mul_(temperature**2)

    def _known(self, group: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ‖θ* − m‖² and all eigenvalues of some sites, in float64."""
        distance, values = torch.zeros((), dtype=torch.float64), []
        for name in group:
            moved = self.sites[name].weight.detach() - self.centres.get(name, 0.0)
            distance += moved.cpu().double().square().sum()
            values.append(self.factors(name).values.cpu().double().flatten())
        return distance, torch.cat(values)

    def _passes(
        self,
        reader: Any,
        head: nn.Module,
        encoded: Any,
        batch_size: int,
        held: int,
        progress: Progress,
        label: str,
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Calls]]:
        """Yield rows, features, logits and what passed through the sites, batch by batch."""
        numbers = held * sum(site.weight.numel() for site in self.sites.values())
        size = max(1, min(batch_size, _NUMBERS // numbers))
        with reader.backbone.evaluating(), progress(label, len(encoded.ids)) as advance:
            for index in length_grouped_batches(encoded.lengths, size, shuffle=False):
                with recorded(self.sites) as calls:
                    phi = reader.batch(encoded, index)
                    logits = head(phi.to(next(head.parameters()).device))
                yield index, phi, logits, calls
                advance(len(index))


def _zeros(site: Site) -> Tensor:
    """Return zeros of a weight's shape, in fp32 or better."""
    dtype = torch.promote_types(site.weight.dtype, torch.float32)
    return torch.zeros_like(site.weight, dtype=dtype, requires_grad=False)


def _name(site: str, part: str) -> str:
    return f"{key(site)}-{part}"
