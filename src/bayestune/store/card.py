"""README.md of a saved model: what it is, how good, what it promises, and how it is loaded.

It is made from what lies beside it and nothing else, so that it can be made anew whenever that
changes: a number stands in it only where it was measured on this very model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from bayestune import methods
from bayestune.data import LabelSet
from bayestune.errors import StoreError
from bayestune.files import read_json, write_text
from bayestune.guarantees import Guarantees
from bayestune.guarantees.words import sentences
from bayestune.store.manifest import MANIFEST, read_manifest
from bayestune.store.measured import drop_figures, read_measured

CARD = "README.md"
#: What stands in every card, by whether numbers are predicted.
_LIMITS = {
    False: """\
For texts like those it was trained on, in their language, with the classes above and no others:
every text gets one of them. Probabilities are those of such texts; on other ones they may be far
too sure, which `epistemic` and `ood_score` are there to show and do not always show. It has learnt
whatever is wrong or unfair in its labels and in its backbone. Where a mistake harms someone, a
person decides.""",
    True: """\
For texts like those it was trained on, in their language. Standard deviations are those of such
texts; on other ones they may be far too small, which `epistemic` and `ood_score` are there to show
and do not always show. It has learnt whatever is wrong or unfair in its numbers and in its
backbone. Where a mistake harms someone, a person decides.""",
}
_MEAN = (
    "The mean classifier alone, by stock PEFT (texts go through the prompt in `bayestune.json`):"
)
_LATENT = """\
The mean alone, by stock PEFT (texts go through the prompt in `bayestune.json`): the number is
{mean!r} + {std!r} × the one logit, because that layer has no bias."""
_FEATURES = (
    "The adapted backbone alone, by stock PEFT (the classifier stands in `posterior.safetensors`):"
)


def write_card(folder: Path) -> None:
    """Write the card of the model in a folder, in the place of the one that is there.

    Raises:
        StoreError: if no model lies there, or the card cannot be made or written.
    """
    manifest = read_manifest(folder)
    adapter = read_json(folder / "adapter_config.json")
    promised = folder / "guarantees.json"
    rules = read_json(promised) if promised.is_file() else None
    if not isinstance(rules, dict) or rules.get("model") != manifest["digest"]:
        rules = None  # of another model, or damaged: loading it says so
    measured = read_measured(folder, manifest["digest"])
    classifier = isinstance(adapter, dict) and adapter.get("task_type") == "SEQ_CLS"
    try:
        text = card(manifest, classifier, rules, measured)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{folder} cannot be described: {error} in {MANIFEST} or guarantees.json was changed, "
            "or written by another version of bayestune."
        ) from error
    write_text(folder / CARD, text)
    drop_figures(folder, None if measured is None else measured["figure"])


def read_card(folder: Path) -> str:
    """Return the card of the model in a folder.

    Raises:
        StoreError: if there is none, or it is no text.
    """
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder / CARD} cannot be read: {error}. Copy it again, or write it anew with "
            "bayestune calibrate or eval --card."
        ) from error


def card(
    manifest: Mapping[str, Any],
    classifier: bool,
    rules: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> str:
    """Return the card of a model, in Markdown.

    Args:
        manifest: bayestune.json.
        classifier: whether stock PEFT loads a classifier, or features.
        rules: guarantees.json.
        measured: evaluation.json.
    """
    method = methods.get(manifest["method"])
    title = f"{method.name} on {PurePath(manifest['base']['name']).name}"
    numbers = manifest["task"]["kind"] == "regression"
    parts = [
        f"---\n{_metadata(manifest, title, measured)}---",
        f"# {title}",
        f"{method.summary}. {_predicts(manifest)}",
        "## How good and how honest it is",
        _measured(measured, rules),
        *([] if numbers else ["## What it promises", _promised(rules)]),
        "## Use and limits",
        _LIMITS[numbers],
        "## How it was trained",
        _training(manifest),
        "## How it is loaded",
        _loading(manifest, classifier),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: Mapping[str, Any], title: str, measured: Mapping[str, Any] | None) -> str:
    """Return what the Hub reads; what the licence is depends on the backbone's, which says so."""
    from huggingface_hub import EvalResult, ModelCardData

    base, kind = manifest["base"]["name"], manifest["task"]["kind"]
    task = "multiple-choice" if kind == "choice" else "text-classification"
    results = []
    if measured is not None:
        name = measured["data"]["name"]
        results = [
            EvalResult(task, dataset_type=name, dataset_name=name, metric_type=m, metric_value=v)
            for m, v in measured["metrics"].items()
        ]
    known = {"base_model": base} if _on_the_hub(base) else {}
    data = ModelCardData(
        library_name="peft",
        pipeline_tag=task,
        tags=["bayestune", "uncertainty", manifest["method"]],
        **known,
        **({"model_name": title, "eval_results": results} if results else {}),
    )
    return data.to_yaml() + "\n"


def _on_the_hub(base: str) -> bool:
    return base.count("/") == 1 and not PurePath(base).is_absolute()


def _predicts(manifest: Mapping[str, Any]) -> str:
    if manifest["task"]["kind"] == "regression":
        return "It predicts a number."
    labels = list(LabelSet.from_json(manifest["task"]["labels"]))
    names = [json.dumps(name, ensure_ascii=False) for name in labels[:12]]
    more = len(labels) - len(names)
    return f"Classes: {', '.join(names)}{f' and {more} more' if more > 0 else ''}."


def _measured(measured: Mapping[str, Any] | None, rules: Mapping[str, Any] | None) -> str:
    if measured is None:
        return (
            "Not measured yet, on rows of its own: `bayestune eval RUN --data test.jsonl --card` "
            "writes the numbers here."
        )
    data, settings = measured["data"], measured["settings"]
    promises = measured["promises"] if measured["rules"] == (rules or {}).get("digest") else {}
    ends = measured["intervals"]
    rows = [
        f"| {_NAMES.get(name, name)} | {value:.4g} | {_between(ends.get(name))} |"
        for name, value in {**measured["metrics"], **promises}.items()
    ]
    given = ", ".join(f"{key}={value}" for key, value in settings.items())
    return "\n".join(
        [
            f"On {data['rows']} rows of `{data['name']}` (hash {_short(data['hash'])}), predicted "
            f"with {given} by the model whose digest is {_short(measured['model'])}:",
            "",
            "| | | 95 % interval |",
            "|---|---|---|",
            *rows,
            *_reliability(measured),
        ]
    )


def _reliability(measured: Mapping[str, Any]) -> list[str]:
    """Return the figure, or the bins that it would show."""
    if measured["figure"] is not None:
        alt = "accuracy against confidence in 15 bins; bars and point sizes count the rows"
        return ["", f"![Reliability: {alt}]({measured['figure']})"]
    if not measured["bins"]:
        return []
    rows = [
        f"| {low:.2f} – {high:.2f} | {count} | {confidence:.3f} | {accuracy:.3f} |"
        for low, high, count, confidence, accuracy in measured["bins"]
    ]
    head = ["| confidence | rows | its mean | accuracy |", "|---|---|---|---|"]
    return ["", "Reliability, bins without rows left out:", "", *head, *rows]


def _promised(rules: Mapping[str, Any] | None) -> str:
    if rules is None:
        return (
            "Nothing: `bayestune calibrate RUN --data unseen.jsonl --coverage 0.9 --max-risk 0.05` "
            "adds prediction sets and abstention with a guarantee."
        )
    given = ", ".join(f"{key}={value}" for key, value in rules["settings"].items())
    lines = [f"- {line}" for line in sentences(Guarantees.from_json(rules))]
    return "\n".join(
        [
            *lines,
            "",
            f"By rows of the hash {_short(rules['data'])}, which it had not seen, for rows "
            f"exchangeable with them and predictions with {given}.",
        ]
    )


def _training(manifest: Mapping[str, Any]) -> str:
    recipe, versions = manifest["recipe"], manifest["versions"]
    notes, adapter, train = manifest["notes"], recipe["adapter"], recipe["train"]
    data, chosen = notes.get("data", {}), notes.get("chosen", {})
    base, revision = manifest["base"], manifest["base"]["revision"]
    name = base["name"] if _on_the_hub(base["name"]) else PurePath(base["name"]).name
    fewer = recipe.get("quantize", "none")
    precision = base["dtype"] if fewer == "none" else f"{fewer} and {base['dtype']}"
    facts = {
        "backbone": f"{name}{f' at {revision}' if revision else ''}, {precision}",
        "adapter": f"{adapter['kind']}, rank {adapter['rank']}, layers {adapter['layers']}",
        **_rows(data),
        "epochs": str(train["epochs"]),
        "seed": str(recipe["seed"]),
        "KL weight": f"{chosen.get('kl', 0):g}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "digest": _short(manifest["digest"]),
    }
    if train["max_steps"]:
        facts["epochs"] = f"{train['max_steps']} steps"
    if "best_val_nll" in chosen and "held-out rows" in facts:
        facts["held-out rows"] += f", NLL {chosen['best_val_nll']:.4g} in the epoch they chose"
    rows = [f"| {name} | {fact} |" for name, fact in facts.items()]
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            *rows,
            "",
            "`bayestune.json` holds the whole recipe, task, prompt, checksums and what was chosen.",
        ]
    )


def _rows(data: Mapping[str, Any]) -> dict[str, str]:
    """Return how many rows there were, as far as it is known: models can be saved untrained."""
    kinds = {"rows": "train", "held-out rows": "val"}
    return {
        name: f"{data[f'{kind}_rows']} (hash {_short(data[f'{kind}_hash'])})"
        for name, kind in kinds.items()
        if data.get(f"{kind}_rows")
    }


def _loading(manifest: Mapping[str, Any], classifier: bool) -> str:
    kind, recipe = manifest["task"]["kind"], manifest["recipe"]
    numbers, choice = kind == "regression", kind == "choice"
    outputs = 1 if numbers else len(LabelSet.from_json(manifest["task"]["labels"]))
    stock = _LATENT.format(**manifest["scaling"]) if numbers else _MEAN
    return _LOADING.format(
        version=manifest["versions"]["bayestune"],
        example='[{"question": "…", "choices": ["…", "…"]}]' if choice else '["…"]',
        fields="pred.mean, pred.std" if numbers else "pred.labels, pred.probs",
        stock=stock if classifier else _FEATURES,
        registers="import bayestune\n" if recipe["adapter"]["kind"] != "lora" else "",
        auto=f"AutoPeftModelFor{'SequenceClassification' if classifier else 'FeatureExtraction'}",
        number=f", num_labels={outputs}" if classifier else "",
    )


def _short(digest: str) -> str:
    return f"`{digest[:16]}`"


def _between(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4g} – {ends[1]:.4g}"


_NAMES = {
    "accuracy": "accuracy",
    "nll": "NLL, nats",
    "ece": "ECE, 15 right-closed bins",
    "adaptive_ece": "ECE, 15 bins of equal mass",
    "mce": "MCE",
    "brier": "Brier score, summed over classes",
    "aurc": "AURC",
    "rmse": "RMSE",
    "mae": "MAE",
    "crps": "CRPS",
    "coverage90": "coverage of the 90 % interval",
    "set_coverage": "sets that hold the true class",
    "set_size": "classes in a set",
    "accepted": "rows answered",
    "selective_risk": "errors among the answers",
}
_LOADING = """\
With its uncertainty ([bayestune](https://pypi.org/project/bayestune), version {version}):

```python
import bayestune as bt

model = bt.load("PATH")
pred = model.predict({example})
{fields}, pred.aleatoric, pred.epistemic, pred.ood_score
```

{stock}

```python
{registers}from peft import {auto}

model = {auto}.from_pretrained("PATH"{number})
```"""
