"""Put a head in the place of the output layer of a sequence-classification model."""

from __future__ import annotations

import torch
from torch import nn

from bayestune.errors import ModelError
from bayestune.head.gaussian import GaussianHead
from bayestune.head.linear import LinearHead

# Decoders call it score, encoders classifier, and some encoders hide it behind a dense layer.
_PLACES = ("score", "classifier", "classifier.out_proj")


def install(
    model: nn.Module, head: GaussianHead | LinearHead | None = None, *, keep_mean: bool = False
) -> str:
    """Replace the output layer of a transformers sequence-classification model by a head.

    The stock forward then returns the posterior mean logits, because the head called on features
    does, and the stock checkpoint name (``score.weight``) holds the posterior mean.

    Args:
        model: model with a ``score`` or ``classifier`` linear layer, or an earlier head there.
        head: head with as many features and classes; it moves to the device of the layer. A
            `GaussianHead` of that size where absent.
        keep_mean: whether the head takes over the weights it replaces.

    Returns:
        Dotted name of the place.

    Raises:
        ModelError: there is no such layer, its shape differs, or it has a bias to keep.
    """
    name, old = _output_layer(model)
    if head is None:
        head = GaussianHead(in_features=old.weight.shape[1], num_classes=old.weight.shape[0])
    wanted = (head.num_classes, head.in_features)
    if tuple(old.weight.shape) != wanted:
        raise ModelError(
            f"{name} maps {old.weight.shape[1]} features to {old.weight.shape[0]} classes; the "
            f"head maps {wanted[1]} to {wanted[0]}. Load the model with num_labels={wanted[0]}."
        )
    if keep_mean:
        bias = getattr(old, "bias", None)
        if bias is not None and bool(bias.detach().any()):
            raise ModelError(
                f"{name} has a bias and the head has none: keep_mean is not possible here."
            )
        with torch.no_grad():
            head.weight.copy_(old.weight)
    head.to(old.weight.device)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, head)
    return name


def _output_layer(model: nn.Module) -> tuple[str, nn.Linear | GaussianHead | LinearHead]:
    modules = dict(model.named_modules())
    for name in _PLACES:
        layer = modules.get(name)
        if isinstance(layer, nn.Linear | GaussianHead | LinearHead):
            return name, layer
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"{type(model).__name__} is adapted already, and PEFT has made its own copy of the "
            "output layer. Install the head first, then call get_peft_model."
        )
    raise ModelError(
        f"{type(model).__name__} has no linear output layer at {', '.join(_PLACES)}. "
        "Load it with AutoModelForSequenceClassification."
    )
