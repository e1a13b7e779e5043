"""``vllm``: adapters for both ways of serving them, and what turns pooled states into predictions.

embed/        the LoRA alone, for ``--convert embed``: a head in it would be refused there
classify/     the LoRA and ``score.weight``, for ``--convert classify``
posterior/    the side-car
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bayestune.exports import lora
from bayestune.exports.adapter import name_of_transformer, write_adapter
from bayestune.exports.plain import Plain, is_classifier, require_decoder
from bayestune.model import BayesModel
from bayestune.store import SIDECAR, save_sidecar

LIBRARY = "peft"
#: What vLLM's --max-lora-rank takes.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_SEVERAL = """
Every adapter is asked, and their probabilities are averaged (never the logits). The plug-in runs
one adapter a request, so it is not for draws.
"""
_PLUGIN = """
Or from the server itself, where `pip install 'bayestune[vllm]'` put the plug-in beside vLLM
(without it leave out `BAYESTUNE_SIDECARS` and `--io-processor-plugin`):

```bash
curl localhost:8000/pooling -H 'Content-Type: application/json' \\
  -d '{"model": "bayes", "data": {"inputs": ["a text"]}}'
```
"""


def require(model: BayesModel) -> None:
    """Refuse encoders."""
    require_decoder(model, "vllm")


def write(
    model: BayesModel, plain: Plain, folder: Path, *, shard_size: str | None, keep: bool
) -> None:
    """Write the adapters and the side-car."""
    # Served models are causal ones, whose names are those of a classifier.
    prefix = name_of_transformer(model)
    write_adapter(model, plain, folder / "embed", classifier=False, prefix=prefix)
    if is_classifier(model):
        write_adapter(model, plain, folder / "classify", classifier=True)
    (folder / SIDECAR).mkdir()
    save_sidecar(model, folder / SIDECAR, plain.probe, plain.score)


def reload(model: BayesModel, folder: Path) -> Any:
    """Return what stock PEFT makes of an adapter; vLLM itself is not run."""
    if is_classifier(model):
        return lora.reload(model, folder / "classify")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        model.source.path,
        revision=model.source.revision,
        dtype=model.backbone.dtype,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return PeftModel.from_pretrained(base, str(folder / "embed")).get_base_model().base_model


def usage(model: BayesModel, places: list[str]) -> str:
    """Return how it is served, in Markdown."""
    rank = model.recipe.adapter.rank
    limit = next((r for r in _RANKS if r >= rank), rank)
    pooler = json.dumps({"seq_pooling_type": model.backbone.pooling.upper()})
    dtype = str(model.backbone.dtype).removeprefix("torch.")
    common = (
        f"vllm serve {model.source.path} --runner pooling --dtype {dtype} --enable-lora "
        f"--max-lora-rank {limit}"
    )
    if not model.source.local and model.source.revision:
        common += f" --revision {model.source.revision}"
    several = places != ["PATH"]
    if len(places) > 1:
        common += f" --max-loras {len(places)}"
    names = [f"bayes-{s}" for s in range(len(places))] if several else ["bayes"]

    def modules(part: str) -> str:
        return " ".join(f"{n}={p}/{part}" for n, p in zip(names, places, strict=True))

    environment, plugin = "", ""
    if not several:
        environment = f"BAYESTUNE_SIDECARS=bayes={places[0]} "
        plugin = "\\\n    --io-processor-plugin bayestune "
    text = f"""\
With its uncertainty: the server returns pooled states, `posterior/` makes predictions of them.

```bash
{environment}{common} --convert embed \\
    --pooler-config '{pooler}' {plugin}\\
    --lora-modules {modules("embed")}
```

From anywhere, without vLLM and without the backbone:

```python
from bayestune.serve import VllmClient

prediction = VllmClient("http://localhost:8000", "PATH").predict(TEXTS)
```
{_SEVERAL if several else _PLUGIN}"""
    if is_classifier(model) and model.task.kind != "regression":
        text += f"""
The mean classifier alone, `POST /classify`:

```bash
{common} --convert classify --max-lora-cls-labels {model.task.outputs} \\
    --lora-modules {modules("classify")}
```
"""
    return f"""\
{text}
These commands follow the sources of vLLM 0.33 and were not run. `--dtype` is that of the training:
another one gives other states.
"""
