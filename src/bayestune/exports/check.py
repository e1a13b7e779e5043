"""Whether what was written computes what the model does, by the software that is to load it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayestune.backbone.pool import POOLING
from bayestune.backbone.quantise import is_quantised, keep_gradients
from bayestune.data import Encoded
from bayestune.errors import StoreError
from bayestune.exports.plain import Plain
from bayestune.head import GaussianHead, LinearHead
from bayestune.model import BayesModel

#: Of any length; what they say does not matter.
_TEXTS = ("a first text", "a second text that is a little longer than the first one")
#: Largest difference relative to the largest number, by the type of the weights.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def expected(model: BayesModel, draw: int | None) -> Tensor:
    """Return what the model itself gives of two texts: logits ``(2, K)`` where they are linear.

    Of other heads the features ``(2, D)``.
    """
    reader, encoded = model.reader(), _encoded(model)
    if draw is not None:
        return reader.draws(encoded, model.head, [draw], model.recipe.seed)[1][0]
    phi = reader.features(encoded)
    if not isinstance(model.head, GaussianHead | LinearHead):
        return phi
    with torch.no_grad():
        return model.head(phi.to(model.head.weight.device)).cpu()


def compare(model: BayesModel, plain: Plain, stock: Any, wanted: Tensor) -> float:
    """Return by how much a reloaded model differs, relative to the largest number.

    Args:
        model: what was exported.
        plain: at its mean or at a draw.
        stock: a classifier, or a bare transformer, whose states are pooled here.
        wanted: from `expected`.

    Raises:
        StoreError: if it differs by more than rounding.
    """
    device, dtype = model.backbone.device, model.backbone.dtype
    if not is_quantised(model.backbone.transformer.config):  # else it is where it was loaded
        stock = stock.to(device)
    keep_gradients(stock.eval())  # the same kernels, as it is the weights that are compared
    found = []
    for ids in _encoded(model).ids:  # one by one, so that no convention of padding takes part
        tokens = torch.tensor([ids], device=device)  # (1, T)
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            out = stock(input_ids=tokens, attention_mask=mask)
        if hasattr(out, "logits"):
            found.append(out.logits.float())
            continue
        phi = POOLING[model.backbone.pooling](out.last_hidden_state, mask).float()  # (1, D)
        found.append(phi if plain.score is None else phi @ plain.score.to(phi).T)
    gap = float((torch.cat(found).cpu() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
    if not gap <= TOLERANCE[dtype]:
        raise StoreError(
            f"What was written differs from the model by {gap:.1e} of its largest number; expected "
            f"at most {TOLERANCE[dtype]:g}. Nothing was kept; please report it."
        )
    return gap


def _encoded(model: BayesModel) -> Encoded:
    return Encoded([list(model.tokenizer(text)["input_ids"]) for text in _TEXTS], None, 0)
