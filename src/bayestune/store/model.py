"""A model on disk: a legal PEFT adapter with the posterior beside it.

adapter_config.json, adapter_model.safetensors    what stock PEFT loads: the mean classifier
posterior.safetensors                              everything else that defines the posterior
bayestune.json                                     format, method, task, prompt, checksums
guarantees.json                                    sets and abstention, where it is calibrated
evaluation.json, reliability-….png                 what was measured of it, where it was
README.md                                          the card: all of this in words
tokenizer files                                    so that the folder stands alone
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayestune import methods
from bayestune.backbone import SharedBases, Source, load_tokenizer, resolve
from bayestune.config import Recipe, from_mapping
from bayestune.data import Scaling, Task
from bayestune.errors import BayestuneError, ConfigError, DataError, ModelError, StoreError
from bayestune.files import checksum, new_folder, under, verify, write_json
from bayestune.finalize import require_predictive
from bayestune.head import GaussianHead, GenerativeHead, LinearHead, Noise, OrdinalHead
from bayestune.metrics import Density
from bayestune.model import BayesModel, assemble
from bayestune.store.card import write_card
from bayestune.store.guarantees import read_guarantees, write_guarantees
from bayestune.store.manifest import (
    MANIFEST,
    manifest_of,
    model_folder,
    read_manifest,
    unreadable,
)

ADAPTER = "adapter_model.safetensors"
POSTERIOR = "posterior.safetensors"
_DENSITY = "density."
WEIGHTS = "weights."
METADATA = {"format": "pt"}
HEADS = {kind.__name__: kind for kind in (GaussianHead, LinearHead, GenerativeHead, OrdinalHead)}
#: A text by which tokenizers and adapters are told apart; what it says does not matter.
SAMPLE = "The quick brown fox jumps over the lazy dog, and nobody asked it why."
_CHECKED = (ADAPTER, "adapter_config.json", POSTERIOR)


def save(model: BayesModel, path: str | Path) -> Path:
    """Write a model atomically; what was there before is replaced only by a complete one.

    Args:
        model: the model.
        path: the folder.

    Returns:
        The folder.

    Raises:
        StoreError: if it cannot be written, or other files lie there, which would be lost.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file() and not _is_empty(path):
        raise StoreError(
            f"{path} holds something else than a model; give a new folder, or one that holds a "
            "model to replace."
        )
    with new_folder(path) as folder:
        model.backbone.peft_model.save_pretrained(folder)
        save_file(_without_posterior(load_file(folder / ADAPTER)), folder / ADAPTER, METADATA)
        save_tokenizer(model.tokenizer, folder)
        save_file(posterior_tensors(model), folder / POSTERIOR, METADATA)
        for file in folder.iterdir():
            file.chmod(0o644)
        checksums = {name: checksum(folder / name) for name in _CHECKED}
        manifest = manifest_of(model, checksums)
        write_json(folder / MANIFEST, manifest)
        write_guarantees(model, folder, manifest["digest"])
        write_card(folder)
    return path


def load(
    path: str | Path,
    *,
    base: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    samples: int | None = None,
    bases: SharedBases | None = None,
) -> BayesModel:
    """Load a saved model (or the model of a run) as it was, bit by bit.

    Args:
        path: a run's folder or its ``model`` folder.
        base: another place to take the same backbone from: a Hub id, a folder, a file.
        device: where to; the recipe's where absent.
        dtype: of the frozen weights; the one it was trained in where absent.
        samples: draws of the posterior, 0 for its mean; as the recipe says where absent.
        bases: backbones of models loaded before, whose weights are shared where they are the same.

    Raises:
        ConfigError: if ``samples`` is out of range.
        StoreError: if a part is missing, damaged or of another format.
        ModelError: if the backbone is another one.
    """
    folder = model_folder(path)
    manifest = read_manifest(folder)
    try:
        recipe = read_recipe(manifest)
        task = Task.from_schema(manifest["task"])
        scaling = Scaling(**manifest["scaling"]) if task.kind == "regression" else Scaling()
        known, kind = manifest["base"], HEADS[manifest["head"]["kind"]]
        fingerprint, weights, trained = known["fingerprint"], known["weights"], known["dtype"]
        verify(folder, dict.fromkeys(_CHECKED, "") | manifest["checksums"])
    except (KeyError, TypeError, AttributeError, ConfigError, DataError) as error:
        raise unreadable(folder, manifest, wrong(error)) from error
    given = {"model": base, "device": device, "dtype": dtype}
    recipe = replace(recipe, **{key: value for key, value in given.items() if value is not None})
    revision = known["revision"] if base is None else recipe.revision
    source = resolve(recipe.model, revision)
    model = assemble(recipe, task, source=source, dtype=dtype or trained, bases=bases)
    if source.fingerprint != fingerprint:
        # Other files may hold the same weights: a Hub model and its copy, or another way to cut
        # them. Where it was trained they are to be the same files.
        moved = base is not None or not source.local
        if not moved or model.source.weights != weights or not _reads_alike(model, folder):
            raise ModelError(
                f"The backbone {recipe.model!r} is not the one that {folder} was trained on "
                f"({source.fingerprint} instead of {fingerprint}): another one, damaged, or with "
                "another tokenizer. Where it is the same in other files, give its place with base=."
            )
    posterior = restore(model, kind, folder)
    if model.backbone.weights is not None:
        model.backbone.weights.load(under(WEIGHTS, posterior))
    model.density = read_density(posterior, task.outputs, model.head.in_features)  # pyright: ignore
    model.scaling = scaling
    model.notes = manifest.get("notes", {})
    if samples is not None:
        model.recipe = replace(recipe, predict=replace(recipe.predict, samples=samples))
        require_predictive(model.recipe, model.head, model.backbone.weights, len(model.labels))
    model.guarantees = read_guarantees(model, folder, manifest["digest"])
    return model


def restore(model: BayesModel, kind: type[nn.Module], folder: Path) -> dict[str, Tensor]:
    """Put a stored adapter and head into a model; return all that stands beside the adapter.

    Raises:
        StoreError: if a file is damaged or does not fit the model.
    """
    try:
        stored = load_file(folder / ADAPTER)
        posterior = load_file(folder / POSTERIOR)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{folder} is damaged: {error}.") from error
    fill(model, kind, stored, posterior, folder)
    return posterior


def fill(
    model: BayesModel,
    kind: type[nn.Module],
    stored: dict[str, Tensor],
    posterior: dict[str, Tensor],
    folder: Path,
) -> None:
    """Put the tensors of an adapter and of what stands beside it into a model.

    Raises:
        StoreError: if they do not fit the model, naming the folder they are from.
    """
    _restore_head(model, kind, posterior)
    _restore_adapter(model, stored, posterior, folder)


def _reads_alike(model: BayesModel, folder: Path) -> bool:
    """Whether a backbone's tokenizer is the one that was stored with the model."""
    own, other = load_tokenizer(Source(str(folder), str(folder), None, "")), model.tokenizer
    facts = ("chat_template", "model_max_length", "bos_token", "eos_token", "pad_token")
    return (
        own(SAMPLE)["input_ids"] == other(SAMPLE)["input_ids"]
        and own.get_vocab() == other.get_vocab()
        and all(getattr(own, name, None) == getattr(other, name, None) for name in facts)
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files of a tokenizer."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The tokenizers library raises Exception itself for a full disk; others pass through.
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise


def _without_posterior(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what stock PEFT is to find, the adapter and the mean; servers refuse other names."""
    return {k: v for k, v in state.items() if ".score." not in k or k.endswith("score.weight")}


def posterior_tensors(model: BayesModel) -> dict[str, Tensor]:
    """Return all that defines the posterior beside what PEFT saves."""
    tensors = {f"head.{k}": v for k, v in model.head.posterior_tensors().items()}  # pyright: ignore
    adapter = model.backbone.peft_model.peft_config["default"]
    if adapter.task_type != "SEQ_CLS" and not isinstance(model.head, GenerativeHead):
        # An encoder's adapter folder has no place for the mean; it stands here.
        tensors["score.weight"] = model.head.weight.detach()  # pyright: ignore
    if model.backbone.weights is not None:
        tensors |= {WEIGHTS + k: v for k, v in model.backbone.weights.tensors().items()}
    if model.density is not None:
        for name in ("means", "whitening", "present", "counts", "shrinkage"):
            if (tensor := getattr(model.density, name)) is not None:
                tensors[_DENSITY + name] = tensor
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def read_recipe(manifest: dict[str, Any]) -> Recipe:
    """Return the recipe of a stored model."""
    return methods.checked(from_mapping(manifest["recipe"]))


def wrong(error: Exception) -> str:
    """Return what a description lacks or has too much, as a clause."""
    if isinstance(error, BayestuneError):
        return str(error).rstrip(".")
    return f"{error} is missing or wrong"


def _restore_head(model: BayesModel, kind: type[nn.Module], posterior: dict[str, Tensor]) -> None:
    """Give the model a head of the stored kind: a refreshed point head has become Gaussian."""
    head: Any = model.head
    if type(head) is not kind:
        noise = getattr(head, "noise", None)
        head = new_head(kind, head.in_features, head.num_classes, noise)
    head.load_posterior(  # pyright: ignore[reportCallIssue]
        under("head.", posterior)
    )
    model.set_head(head.to(model.backbone.device))


def new_head(kind: type[nn.Module], in_features: int, classes: int, noise: Noise | None) -> Any:
    """Return a head of a stored kind, which its tensors are to be put into."""
    options: dict[str, Any] = {"in_features": in_features, "num_classes": classes}
    if kind in (GaussianHead, LinearHead):
        options["noise"] = noise
    return kind(**options)


def _restore_adapter(
    model: BayesModel, stored: dict[str, Tensor], posterior: dict[str, Tensor], folder: Path
) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    peft_model = model.backbone.peft_model
    present = get_peft_model_state_dict(peft_model)
    expected = _without_posterior(present)
    wrong = sorted(set(expected) ^ set(stored))
    wrong += [k for k in expected if k in stored and expected[k].shape != stored[k].shape]
    if wrong:
        raise StoreError(
            f"{folder / ADAPTER} does not fit the model: {wrong[0]} is missing, unknown or of "
            "another shape."
        )
    set_peft_model_state_dict(peft_model, present | stored)
    if isinstance(model.head, GenerativeHead):
        return
    mean = next((v for k, v in stored.items() if k.endswith("score.weight")), None)
    if mean is None:
        mean = posterior.get("score.weight")
    if mean is None or mean.shape != model.head.weight.shape:  # pyright: ignore
        raise StoreError(f"{folder} has no posterior mean score.weight of the right shape.")
    with torch.no_grad():
        model.head.weight.copy_(mean)  # pyright: ignore


def read_density(posterior: dict[str, Tensor], classes: int, width: int) -> Density | None:
    """Return the feature density of a stored model, if it has one."""
    parts = under(_DENSITY, posterior)
    if not parts:
        return None
    shapes = {"means": (classes, width), "whitening": (width, width), "present": (classes,)}
    if "counts" in parts:  # which earlier versions did not keep
        shapes |= {"counts": (classes,), "shrinkage": ()}
    if {name: tuple(part.shape) for name, part in parts.items()} != shapes:
        raise StoreError(f"{POSTERIOR} has a feature density of other classes or features.")
    return Density(**parts)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


__all__ = ["MANIFEST", "fill", "load", "model_folder", "restore", "save"]
