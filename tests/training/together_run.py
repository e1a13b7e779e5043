"""One of two processes that train together; what it found lies in its own file afterwards.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=… MASTER_PORT=… python together_run.py BASE FOLDER

`CASES` are the trainings; the test runs them in one process too.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

#: 49 rows in batches of 16 leave one of a single row, which two processes cannot share.
ROWS, HELD_OUT = 49, 21
QUICK: dict[str, Any] = {"rank": 4, "layers": "top:2", "epochs": 3, "head_lr": 5e-2, "kl": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "raced": {"kl": "auto", "class_weights": "balanced", "learn_prior": True, "epochs": 2},
    "uncached": {"cache": {"prefix": "off"}, "schedule": "joint", "bound": "monte_carlo"},
    "map": {"method": "map", "clip": 0.05},
    "ivon": {"method": "ivon"},
    "sharded": {"engine": "fsdp2", "cache": {"prefix": "auto"}},
    "numbers": {"task": "numbers", "head": {"noise": "heteroscedastic"}, "epochs": 2},
}
REFUSED: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.1},
    "noise": {"method": "blob"},
    "batch": {"batch_size": 1},
    "cache": {"engine": "fsdp2", "cache": {"prefix": "on"}},
}


def tasks(kind: str = "topics") -> tuple[Any, Any]:
    """Return training and held-out rows."""
    from toy_tasks import number_rows, topic_rows

    from bayestune.data import Task

    if kind == "numbers":
        train = Task.from_rows(number_rows(ROWS), kind="regression")
        return train, Task.from_rows(number_rows(HELD_OUT, 7), like=train)
    train = Task.from_rows(topic_rows(ROWS, wrong=0.2))
    return train, Task.from_rows(topic_rows(HELD_OUT, 7), like=train)


def build(base: str, train: Any, options: dict[str, Any]) -> Any:
    """Return a model that is yet to be trained."""
    import bayestune as bt

    options = {**QUICK, **options}
    return bt.build(options.pop("method", "polar_vbll"), base=base, labels=train, **options)


def trained(base: str, out: Path, case: dict[str, Any], **how: Any) -> dict[str, Any]:
    """Train, and return curve, choices and all that was learnt."""
    from bayestune.backbone import shard
    from bayestune.progress import silent
    from bayestune.training import fit
    from bayestune.training.checkpoint import trainable

    options = dict(case)
    train, val = tasks(options.pop("task", "topics"))
    engine = options.pop("engine", "ddp")
    model = build(base, train, options)
    if engine == "fsdp2":
        shard(model.backbone)
    run = fit(model, train, val=val, out=out, progress=silent, **how)
    some = torch.randn(20, model.head.in_features, generator=torch.Generator().manual_seed(0))
    found = vars(model.predict_features(some))
    adapter = trainable(model.backbone, model.head)
    chosen = {k: v for k, v in run.chosen.items() if isinstance(v, int | float)}
    layers = [getattr(p, "_local_tensor", p) for p in model.backbone.layers.parameters()]
    return {
        "held": sum(p.numel() for p in layers),
        "history": run.history,
        "chosen": chosen,
        "adapter": {k: v for k, v in adapter.items() if k.startswith("backbone.")},
        # The root of a covariance is not unique; what it says of some features is.
        "posterior": {k: v for k, v in found.items() if isinstance(v, torch.Tensor)},
    }


def interrupted(base: str, out: Path) -> None:
    """Stop on all processes behind the second epoch, as if all were killed at once."""
    from bayestune.training import session

    save, calls = session.save_state, 0

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        save(*arguments)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    session.save_state = stopping
    try:
        trained(base, out, {})
    except KeyboardInterrupt:
        pass
    finally:
        session.save_state = save


def refusals(base: str) -> dict[str, str]:
    """Return the sentences of what is refused, and of processes that do not agree."""
    from bayestune.errors import ConfigError

    found = {}
    unlike = {"seed": int(os.environ["RANK"])}
    for name, options in {**REFUSED, "unlike": unlike}.items():
        try:
            trained(base, None, options)  # pyright: ignore[reportArgumentType]
        except ConfigError as error:
            found[name] = str(error)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        trained(base, None, {})  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        found["deepspeed"] = str(error)
    return found


def main(base: str, folder: Path) -> None:
    """Run everything and write it."""
    from bayestune.backbone import Reader
    from bayestune.processes import join, leave

    torch.set_num_threads(1)
    processes, passed = join(), []
    batch = Reader.batch
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        found[name] = trained(base, folder / name, case)
    interrupted(base, folder / "resumed")
    reached = sorted(p.name for p in (folder / "resumed").iterdir())
    processes.wait()
    found["resumed"] = {**trained(base, folder / "resumed", {}, resume=True), "reached": reached}

    def counting(self: Any, encoded: Any, rows: Any) -> Any:
        passed.append(len(rows))
        return batch(self, encoded, rows)

    Reader.batch = counting
    trained(base, None, {"cache": {"prefix": "off"}, "epochs": 1})  # pyright: ignore
    found["passed"] = sum(passed)
    found["refusals"] = refusals(base)
    torch.save(found, folder / f"{processes.rank}.pt")
    processes.wait()
    leave()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(sys.argv[1], Path(sys.argv[2]))
