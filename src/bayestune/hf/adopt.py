"""From what a Trainer has saved to a model with all public verbs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bayestune.data import LabelSet, Task
from bayestune.errors import ConfigError, StoreError
from bayestune.files import read_json, under
from bayestune.head import GaussianHead, LinearHead
from bayestune.head.families import TRAINED
from bayestune.model import BayesModel, build
from bayestune.peft import PolarConfig
from bayestune.progress import Progress, silent
from bayestune.store import fill
from bayestune.training.run import Journal
from bayestune.training.session import Session

_HEAD = "base_model.model.score."
_PLACE = re.compile(r"\.(\d+)\.(.+)\.(?:polar_X|lora_A\.weight)$")
_METHODS = {
    ("polar", True): "polar_vbll",
    ("polar", False): "polar_mle",
    ("lora", True): "lora_vbll",
    ("lora", False): "mle",
}
#: Options of an adapter that a recipe says, or that change nothing once it is trained.
_SAID = {
    *("r", "alpha", "dropout", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "task_type", "modules_to_save", "inference_mode"),
    *("base_model_name_or_path", "revision", "peft_type", "peft_version", "auto_mapping"),
}
#: Starts of LoRA that leave the backbone as it is.
_STARTS = (True, False, "gaussian", "orthogonal")
#: Nothing is chosen where no rows are held out.
_AS_TRAINED: dict[str, Any] = {"refresh": "none", "scale": 1.0, "temperature": "none"}


def to_bayes_model(
    folder: str | Path,
    labels: Task | LabelSet | Iterable[str],
    *,
    base: str | None = None,
    prompt: Mapping[str, Any] | None = None,
    train: Task | None = None,
    val: Task | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = silent,
) -> BayesModel:
    """Return a model that predicts, calibrates, saves and exports, from a Trainer's folder.

    Its predictions are those of ``trainer.predict``, but for the refresh and the temperature where
    ``val`` is given.

    Args:
        folder: what ``trainer.save_model``, ``model.save_pretrained`` or a checkpoint wrote: a
            decoder with PoLAR or LoRA and a head of `bayestune.head.install`.
        labels: the classes in the order of their indices, or a task that has them.
        base: where the backbone is; where it was loaded from in training, where absent.
        prompt: what was made of a text before the tokeniser, as in a recipe; where absent the bare
            text, ``{"template": "{text}"}``.
        train: the training rows. With them texts get a score of how unfamiliar they are, and
            ``val`` is of use.
        val: rows that were not trained on. By their likelihood covariance and temperature are
            chosen, as `bayestune.fit` does.
        device: where to.
        dtype: of the frozen weights.
        progress: how to report.

    Returns:
        The model; ``model.save`` writes the folder that `bayestune.load` reads.

    Raises:
        StoreError: the folder holds no such adapter, or it is damaged.
        ConfigError: the adapter is one that no recipe describes.
        ModelError: the backbone is not there.
    """
    if val is not None and train is None:
        raise ConfigError("val chooses among posteriors of the training rows: give train, too.")
    if isinstance(labels, Task) and labels.kind != "classification":
        raise ConfigError(f"The folder holds a classifier; {labels.title} is {labels.kind}.")
    folder = Path(folder)
    config, tensors = _read(folder)
    kind = "polar" if config["peft_type"] == "POLAR" else "lora"
    head = {name: t for name, t in under(_HEAD, tensors).items() if name != "weight"}
    gaussian = "log_prior_variance" in head
    layers, targets = _places(tensors, folder)
    model = build(
        _METHODS[kind, gaussian],
        base=base or config["base_model_name_or_path"],
        labels=labels,
        revision=config.get("revision") if base is None else None,
        device=device,
        dtype=dtype,
        adapter={
            "kind": kind,
            "rank": config["r"],
            "alpha": float(config["alpha" if kind == "polar" else "lora_alpha"]),
            "dropout": config["dropout" if kind == "polar" else "lora_dropout"],
            "layers": layers,
            "targets": targets,
        },
        head={"pooling": "last"},
        prompt={"template": "{text}", **(prompt or {})},
        finalize=_AS_TRAINED if val is None else {},
    )
    stored = {k: v for k, v in tensors.items() if k.removeprefix(_HEAD) not in head}
    beside = {f"head.{name}": t for name, t in head.items()}
    fill(model, GaussianHead if gaussian else LinearHead, stored, beside, folder)
    if isinstance(model.head, GaussianHead) and model.head.family in TRAINED:
        changed = replace(model.recipe.head, covariance=model.head.family)
        model.recipe = replace(model.recipe, head=changed)
    begun = {"trained_by": "transformers.Trainer"}
    model.notes = {"chosen": begun}
    if train is not None:
        model.adopt(train)
        session = Session(model, train, val, Journal(None), progress)
        session.run(resume=False, overwrite=False, started=time.monotonic(), begun=begun)
    return model


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of an adapter.

    Raises:
        StoreError: a file is missing or damaged, or has no head.
        ConfigError: it is no plain PoLAR or LoRA of a decoder.
    """
    file = folder / "adapter_model.safetensors"
    try:
        config, tensors = read_json(folder / "adapter_config.json"), load_file(file)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{folder} holds no PEFT adapter that can be read: {error}.") from error
    if config.get("peft_type") not in ("POLAR", "LORA"):
        raise ConfigError(f"{folder} holds {config.get('peft_type')}; expected POLAR or LORA.")
    plain = (PolarConfig if config["peft_type"] == "POLAR" else LoraConfig)().to_dict()
    for key, value in config.items():
        start = key == "init_lora_weights" and value in _STARTS
        if key not in _SAID and value != plain.get(key) and not start:
            raise ConfigError(f"{folder} has {key}={value!r}, which no recipe describes.")
    if any(".classifier." in name for name in tensors):
        raise ConfigError(
            f"{folder} is an encoder's classifier, which reads features of its own making; a "
            "recipe pools those of the last layer. Train encoders with bayestune.fit."
        )
    if not {"weight", "feature_energy"} <= under(_HEAD, tensors).keys():
        raise StoreError(
            f"{file} has no posterior: its classifier is not a head of bt.head.install."
        )
    return config, tensors


def _places(tensors: Mapping[str, Tensor], folder: Path) -> tuple[str, str]:
    """Return which layers are adapted and which modules of each, as a recipe has them.

    Raises:
        ConfigError: not every layer is adapted in the same modules.
    """
    found = [match.groups() for name in tensors if (match := _PLACE.search(name))]
    layers, paths = sorted({int(layer) for layer, _ in found}), {path for _, path in found}
    targets = sorted({path.rsplit(".", 1)[-1] for path in paths})
    if len(set(found)) != len(layers) * len(paths) or len(targets) != len(paths):
        raise ConfigError(
            f"{folder} adapts other modules in some layers than in others, which no recipe says."
        )
    return ",".join(map(str, layers)), ",".join(targets)
