"""The side-car of a served backbone: all of a model that is left and right of its forward pass.

posterior.safetensors    the head, its mean as score.weight, the density of the features, the probe
bayestune.json           method, task, scaling, recipe, checksums: as in a stored model
tokenizer files          the backbone's own
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayestune import methods
from bayestune.backbone import Source, load_tokenizer
from bayestune.data import Encoded, Scaling, Task
from bayestune.errors import ConfigError, DataError, StoreError
from bayestune.files import checksum, under, verify, write_json
from bayestune.head import GenerativeHead, Noise
from bayestune.model import BayesModel
from bayestune.posterior.observed import Observed
from bayestune.prediction import Prediction, RegressionPrediction
from bayestune.preprocessor import Preprocessor
from bayestune.readout import Readout
from bayestune.store.manifest import (
    MANIFEST,
    digest_of,
    manifest_of,
    read_manifest,
    unreadable,
)
from bayestune.store.model import (
    HEADS,
    METADATA,
    POSTERIOR,
    SAMPLE,
    WEIGHTS,
    new_head,
    posterior_tensors,
    read_density,
    read_recipe,
    save_tokenizer,
    wrong,
)

#: The folder of a side-car within an export.
SIDECAR = "posterior"
_MEAN = "score.weight"
_PROBE = "probe."


@dataclass(frozen=True)
class Probe:
    """A prompt and what the exported adapter makes of it: another adapter makes something else.

    Attributes:
        ids: token ids.
        state: pooled feature ``(D,)`` in fp32.
    """

    ids: list[int]
    state: Tensor


@dataclass(frozen=True)
class Sidecar:
    """What stands beside a server that turns token ids into pooled features.

    Attributes:
        preprocessor: from texts to token ids.
        readout: from pooled features to predictions.
        probe: by which the server's adapter is known.
        version: digest of what was learnt; another one is another model.
    """

    preprocessor: Preprocessor
    readout: Readout
    probe: Probe
    version: str

    def predict(
        self, observed: Observed, mask: Tensor | None = None
    ) -> Prediction | RegressionPrediction:
        """Predict from pooled features ``(N, D)``; see `Readout.predict`."""
        return self.readout.predict(observed, mask)


def probe(model: BayesModel) -> Probe:
    """Return the probe of a model as its adapter stands."""
    ids = list(model.tokenizer(SAMPLE)["input_ids"])[: model.max_length]
    (state,) = model.reader().features(Encoded([ids], None, 0))
    return Probe(ids, state)


def save_sidecar(model: BayesModel, folder: Path, probe: Probe, mean: Tensor | None = None) -> None:
    """Write what turns texts into token ids, and pooled features into predictions.

    Args:
        model: the model.
        folder: an empty folder.
        probe: of the adapter that goes with it.
        mean: rows ``(K, D)`` in the place of the posterior mean, under a draw of them.
    """
    tensors = {k: t for k, t in posterior_tensors(model).items() if not k.startswith(WEIGHTS)}
    if not isinstance(model.head, GenerativeHead):
        rows = model.head.weight.detach() if mean is None else mean  # pyright: ignore
        tensors[_MEAN] = rows.cpu().contiguous()
    tensors[f"{_PROBE}ids"] = torch.tensor(probe.ids)
    tensors[f"{_PROBE}state"] = probe.state.float().cpu().contiguous()
    save_file(tensors, folder / POSTERIOR, METADATA)
    save_tokenizer(model.tokenizer, folder)
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    manifest = manifest_of(model, {name: checksum(folder / name) for name in files})
    manifest["reads"] = {"decoder": model.backbone.decoder, "max_length": model.max_length}
    write_json(folder / MANIFEST, manifest | {"digest": digest_of(manifest)})


def open_sidecar(path: str | Path) -> Sidecar:
    """Open a side-car: `Sidecar.predict` then takes the pooled features that a server returns.

    Where the adapter is random too, this is the head alone: average the probabilities over draws.

    Args:
        path: an export's folder, or its side-car itself.

    Raises:
        StoreError: if there is none, or it is damaged.
    """
    folder = _folder(Path(path))
    manifest = read_manifest(folder)
    try:
        task, recipe = Task.from_schema(manifest["task"]), read_recipe(manifest)
        kind, checksums = HEADS[manifest["head"]["kind"]], {POSTERIOR: "", **manifest["checksums"]}
        scaling = Scaling(**manifest.get("scaling", {}))
        decoder, length = manifest["reads"]["decoder"], manifest["reads"]["max_length"]
    except (KeyError, TypeError, AttributeError, ConfigError, DataError) as error:
        raise unreadable(folder, manifest, wrong(error)) from error
    verify(folder, checksums)
    posterior = _tensors(folder, _MEAN if kind is not GenerativeHead else "head.centre")
    known = Probe(posterior[f"{_PROBE}ids"].tolist(), posterior[f"{_PROBE}state"])
    width = len(known.state)
    noise = None
    if task.kind == "regression":
        noise = Noise(recipe.head.noise, in_features=width)
    head: Any = new_head(kind, width, task.outputs, noise)
    head.load_posterior(under("head.", posterior))
    if kind is not GenerativeHead:
        with torch.no_grad():
            head.weight.copy_(posterior[_MEAN])
    density = read_density(posterior, task.outputs, width)
    method = methods.get(recipe.method)
    tokenizer = load_tokenizer(Source(str(folder), str(folder), None, ""))
    return Sidecar(
        Preprocessor(task, recipe.prompt, tokenizer, decoder, length),
        Readout(method, recipe.predict, head, task.labels, density, scaling),
        known,
        manifest["digest"][:16],
    )


def _folder(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    if (path / "sample-0").is_dir():
        raise StoreError(f"{path} holds several draws; open one of them, such as {path}/sample-0.")
    return path / SIDECAR


def _tensors(folder: Path, mean: str) -> dict[str, Tensor]:
    try:
        posterior = load_file(folder / POSTERIOR)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{folder} is damaged: {error}.") from error
    for name in (mean, f"{_PROBE}ids", f"{_PROBE}state"):
        if name not in posterior:
            raise StoreError(f"{folder / POSTERIOR} has no {name}.")
    return posterior
