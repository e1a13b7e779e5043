"""The runs that are served, over as few copies of their backbones as there can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayestune import store
from bayestune.backbone import SharedBases
from bayestune.errors import BayestuneError, ConfigError
from bayestune.model import BayesModel
from bayestune.serve.inputs import columns, read_inputs
from bayestune.serve.rows import Asked, Row, answer
from bayestune.store.manifest import read_manifest


@dataclass(frozen=True)
class Served:
    """One run.

    Attributes:
        name: by which requests choose it.
        model: predicts.
        version: digest of what was learnt; another one is another model.
        card: what the model says of itself, in Markdown.
        measured: what ``eval --card`` found of it; None where nothing.
    """

    name: str
    model: BayesModel
    version: str
    card: str
    measured: Mapping[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what a client may want to know, JSON-ready."""
        model = self.model
        found: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "method": model.method.name,
            "base": Path(model.source.name).name if model.source.local else model.source.name,
            "kind": model.task.kind,
            "labels": list(model.labels),
            "columns": columns(model.task),
            "max_tokens": model.max_length,
            "reference": model.notes.get("reference"),
            "measured": self.measured,
        }
        rules = {} if model.guarantees is None else model.guarantees.report()
        return found | {key: rules.get(key) for key in ("sets", "abstain")}

    def rows(self, inputs: Sequence[Any], longest: int, asked: Asked, clock: Any) -> list[Row]:
        """Read and encode the rows of a request; see `read_inputs`."""
        loop, now = clock, clock.time()
        task = read_inputs(self.model.task, inputs, longest)
        whole = self.model.tokenize(task)
        single = map(self.model.tokenize, (task.select([i]) for i in range(len(task.examples))))
        # Which ones of several were cut is not known.
        parts = single if whole.truncated else (whole.select([i]) for i in range(len(whole.ids)))
        return [
            Row(one, encoded, asked, now, loop.create_future())
            for one, encoded in zip(task, parts, strict=True)
        ]


class Runs:
    """Runs by name; the first is answered with where a request names none.

    Args:
        folders: run folders, or their model folders; ``NAME=FOLDER`` gives a name, which is that of
            the folder otherwise.
        **options: of `bayestune.load`: ``device``, ``dtype``, ``samples``, ``base``.

    Raises:
        ConfigError: if there is none, or two have one name.
        StoreError, ModelError: if one cannot be loaded.
    """

    def __init__(self, folders: Sequence[str], **options: Any) -> None:
        if not folders:
            raise ConfigError("there is no run to serve: name at least one folder.")
        self._runs: dict[str, Served] = {}
        bases = SharedBases()
        for given in folders:
            name, folder = split_name(given)
            if name in self._runs:
                raise ConfigError(
                    f"two runs are called {name!r}; give one another name, as NAME=FOLDER."
                )
            self._runs[name] = _load(name, folder, bases, options)

    def __iter__(self) -> Any:
        return iter(self._runs.values())

    def get(self, name: str | None) -> Served | None:
        """Return a run, the first for no name, None where there is none of this name."""
        return next(iter(self)) if name is None else self._runs.get(name)

    def answer(self, run: str, rows: Sequence[Row]) -> list[dict[str, Any] | BayestuneError]:
        """Answer the rows of one pass."""
        return answer(self._runs[run].model, rows)


def split_name(given: str) -> tuple[str, str]:
    """Return the name and the folder of ``NAME=FOLDER`` or ``FOLDER``."""
    name, equals, folder = given.partition("=")
    if equals and name and "/" not in name and not Path(given).exists():
        return name, folder
    path = Path(given).absolute()
    return (path.parent.name if path.name == "model" else path.name), given


def _load(name: str, folder: str, bases: SharedBases, options: dict[str, Any]) -> Served:
    model = store.load(folder, bases=bases, **options)
    where = store.model_folder(folder)
    digest = read_manifest(where)["digest"]
    found = store.read_measured(where, digest) or {}
    measured = {key: found[key] for key in ("data", "metrics", "bins") if key in found}
    return Served(name, model, digest[:16], store.read_card(where), measured or None)
