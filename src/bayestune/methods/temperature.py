"""Temperature scaling: maximum likelihood, then one factor on all logits by held-out likelihood.

    p = softmax(Wφ / T),   T = argmin of the held-out negative log-likelihood

Accuracy stays as it is; epistemic uncertainty stays 0.

Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
"""

from __future__ import annotations

from bayestune.methods import parts

METHOD = parts.compose(
    "temperature",
    "maximum likelihood with one temperature fitted on held-out rows; a point estimate",
    "arXiv 1706.04599",
    parts.POINT,
    {"finalize": {"temperature": "auto"}},
    after=("mle", "map"),
)
