"""PoLAR-VBLL against LoRA and its simple cures, on SST-2, TREC, CLINC150 and eight of its topics.

Every trained configuration gets the same number of learning rates on seed 0, chosen by the held-out
negative log-likelihood of what it delivers; then all seeds run at the chosen rate. Each cell is
written as it finishes and skipped when it is there, so the command can be stopped and repeated. The
test set is read once per cell, after everything is chosen.

    python bench/compare.py --data DATA --out docs/results/cells [--tasks sst2,trec,clinc150,topics]
        [--only lora,polar,polar_vbll,adam_core] [--seeds 3]

DATA holds sst2/, trec/ and clinc150/ as JSONL (id, text, label) with labels.json, as in
docs/results/README.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bayestune.backbone import PrefixCache
from bayestune.config import FinalizeConfig, merge
from bayestune.data import Task
from bayestune.evaluation import Evaluation, score
from bayestune.files import write_json
from bayestune.finalize.refresh import form_of
from bayestune.model import BayesModel, build
from bayestune.progress import shown
from bayestune.training.checkpoint import restore, trainable
from bayestune.training.fit import Session
from bayestune.training.run import Journal, environment

#: Shared by every configuration: what is adapted, for how long, in what batches.
SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",  # of the frozen weights; adapters, head and all that follows are fp32
    "adapter": {"layers": "top:6", "rank": 8, "targets": "auto"},
    "train": {"batch_size": 16},
}
EPOCHS = {"sst2": 8, "trec": 8, "clinc150": 5, "topics": 8}
#: Learning rates by adapter. A task tries as many of them for every configuration, more than three
#: where the best of LoRA's stood at the end.
_LORA, _POLAR = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3), (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
TRIALS = {"sst2": 3, "trec": 5, "clinc150": 3, "topics": 3}
#: The easy task: intents of CLINC150 by topic.
TOPICS = {
    "banking": ("balance", "transfer", "pay_bill", "transactions"),
    "cards": ("credit_limit", "new_card", "card_declined", "damaged_card"),
    "cooking": ("recipe", "calories", "meal_suggestion", "ingredients_list"),
    "travel": ("book_flight", "book_hotel", "carry_on", "lost_luggage"),
    "car": ("oil_change_how", "tire_change", "jump_start", "gas"),
    "work": ("pto_request", "pto_balance", "income", "direct_deposit"),
    "devices": ("alarm", "timer", "play_music", "smart_home"),
    "chat": ("tell_joke", "meaning_of_life", "how_old_are_you", "who_made_you"),
}
#: Trained configurations: the method, its recipe and its learning rates.
TRAINED: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "lora": ("mle", {}, _LORA),
    "polar": ("mle", {"adapter": {"kind": "polar"}}, _POLAR),
    "polar_vbll": ("polar_vbll", {}, _POLAR),
    "adam_core": ("polar_vbll", {"train": {"core": "adam"}}, _POLAR),
}
_NONE = FinalizeConfig(refresh="none", scale=1.0, temperature="none")
_TEMPERATURE = FinalizeConfig(refresh="none", temperature="auto")
_REFRESH = FinalizeConfig(refresh="auto", temperature="auto")
_LAPLACE = FinalizeConfig(refresh="block", temperature="none")
#: Rows of the table: the trained configuration, which epoch, and the finaliser.
ROWS: dict[str, tuple[str, str, FinalizeConfig]] = {
    "LoRA": ("lora", "last", _NONE),
    "LoRA, early-stopped": ("lora", "best", _NONE),
    "LoRA + temperature": ("lora", "last", _TEMPERATURE),
    "LoRA, early-stopped + temperature": ("lora", "best", _TEMPERATURE),
    "LoRA + Laplace refresh": ("lora", "last", _LAPLACE),
    "PoLAR + linear head": ("polar", "last", _NONE),
    "PoLAR-VBLL, no refresh": ("polar_vbll", "best", _TEMPERATURE),
    "PoLAR-VBLL": ("polar_vbll", "best", _REFRESH),
    "PoLAR-VBLL, Adam's step for Θ": ("adam_core", "best", _REFRESH),
}


@dataclass(frozen=True)
class Splits:
    """Training, held-out, test and out-of-distribution rows of one task and seed."""

    train: Task
    val: Task
    test: Task
    ood: dict[str, Task]


def load_splits(folder: Path, name: str, seed: int) -> Splits:
    """Read a task; the seed draws training rows, and test rows among them are dropped."""
    rng = random.Random(seed)
    if name == "sst2":
        pool = Task.load(folder / "sst2/train.jsonl")
        train = pool.select(sorted(rng.sample(range(len(pool)), 640)))
        val = Task.load(folder / "sst2/dev.jsonl", like=train)
        test = Task.load(folder / "sst2/test.jsonl", like=train)
        ood = {"trec": _outside(folder / "trec/test.jsonl")}
    elif name == "trec":
        pool = Task.load(folder / "trec/train.jsonl")
        drawn = rng.sample(range(len(pool)), 1140)
        train, val = pool.select(sorted(drawn[:640])), pool.select(sorted(drawn[640:]))
        test = Task.load(folder / "trec/test.jsonl", like=train)
        ood = {"sst2": _outside(folder / "sst2/glue_validation.jsonl")}
    elif name == "clinc150":
        pool = Task.load(folder / "clinc150/train.jsonl")
        by_class: dict[int, list[int]] = {}
        order = list(range(len(pool)))
        rng.shuffle(order)
        for i in order:
            by_class.setdefault(pool.targets[i], []).append(i)
        train = pool.select(sorted(i for rows in by_class.values() for i in rows[:20]))
        val = Task.load(folder / "clinc150/val.jsonl", like=train)
        val = val.select(sorted(rng.sample(range(len(val)), 1500)))
        test = Task.load(folder / "clinc150/test.jsonl", like=train)
        ood = {"oos": _outside(folder / "clinc150/oos_test.jsonl")}
    elif name == "topics":
        train, val, test = (_topics(folder / f"clinc150/{part}.jsonl") for part in PARTS)
        by_intent: dict[str, list[int]] = {}
        for i in rng.sample(range(len(train)), len(train)):
            by_intent.setdefault(str(train[i].id).partition("/")[0], []).append(i)
        train = train.select(sorted(i for rows in by_intent.values() for i in rows[:20]))
        ood = {"oos": _outside(folder / "clinc150/oos_test.jsonl")}
    else:
        raise SystemExit(f"unknown task {name!r}; known: {', '.join(EPOCHS)}")
    seen = {e.text for e in train} | {e.text for e in val}
    keep = [i for i, e in enumerate(test) if e.text not in seen]
    return Splits(train, val, test.select(keep), ood)


PARTS = ("train", "val", "test")


def _topics(path: Path) -> Task:
    """Read the rows of the topics' intents; an id begins with the intent."""
    of_intent = {intent: topic for topic, intents in TOPICS.items() for intent in intents}
    rows = [
        {"id": f"{label}/{i}", "text": example.text, "label": of_intent[label]}
        for i, (example, label) in enumerate(_labelled(path))
        if label in of_intent
    ]
    return Task.from_rows(rows, labels=list(TOPICS))


def _labelled(path: Path) -> list[tuple[Any, str]]:
    task = Task.load(path)
    return [(example, task.labels.names[k]) for example, k in zip(task, task.targets, strict=True)]


def _outside(path: Path) -> Task:
    return Task.load(path, label=None, require_labels=False, labels=("a", "b"))


def train_one(
    splits: Splits, method: str, recipe: dict[str, Any], task: str, lr: float, seed: int
) -> tuple[BayesModel, Session, float]:
    """Train one configuration; return the model, its session and the seconds."""
    config = merge(SETTINGS, {"train": {"epochs": EPOCHS[task], "lr": lr, "keep": "last"}}, recipe)
    model = build(method, base="smollm2-135m", labels=splits.train, config=config, seed=seed)
    model.cache = CACHES.get((task, seed)) or model.new_cache()
    CACHES[task, seed] = model.cache
    session = Session(model, splits.train, splits.val, Journal(None), shown)
    start = time.monotonic()
    session.optimise()
    return model, session, time.monotonic() - start


def chosen_rate(out: Path, data: Path, task: str, name: str) -> float:
    """Return the learning rate with the lowest held-out NLL on seed 0, trying each once."""
    tried: dict[float, float] = {}
    for lr in TRAINED[name][2][: TRIALS[task]]:
        file = out / task / f"lr-{name}-{lr:g}.json"
        if not file.is_file():
            splits = load_splits(data, task, 0)
            _, session, seconds = train_one(splits, *TRAINED[name][:2], task, lr, 0)
            history = session.history
            best = min(row["val_nll"] for row in history)
            nll = best if TRAINED[name][0] == "polar_vbll" else history[-1]["val_nll"]
            write_json(
                file,
                {
                    "lr": lr,
                    "val_nll": nll,
                    "best_val_nll": best,
                    "kl": session.kappa,
                    "kl_tried": session.kappas,
                    "seconds": seconds,
                    "history": history,
                },
            )
        tried[lr] = json.loads(file.read_text())["val_nll"]
    best_lr = min(tried, key=tried.__getitem__)
    print(f"{task} {name}: {tried} -> {best_lr:g}", flush=True)
    return best_lr


#: Frozen states by task and seed, shared by all configurations of this process.
CACHES: dict[tuple[str, int], PrefixCache | None] = {}


def run_seed(out: Path, data: Path, task: str, seed: int, rates: dict[str, float]) -> None:
    """Train every configuration on one seed and write a cell per row of the table."""
    splits = load_splits(data, task, seed)
    for name, lr in rates.items():
        rows = {row: spec for row, spec in ROWS.items() if spec[0] == name}
        files = {row: out / task / f"seed{seed}-{_slug(row)}.json" for row in rows}
        if all(file.is_file() for file in files.values()):
            continue
        model, session, seconds = train_one(splits, *TRAINED[name][:2], task, lr, seed)
        last = trainable(model.backbone, model.head)
        states = {"best": session.best_tensors, "last": last}
        read: dict[str, dict[str, torch.Tensor]] = {}
        for row, (_, epoch, finalizer) in rows.items():
            restore(model.backbone, model.head, states[epoch])
            if epoch not in read:
                read[epoch] = read_all(model, session, splits)
            cell = finish(model, session, splits, finalizer, read[epoch])
            cell |= {
                "row": row,
                "task": task,
                "seed": seed,
                "lr": lr,
                "kl": session.kappa,
                "kl_tried": session.kappas,
                "epochs": EPOCHS[task],
                "train_seconds": seconds,
                "history": session.history,
                "environment": environment(),
            }
            write_json(files[row], cell)
            print(
                f"{task} seed {seed} {row}: acc {cell['accuracy']:.4f} nll {cell['nll']:.4f} "
                f"ece {cell['ece']:.4f} ood {cell['ood']}",
                flush=True,
            )


def read_all(model: BayesModel, session: Session, splits: Splits) -> dict[str, torch.Tensor]:
    """Return the features of every set of rows at the model's present state, by name."""
    assert session.val is not None
    features = {"fit": session.features(session.rows), "val": session.features(session.val)}
    for name, task in {"test": splits.test, **splits.ood}.items():
        reader = model.reader()
        encoded = model.encode(replace(task, labels=model.labels, fields=model.task.fields))
        reader.fill(encoded, progress=shown, label=f"frozen layers, {name}")
        features[name] = reader.features(encoded, progress=shown, label=f"features, {name}")
    return features


def finish(
    model: BayesModel,
    session: Session,
    splits: Splits,
    finalizer: FinalizeConfig,
    features: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Apply one finaliser to a copy of the trained head and score the test set."""
    assert session.val is not None
    head = copy.deepcopy(model.head)
    fit_rows = session.rows.features(features["fit"])
    if finalizer is _LAPLACE:  # dense while it fits, as the library itself chooses
        finalizer = replace(finalizer, refresh=form_of("auto", head, len(fit_rows)))
    held_out = session.val.features(features["val"])
    recipe = replace(model.recipe, finalize=finalizer)
    head, report = model.method.finalize(head, fit_rows, held_out, recipe, shown)
    finished = copy.copy(model)
    finished.head = head
    finished.density = session.density(fit_rows)
    targets = torch.tensor(splits.test.targets)
    inside = finished.predict_features(features["test"])
    outside = {name: finished.predict_features(features[name]) for name in splits.ood}
    result: Evaluation = score(inside, targets, outside)
    losses = -inside.probs.double().gather(1, targets[:, None]).clamp_min(1e-300).log().flatten()
    return {
        **result.to_json(),
        "losses": [round(x, 6) for x in losses.tolist()],
        "correct": (inside.indices == targets).int().tolist(),
        "finalizer": report,
    }


def _slug(row: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in row.lower()).strip("_")


def main() -> None:
    """Run all cells that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results/cells"))
    parser.add_argument("--tasks", default=",".join(EPOCHS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(TRAINED), help="trained configurations")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for task in arguments.tasks.split(","):
        asked = [name for name in TRAINED if name in arguments.only.split(",")]
        rates = {n: chosen_rate(arguments.out, arguments.data, task, n) for n in asked}
        for seed in range(arguments.seeds):
            run_seed(arguments.out, arguments.data, task, seed, rates)
            CACHES.pop((task, seed), None)


if __name__ == "__main__":
    main()
