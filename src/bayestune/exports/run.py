"""The one way into every form: checked, written beside its place, moved there when complete.

export.json               form, what was kept and left out, what it was made from, checksums
README.md                 how it is loaded, and what to feed it
sample-0, sample-1, …     one folder for each draw, where draws are asked for
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from bayestune.errors import ConfigError, StoreError, nearest
from bayestune.exports import gguf_ready, lora, merged, vllm
from bayestune.exports.account import account
from bayestune.exports.card import card
from bayestune.exports.check import compare, expected
from bayestune.exports.plain import Plain, draws, plain
from bayestune.files import checksum, new_folder, write_json
from bayestune.model import BayesModel
from bayestune.progress import Progress, silent
from bayestune.store import SIDECAR, load
from bayestune.store.manifest import manifest_of

FORMAT = 1
DESCRIPTION = "export.json"


class Form(Protocol):
    """What every file of a form defines."""

    @property
    def LIBRARY(self) -> str: ...

    def require(self, model: BayesModel) -> None: ...

    def write(
        self, model: BayesModel, plain: Plain, folder: Path, *, shard_size: str | None, keep: bool
    ) -> None: ...

    def reload(self, model: BayesModel, folder: Path) -> Any: ...

    def usage(self, model: BayesModel, places: list[str]) -> str: ...


FORMS: dict[str, Form] = {"lora": lora, "merged": merged, "vllm": vllm, "gguf-ready": gguf_ready}
#: Forms in which the adapter is added to the base.
_WHOLE = ("merged", "gguf-ready")


def export(
    source: BayesModel | str | Path,
    *,
    to: str,
    out: str | Path,
    samples: int | None = None,
    overwrite: bool = False,
    check: bool = False,
    shard_size: str | None = None,
    base: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a model in a form that other software loads.

    ``lora`` is a folder for stock PEFT, ``merged`` a whole model for transformers, ``vllm``
    adapters and the posterior's side-car, ``gguf-ready`` what llama.cpp's converter takes.

    Args:
        source: a model, which is left as it is, or a run's folder. Of a folder, a whole model is
            merged in place, so that no weight is held twice.
        to: the form.
        out: the folder to create.
        samples: S draws of the adapter's weights, each in a folder of its own; None or 0 for the
            posterior's mean. An ensemble has none: all its members where None, the first where 0.
        overwrite: whether an earlier export may be replaced.
        check: load what was written by the software that it is for (vLLM and llama.cpp aside, for
            which transformers and PEFT stand in) and compare it with the model on two texts. It
            takes the memory of another base.
        shard_size: the largest weight file, such as ``5GB``; transformers' default where None.
        base: where a run's backbone is taken from, see `load`.
        device: where to load a run.
        dtype: of a run's frozen weights, and so of what is written.
        progress: how to report.

    Returns:
        The folder.

    Raises:
        ConfigError: if the model's method has no such form or draws.
        ModelError: if its base or adapter cannot be written so.
        StoreError: if ``out`` is taken or cannot be written, or a check fails: nothing is left.
    """
    if to not in FORMS:
        raise ConfigError(f"There is no form {to!r} to export to.{nearest(to, FORMS)}")
    if samples is not None and samples < 0:
        raise ConfigError(f"samples is {samples}; expected 0 or more.")
    out = Path(out)
    _require_place(out, overwrite)
    owned = not isinstance(source, BayesModel)
    if owned:
        model = load(source, base=base, device=device, dtype=dtype)
    elif base is not None or device is not None or dtype is not None:
        raise ConfigError("base, device and dtype say how a run is loaded; the model is loaded.")
    else:
        model = source
    form, asked = FORMS[to], draws(model, samples)
    form.require(model)
    gap, parts = 0.0, _parts(asked)
    with new_folder(out) as folder, progress(f"exporting to {to}", len(parts)) as advance:
        for name, draw in parts:
            place = folder / name
            place.mkdir(exist_ok=True)
            values = plain(model, draw)
            wanted = expected(model, draw) if check else None
            last = name == parts[-1][0]
            form.write(model, values, place, shard_size=shard_size, keep=not (owned and last))
            if wanted is not None:
                gap = max(gap, compare(model, values, form.reload(model, place), wanted))
            advance(1)
        sidecar = (folder / parts[0][0] / SIDECAR).is_dir()
        found = account(model, draws=len(asked), whole=to in _WHOLE, sidecar=sidecar)
        places = ["PATH" if name == "." else f"PATH/{name}" for name, _ in parts]
        usage = form.usage(model, places)
        text = card(model, to, form.LIBRARY, usage, found, places)
        (folder / "README.md").write_text(text, encoding="utf-8")
        described = {"format": FORMAT, "form": to, "draws": asked, **found}
        described |= {"largest_difference": gap if check else None}
        described |= {"model": manifest_of(model, {}), "files": _files(folder)}
        write_json(folder / DESCRIPTION, described)
    return out


def _parts(asked: list[int]) -> list[tuple[str, int | None]]:
    """Return folders and draws; one folder for the mean."""
    return [(f"sample-{s}", s) for s in asked] or [(".", None)]


def _require_place(out: Path, overwrite: bool) -> None:
    """Raise StoreError where something lies that was not to be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise StoreError(
            f"{out} holds something else than an export, which would be lost; give a new folder."
        )
    if not overwrite:
        raise StoreError(f"{out} holds an export already; overwrite replaces it (--overwrite).")


def _files(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        file.chmod(0o644)
    return {file.relative_to(folder).as_posix(): checksum(file) for file in files}
