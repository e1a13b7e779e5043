"""README.md of a saved model: what it is and how it is loaded, here and by stock PEFT."""

from __future__ import annotations

import json

from bayestune.model import BayesModel
from bayestune.version import __version__

_CARD = """\
---
base_model: {base}
library_name: peft
tags:
- bayestune
- {method}
---

# {title}

{summary}. {predicts}

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
```

`bayestune.json` holds task, prompt, versions, checksums and what was chosen in training.
"""
_MEAN = (
    "The mean classifier alone, by stock PEFT (texts go through the prompt in `bayestune.json`):"
)
_LATENT = """\
The mean alone, by stock PEFT (texts go through the prompt in `bayestune.json`): the number is
{mean!r} + {std!r} × the one logit, because that layer has no bias."""
_FEATURES = (
    "The adapted backbone alone, by stock PEFT (the classifier stands in `posterior.safetensors`):"
)


def card(model: BayesModel) -> str:
    """Return the card of a model, in Markdown."""
    adapter = model.backbone.peft_model.peft_config["default"]
    classifier = adapter.task_type == "SEQ_CLS"
    names = [json.dumps(name, ensure_ascii=False) for name in list(model.labels)[:12]]
    more = len(model.labels) - len(names)
    choice, numbers = model.task.kind == "choice", model.task.kind == "regression"
    stock = _LATENT.format(**vars(model.scaling)) if numbers else _MEAN
    classes = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return _CARD.format(
        base=json.dumps(model.source.name, ensure_ascii=False),
        method=model.method.name,
        title=f"{model.method.name} on {model.source.name}",
        summary=model.method.summary,
        predicts="It predicts a number." if numbers else f"Classes: {classes}.",
        fields="pred.mean, pred.std" if numbers else "pred.labels, pred.probs",
        version=__version__,
        example='[{"question": "…", "choices": ["…", "…"]}]' if choice else '["…"]',
        stock=stock if classifier else _FEATURES,
        registers="import bayestune\n" if model.recipe.adapter.kind != "lora" else "",
        auto=f"AutoPeftModelFor{'SequenceClassification' if classifier else 'FeatureExtraction'}",
        number=f", num_labels={model.task.outputs}" if classifier else "",
    )
