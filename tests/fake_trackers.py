"""A tracker with accelerate's interface that remembers what it is told."""

from __future__ import annotations

from importlib import util
from typing import Any

import pytest
from accelerate import tracking


class Recorded(tracking.GeneralTracker):
    """Stands for every tracker of one name; `runs` are those that were created, in order."""

    requires_logging_directory = False
    runs: list[Recorded]
    fails: frozenset[str]

    def __init__(self, run_name: str, experiment_name: str = "", **options: Any) -> None:
        # accelerate calls the project of most trackers a run's name, and MLflow's an experiment.
        self.project = experiment_name or run_name
        self.run_name = run_name if experiment_name else options.pop("name")
        self.options = options
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.axes: dict[str, str] = {}
        self.calls: list[str] = []
        self.runs.append(self)

    @property
    def tracker(self) -> Recorded:
        return self

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise RuntimeError(f"no connection to {name}.\nsecond line")

    def start(self) -> None:
        self._called("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._called("config")
        self.config = values

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._called("log")
        self.rows.append((step, dict(values)))

    def finish(self) -> None:
        self._called("finish")

    def under(self, prefix: str) -> list[tuple[int | None, dict[str, Any]]]:
        """The rows of one prefix, without it."""
        return [
            (step, {k.removeprefix(prefix): v for k, v in row.items()})
            for step, row in self.rows
            if all(k.startswith(prefix) and "/" not in k.removeprefix(prefix) for k in row)
        ]


def install(monkeypatch: pytest.MonkeyPatch, name: str, *fails: str) -> type[Recorded]:
    """Put a fake in the place of one of accelerate's trackers."""
    fake = type("Fake", (Recorded,), {"name": name, "runs": [], "fails": frozenset(fails)})
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, fake)
    real = util.find_spec
    monkeypatch.setattr(
        "bayestune.training.trackers.find_spec", lambda n: n if n == name else real(n)
    )
    return fake
