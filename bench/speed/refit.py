"""The last layer's posterior refitted at a given precision, against the products it needs."""

from __future__ import annotations

import torch
from bench.speed.measure import Row, interleaved, medians, peak, ratio
from torch import Tensor

from bayestune.config import FinalizeConfig
from bayestune.finalize import Features
from bayestune.finalize.select import select
from bayestune.head import GaussianHead

N, D, K = 100_000, 4096, 4


def run(device: str, base: str, repeats: int, rows: int = N, width: int = D) -> list[Row]:
    """Measure dense class blocks; ``base`` is not needed."""
    torch.manual_seed(0)
    phi = torch.randn(rows, width, device=device)
    head = GaussianHead(in_features=width, num_classes=K).to(device)
    head.start(phi[:512], torch.arange(512, device=device) % K, None)
    with torch.no_grad():
        head.weight.normal_(std=0.5 / width**0.5)
    labels = (phi @ head.weight.T).argmax(1)
    fit = Features(phi, labels)
    config = FinalizeConfig(refresh="block", precision=1.0, refit="none", temperature="none")
    own = torch.rand(rows, K, device=device)

    def refit() -> None:
        select(head, fit, None, config)

    def products() -> Tensor:
        total = phi.new_zeros(K, width, width)
        for some, c in zip(phi.split(4096), own.split(4096), strict=True):
            for k in range(K):
                total[k].addmm_(some.T, c[:, k, None] * some)
        return total

    repeats = max(1, repeats // 3) if rows == N else repeats
    times = interleaved({"refit": refit, "products": products}, repeats, device, warm=0)
    before, most = peak(refit, device)
    held = 4e-6 * K * width**2
    return [
        Row(
            f"posterior refitted on {rows:,} features, D = {width:,}, K = {K}, precision given, "
            "against the products it needs",
            ratio(times, "refit", "products"),
            "×",
            "≤ 1.5",
            "K products ΦᵀCΦ, then a Cholesky factor of each",
            {"seconds": medians(times)},
        ),
        Row(
            "its memory beside the features, in units of the K·D² numbers of the result",
            (most - before) / held,
            "×",
            "",
            "the result itself, and one class in float64",
            {"before_mb": before, "peak_mb": most, "result_mb": held},
        ),
    ]
