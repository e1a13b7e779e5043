"""What a run logs elsewhere while it goes: to TensorBoard, trackio, Weights & Biases or MLflow.

accelerate has a class for each with the same four verbs; no `Accelerator` is needed. What cannot
be started stops a run before it trains; what fails later does not stop it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bayestune.errors import ConfigError, nearest

#: By accelerate's names, which are those of the packages too.
NAMES = ("tensorboard", "trackio", "wandb", "mlflow")
PROJECT = "bayestune"

logger = logging.getLogger(__name__)


def wanted(track: str | Iterable[str]) -> tuple[str, ...]:
    """Return the trackers that are asked for, each once.

    Args:
        track: names, or one text of names with commas between them.

    Raises:
        ConfigError: if one is unknown or not installed.
    """
    texts = [track] if isinstance(track, str) else track
    names = dict.fromkeys(name.strip() for text in texts for name in text.split(","))
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"there is no tracker {name!r}.{nearest(name, NAMES)}")
        if find_spec(name) is None:
            raise ConfigError(
                f"{name} is not installed, so nothing can be tracked with it: pip install {name}."
            )
    return tuple(names)


class Trackers:
    """The trackers of one run; metrics.jsonl is written with or without any.

    Args:
        names: from `wanted`.
        out: the run's folder, in which TensorBoard keeps its files.

    Raises:
        ConfigError: if TensorBoard is asked for and there is no folder.
    """

    def __init__(self, names: Iterable[str], out: Path | None) -> None:
        self.names, self.out = tuple(names), out
        self._started: dict[str, Any] = {}
        self._failed: set[str] = set()
        self._axes: set[str] = set()
        if "tensorboard" in self.names and out is None:
            raise ConfigError("tensorboard keeps its files in the run's folder: give out.")

    @contextmanager
    def started(self, run: str, config: Mapping[str, Any], tags: list[str]) -> Iterator[None]:
        """Hold the trackers open.

        Args:
            run: the name of the run.
            config: what determines it, nested.
            tags: words to find it by, where a tracker has them.

        Raises:
            ConfigError: if one cannot be started.
        """
        try:
            for name in self.names:
                try:
                    self._start(name, run, config, tags)
                except Exception as error:
                    raise ConfigError(
                        f"{name} could not be started: {_line(error)}. Nothing was trained; run "
                        f"without it, or offline where it can{_OFFLINE.get(name, '')}."
                    ) from error
            yield
        finally:
            for name, tracker in self._started.items():
                self._try(name, tracker.finish)
            self._started = {}

    def log(self, row: Mapping[str, Any], prefix: str = "") -> None:
        """Log the numbers of a row at its epoch; tables within it stay in metrics.jsonl.

        Args:
            row: by name, with its ``epoch``.
            prefix: what keeps a candidate or a member apart, such as ``member_1/``; dots in it
                and in names become underscores.
        """
        prefix = prefix.replace(".", "_")  # wandb takes a dot in a name for a level
        values = {prefix + k.replace(".", "_"): v for k, v in row.items() if _number(v)}
        for name, tracker in self._started.items():
            if name != "wandb":
                self._try(name, lambda t=tracker: t.log(values, step=row["epoch"]))
                continue
            # Its own steps only rise, and every candidate begins at epoch 1 again.
            self._try(name, lambda t=tracker: self._by_epoch(t.tracker, values, prefix))
            self._try(name, lambda t=tracker: t.log(values))

    def _start(self, name: str, run: str, config: Mapping[str, Any], tags: list[str]) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # without which accelerate's own messages are errors
        options: dict[str, Any]
        if name == "tensorboard":
            assert self.out is not None
            shutil.rmtree(self.out / name, ignore_errors=True)  # of a run that is replaced
            options = {"run_name": name, "logging_dir": str(self.out)}
        elif name == "mlflow":
            options = {"experiment_name": PROJECT, "run_name": run}
            options["tags"] = dict.fromkeys(tags, "true")
        else:
            project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
            options = {"run_name": project, "name": run}
            if name == "wandb":
                options["tags"] = tags
        tracker = LOGGER_TYPE_TO_CLASS[name](**options)
        tracker.start()
        self._started[name] = tracker
        values = {k: v for k, v in flat(config).items() if v is not None}
        tracker.store_init_configuration(values)

    def _by_epoch(self, run: Any, values: Mapping[str, Any], prefix: str) -> None:
        for key in values.keys() - self._axes:
            run.define_metric(key, step_metric=f"{prefix}epoch")
            self._axes.add(key)

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                logger.warning(
                    "%s failed and may miss what follows; training goes on and metrics.jsonl has "
                    "it all: %s",
                    name,
                    _line(error),
                )


def flat(nested: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return nested values under dotted names; lists as text."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{at}{key}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            found[f"{at}{key}"] = value if plain else str(value)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {text}"


_OFFLINE = {
    "wandb": " (WANDB_MODE=offline)",
    "mlflow": " (MLFLOW_TRACKING_URI=sqlite:///mlflow.db)",
}
