"""``lora``: an adapter folder that stock PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bayestune.backbone.quantise import is_quantised
from bayestune.exports.adapter import write_adapter
from bayestune.exports.plain import Plain, is_classifier
from bayestune.exports.prompt import padding_id
from bayestune.model import BayesModel
from bayestune.store import SIDECAR, save_sidecar

LIBRARY = "peft"


def require(model: BayesModel) -> None:
    """Accept every model whose adapter is made of matrices."""


def write(
    model: BayesModel, plain: Plain, folder: Path, *, shard_size: str | None, keep: bool
) -> None:
    """Write the LoRA; beside it the head, where it is none that PEFT would load."""
    classifier = is_classifier(model)
    write_adapter(model, plain, folder, classifier=classifier)
    if not classifier:
        (folder / SIDECAR).mkdir()
        save_sidecar(model, folder / SIDECAR, plain.probe, plain.score)


def reload(model: BayesModel, folder: Path) -> Any:
    """Return what stock PEFT makes of a folder: a classifier, or the bare transformer."""
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForSequenceClassification

    options: dict[str, Any] = {"revision": model.source.revision, "dtype": model.backbone.dtype}
    options |= {"trust_remote_code": False, "use_safetensors": True}
    config: Any = model.backbone.transformer.config
    if is_quantised(config):  # by its files or as it was loaded; it cannot be moved afterwards
        options["device_map"] = {"": model.backbone.device}
        if model.recipe.quantize != "none":
            options["quantization_config"] = config.quantization_config
    if is_classifier(model):
        auto = AutoModelForSequenceClassification
        options |= {"num_labels": model.task.outputs}
    else:
        auto = AutoModel
    base = auto.from_pretrained(model.source.path, **options)
    return PeftModel.from_pretrained(base, str(folder))


def usage(model: BayesModel, places: list[str]) -> str:
    """Return how it is loaded, in Markdown."""
    base = json.dumps(model.source.path)
    if is_classifier(model):
        kind = "SequenceClassification"
        more = f", num_labels={model.task.outputs}, pad_token_id={padding_id(model)}"
    else:
        kind, more = "FeatureExtraction", ""
    return f"""\
```python
from peft import AutoPeftModelFor{kind}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
model = AutoPeftModelFor{kind}.from_pretrained("{places[0]}"{more})
```

The adapter names its base, `{model.source.path}`. Where that lies elsewhere, load it yourself and
put the adapter on it with `peft.PeftModel.from_pretrained(base, "{places[0]}")`.
"""
