"""The demonstration: the embedded model, the quick-start data, PoLAR-VBLL beside plain LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayestune.backbone import EMBEDDED, PrefixCache
from bayestune.config import merge, read_yaml
from bayestune.data import Task
from bayestune.data.quickstart import quickstart_path
from bayestune.evaluation import Evaluation, evaluate
from bayestune.files import write_json
from bayestune.model import build
from bayestune.plots.style import new_figure
from bayestune.progress import Progress, shown
from bayestune.recipes import shipped
from bayestune.training import Run, fit

#: What the demonstration compares: the name shown, the method and its recipe.
ROWS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "LoRA": ("mle", {}),
    "PoLAR-VBLL": ("polar_vbll", {}),
}
#: The shipped recipe that both share, so that six minutes on two cores suffice.
RECIPE = "quickstart"
OOS = "out_of_scope"


@dataclass(frozen=True)
class Demo:
    """What the demonstration found.

    Attributes:
        evaluations: by the name shown.
        runs: by the name shown.
        figures: files written.
    """

    evaluations: dict[str, Evaluation]
    runs: dict[str, Run]
    figures: list[Path]


def run_demo(
    out: str | Path, *, base: str = EMBEDDED, seed: int = 0, progress: Progress = shown
) -> Demo:
    """Fine-tune with every row of the demonstration, evaluate and draw.

    Args:
        out: the folder for runs, figures and ``results.json``; earlier results are replaced.
        base: the backbone.
        seed: of everything random, the same for every row.
        progress: how to report.
    """
    out = Path(out)
    new_figure(1)  # without matplotlib it stops here, not after the training
    train = Task.load(quickstart_path("train.jsonl"))
    test = Task.load(quickstart_path("test.jsonl"), like=train)
    oos = Task.load(quickstart_path("oos.jsonl"), like=train, label=None, require_labels=False)
    shared = read_yaml(shipped(RECIPE))
    evaluations: dict[str, Evaluation] = {}
    runs: dict[str, Run] = {}
    cache: PrefixCache | None = None
    for name, (method, recipe) in ROWS.items():
        config = merge(shared, recipe)
        model = build(method, base=base, labels=train, config=config, seed=seed)
        # Both rows adapt the same layers, so the frozen ones below run once per text for both.
        cache = model.cache = model.new_cache() if cache is None else cache
        runs[name] = fit(
            model,
            train,
            out=out / method,
            seed=seed,
            overwrite=True,
            progress=_named(progress, name),
        )
        for task, label in ((test, "frozen layers, test"), (oos, "frozen layers, out of scope")):
            model.reader().fill(model.encode(task), progress=progress, label=label)
        evaluations[name] = evaluate(model, test, ood={OOS: oos})  # pyright: ignore[reportArgumentType]
    write_json(
        out / "results.json",
        {
            name: {**e.to_json(), "chosen": runs[name].chosen, "seconds": runs[name].seconds}
            for name, e in evaluations.items()
        },
    )
    return Demo(evaluations, runs, draw(out, evaluations, runs))


def draw(out: Path, evaluations: dict[str, Evaluation], runs: dict[str, Run]) -> list[Path]:
    """Write the figures of the demonstration; return their paths."""
    from bayestune import plots

    histories = {name: run.history for name, run in runs.items()}
    figures = {
        "reliability.png": plots.reliability_figure(evaluations),
        "risk_coverage.png": plots.risk_coverage_figure(evaluations),
        "stable_rank.png": plots.stable_rank_figure(histories),
    }
    for name, evaluation in evaluations.items():
        stem = name.lower().replace("-", "_")
        figures[f"out_of_scope_{stem}.png"] = plots.unfamiliar_figure(evaluation, OOS)
    return [plots.save_figure(figure, out / name) for name, figure in figures.items()]


def _named(progress: Progress, name: str) -> Progress:
    """Put the row's name before what is being done."""
    return lambda label, total: progress(f"{name}: {label}", total)
