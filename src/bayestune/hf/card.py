"""What the card of a Trainer's model says about its uncertainty."""

from __future__ import annotations

from pathlib import Path

from bayestune.files import write_text

_SECTION = """
## Uncertainty

The classifier in `adapter_model.safetensors` is the mean of a Gaussian posterior, which stock
PEFT loads; the rest of the posterior lies beside it (`score.log_scale` and others). With its
uncertainty, by [bayestune](https://pypi.org/project/bayestune):

```python
import bayestune as bt

model = bt.hf.to_bayes_model("PATH", labels=["…", "…"])  # the classes in order
pred = model.predict(["…"])
pred.labels, pred.probs, pred.aleatoric, pred.epistemic
```
"""


def add_uncertainty(path: Path) -> None:
    """Append to a card how to have the model's uncertainty."""
    write_text(path, path.read_text(encoding="utf-8").rstrip() + "\n" + _SECTION)
