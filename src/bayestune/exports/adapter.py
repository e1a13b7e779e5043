"""The folder of a plain LoRA, under the names of the model it is to be put on."""

from __future__ import annotations

from pathlib import Path

from bayestune.exports.plain import Plain
from bayestune.model import BayesModel
from bayestune.peft import lora_settings, write_lora

_ROOT = "base_model.model."


def write_adapter(
    model: BayesModel, plain: Plain, folder: Path, *, classifier: bool, prefix: str | None = None
) -> None:
    """Write a LoRA folder.

    Args:
        model: whose settings it has.
        plain: its factors, and the rows of a classifier.
        folder: where.
        classifier: whether ``score.weight`` goes along and the task is classification; else it is
            an adapter of the bare transformer.
        prefix: what its keys put before a path in the transformer; the classifier's own name of it,
            or nothing, where None.
    """
    if prefix is None:
        prefix = name_of_transformer(model) if classifier else ""
    settings = lora_settings(model.backbone.peft_model.peft_config["default"])
    settings["task_type"] = "SEQ_CLS" if classifier else "FEATURE_EXTRACTION"
    settings["modules_to_save"] = ["classifier", "score"] if classifier else None
    settings["revision"] = model.source.revision
    tensors = {}
    for path, (A, B) in plain.factors.items():
        tensors[f"{_ROOT}{prefix}{path}.lora_A.weight"] = A
        tensors[f"{_ROOT}{prefix}{path}.lora_B.weight"] = B
    if classifier:
        assert plain.score is not None
        tensors[f"{_ROOT}score.weight"] = plain.score
    write_lora(folder, settings, tensors)


def name_of_transformer(model: BayesModel) -> str:
    """Return what stands before the names of a transformer in a model with a head on it."""
    return f"{model.backbone.transformer.base_model_prefix}."  # pyright: ignore
