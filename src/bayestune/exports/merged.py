"""``merged``: a whole model that transformers loads, with its tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from bayestune.exports.adapter import name_of_transformer
from bayestune.exports.merge import merged_weights, require_mergeable, shell, write_model
from bayestune.exports.plain import Plain, is_classifier
from bayestune.exports.prompt import padding_id
from bayestune.model import BayesModel
from bayestune.store import SIDECAR, save_sidecar, save_tokenizer

LIBRARY = "transformers"


def require(model: BayesModel) -> None:
    """Refuse a quantised base."""
    require_mergeable(model)


def write(
    model: BayesModel, plain: Plain, folder: Path, *, shard_size: str | None, keep: bool
) -> None:
    """Write the classifier; the bare transformer and the head beside it, where it is none."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    tokenizer = _padding(model)
    if is_classifier(model):
        names = dict(enumerate(model.labels)) if model.task.outputs > 1 else {0: "value"}
        made = shell(
            model,
            AutoModelForSequenceClassification,
            id2label=names,
            label2id={name: i for i, name in names.items()},
            pad_token_id=tokenizer.pad_token_id,
            problem_type="regression" if len(names) == 1 else "single_label_classification",
        )
        prefix, rows = name_of_transformer(model), {"score.weight": plain.score}
    else:
        made, prefix, rows = shell(model, AutoModel), "", {}
        (folder / SIDECAR).mkdir()
        save_sidecar(model, folder / SIDECAR, plain.probe, plain.score)
    with merged_weights(model, plain, keep=keep) as weights:
        state: Any = {f"{prefix}{name}": weight for name, weight in weights.items()} | rows
        write_model(made, state, folder, shard_size)
    save_tokenizer(tokenizer, folder)


def reload(model: BayesModel, folder: Path) -> Any:
    """Return what transformers makes of a folder: a classifier, or the bare transformer."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if is_classifier(model) else AutoModel
    return auto.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)


def usage(model: BayesModel, places: list[str]) -> str:
    """Return how it is loaded, in Markdown."""
    auto = f"AutoModel{'ForSequenceClassification' if is_classifier(model) else ''}"
    return f"""\
```python
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained("{places[0]}")
model = {auto}.from_pretrained("{places[0]}")
```
"""


def _padding(model: BayesModel) -> Any:
    """Return the tokenizer with the padding token that the classifier is told of."""
    tokenizer = model.tokenizer
    if tokenizer.pad_token_id is None and is_classifier(model):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(model))
    return tokenizer
