"""A model on disk: a legal PEFT adapter with the posterior beside it.

adapter_config.json, adapter_model.safetensors    what stock PEFT loads: the mean classifier
posterior.safetensors                              everything else that defines the posterior
bayestune.json                                     format, method, task, prompt, checksums
tokenizer files                                    so that the folder stands alone
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayestune import methods
from bayestune.backbone import resolve
from bayestune.config import Recipe, from_mapping, to_mapping
from bayestune.data import Task
from bayestune.errors import BayestuneError, ModelError, StoreError
from bayestune.head import GaussianHead, LinearHead
from bayestune.metrics import Density
from bayestune.model import BayesModel, assemble
from bayestune.store.files import checksum, new_folder, read_json, verify, write_json
from bayestune.version import __version__

FORMAT = 1
MANIFEST = "bayestune.json"
ADAPTER = "adapter_model.safetensors"
POSTERIOR = "posterior.safetensors"
_DENSITY = "density."
_METADATA = {"format": "pt"}
_CHECKED = (ADAPTER, "adapter_config.json", POSTERIOR)


def save(model: BayesModel, path: str | Path) -> Path:
    """Write a model atomically; what was there before is replaced only by a complete one.

    Args:
        model: the model.
        path: the folder.

    Returns:
        The folder.

    Raises:
        StoreError: if it cannot be written.
    """
    path = Path(path)
    with new_folder(path) as folder:
        model.backbone.peft_model.save_pretrained(folder)
        save_file(_without_posterior(load_file(folder / ADAPTER)), folder / ADAPTER, _METADATA)
        model.tokenizer.save_pretrained(folder)
        save_file(_posterior_tensors(model), folder / POSTERIOR, _METADATA)
        for file in folder.iterdir():
            file.chmod(0o644)
        checksums = {name: checksum(folder / name) for name in _CHECKED}
        write_json(folder / MANIFEST, _manifest(model, checksums))
    return path


def load(path: str | Path, *, base: str | None = None, device: str | None = None) -> BayesModel:
    """Load a saved model (or the model of a run) as it was, bit by bit.

    Args:
        path: a run's folder or its ``model`` folder.
        base: another place to take the same backbone from.
        device: where to; the recipe's where absent.

    Raises:
        StoreError: if a part is missing, damaged or of another format.
        ModelError: if the backbone is another one.
    """
    folder = model_folder(path)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise StoreError(
            f"{folder / MANIFEST} has format {found!r}; this version reads {FORMAT}. Install the "
            f"bayestune that wrote it ({_written_by(manifest)}) or train again."
        )
    try:
        recipe = _recipe(manifest, base, device)
        task = Task.from_schema(manifest["task"])
        verify(folder, manifest["checksums"])
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder / MANIFEST} is damaged: {error} is missing or wrong.") from error
    source = resolve(recipe.model, recipe.revision)
    if source.fingerprint != manifest["base"]["fingerprint"]:
        raise ModelError(
            f"The backbone {recipe.model!r} is not the one that {folder} was trained on "
            f"({source.fingerprint} instead of {manifest['base']['fingerprint']})."
        )
    model = assemble(recipe, task)
    try:
        stored = load_file(folder / ADAPTER)
        posterior = load_file(folder / POSTERIOR)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{folder} is damaged: {error}.") from error
    _restore_head(model, manifest["head"], posterior)
    _restore_adapter(model, stored, posterior, folder)
    model.density = _density(posterior)
    model.notes = manifest.get("notes", {})
    return model


def model_folder(path: str | Path) -> Path:
    """Return the folder of the model, given it or the run around it.

    Raises:
        StoreError: if neither is there.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / MANIFEST).is_file():
            return folder
    if not path.exists():
        raise StoreError(f"{path} does not exist; expected a run or a model saved by bayestune.")
    if (path / "adapter_config.json").is_file():
        raise StoreError(f"{path} is a PEFT adapter without {MANIFEST}: it has no posterior.")
    hint = ""
    if (path / "checkpoint").is_dir():
        hint = " Its training did not finish: continue it with bayestune train --resume."
    raise StoreError(f"{path} is not a run: it has no {MANIFEST} and no model/{MANIFEST}.{hint}")


def _without_posterior(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what stock PEFT is to find, the adapter and the mean; servers refuse other names."""
    return {k: v for k, v in state.items() if ".score." not in k or k.endswith("score.weight")}


def _posterior_tensors(model: BayesModel) -> dict[str, Tensor]:
    tensors = {f"head.{k}": v for k, v in model.head.posterior_tensors().items()}  # pyright: ignore
    if model.backbone.peft_model.peft_config["default"].task_type != "SEQ_CLS":
        # An encoder's adapter folder has no place for the mean; it stands here.
        tensors["score.weight"] = model.head.weight.detach()  # pyright: ignore
    if model.density is not None:
        for name in ("means", "whitening", "present"):
            tensors[_DENSITY + name] = getattr(model.density, name)
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _manifest(model: BayesModel, checksums: dict[str, str]) -> dict[str, Any]:
    import peft
    import transformers

    head: dict[str, Any] = {"kind": type(model.head).__name__}
    if isinstance(model.head, GaussianHead):
        head |= {"family": model.head.family, "prior": model.head.prior}
    return {
        "format": FORMAT,
        "method": model.method.name,
        "head": head,
        "task": model.task.schema(),
        "pooling": model.backbone.pooling,
        "base": {
            "name": model.source.name,
            "revision": model.source.revision,
            "fingerprint": model.source.fingerprint,
        },
        "recipe": to_mapping(model.recipe),
        "notes": model.notes,
        "versions": {
            "bayestune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
        "checksums": checksums,
    }


def _recipe(manifest: dict[str, Any], base: str | None, device: str | None) -> Recipe:
    data = dict(manifest["recipe"])
    if base is not None:
        data["model"] = base
    if device is not None:
        data["device"] = device
    try:
        recipe = from_mapping(data)
        methods.get(recipe.method)
    except BayestuneError as error:
        raise StoreError(f"The recipe in {MANIFEST} is damaged: {error}") from error
    return recipe


def _restore_head(model: BayesModel, kind: dict[str, Any], posterior: dict[str, Tensor]) -> None:
    """Give the model a head of the stored kind: a refreshed point head has become Gaussian."""
    shape = {"in_features": model.head.in_features, "num_classes": model.head.num_classes}  # type: ignore
    head = model.head
    if kind["kind"] == "LinearHead" and not isinstance(head, LinearHead):
        head = LinearHead(**shape)  # pyright: ignore
    if kind["kind"] == "GaussianHead" and not isinstance(head, GaussianHead):
        head = GaussianHead(**shape)  # pyright: ignore
    head.load_posterior(  # pyright: ignore[reportCallIssue]
        {k.removeprefix("head."): v for k, v in posterior.items() if k.startswith("head.")}
    )
    model.set_head(head.to(model.backbone.device))


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
    mean = next((v for k, v in stored.items() if k.endswith("score.weight")), None)
    if mean is None:
        mean = posterior.get("score.weight")
    if mean is None or mean.shape != model.head.weight.shape:  # pyright: ignore
        raise StoreError(f"{folder} has no posterior mean score.weight of the right shape.")
    with torch.no_grad():
        model.head.weight.copy_(mean)  # pyright: ignore


def _density(posterior: dict[str, Tensor]) -> Density | None:
    parts = {k.removeprefix(_DENSITY): v for k, v in posterior.items() if k.startswith(_DENSITY)}
    return Density(**parts) if parts else None


def _written_by(manifest: Any) -> str:
    try:
        return str(manifest["versions"]["bayestune"])
    except (KeyError, TypeError):
        return "unknown version"


__all__ = ["load", "model_folder", "save"]
