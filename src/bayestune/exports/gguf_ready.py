"""``gguf-ready``: the folder that llama.cpp's convert_hf_to_gguf.py takes.

The converter knows language models and encoders, and would stop at a decoder's classification head:
the adapted transformer goes out as what it was, and the head stands beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from bayestune.backbone import base_file, base_tensors
from bayestune.exports.adapter import name_of_transformer
from bayestune.exports.merge import merged_weights, require_mergeable, shell, write_model
from bayestune.exports.plain import Plain
from bayestune.model import BayesModel
from bayestune.store import SIDECAR, save_sidecar, save_tokenizer

LIBRARY = "transformers"
#: SentencePiece models, which the converter prefers; a fast tokenizer does not write them.
_VOCABULARIES = ("tokenizer.model", "sentencepiece.bpe.model")


def require(model: BayesModel) -> None:
    """Refuse a quantised base."""
    require_mergeable(model)


def write(
    model: BayesModel, plain: Plain, folder: Path, *, shard_size: str | None, keep: bool
) -> None:
    """Write the causal language model (or encoder), its tokenizer and the head beside it."""
    from transformers import AutoModel, AutoModelForCausalLM

    decoder = model.backbone.decoder
    made = shell(model, AutoModelForCausalLM if decoder else AutoModel)
    prefix = name_of_transformer(model) if decoder else ""
    with merged_weights(model, plain, keep=keep) as weights:
        state = {f"{prefix}{name}": weight for name, weight in weights.items()}
        state |= _output_layer(model, made, state)
        write_model(made, state, folder, shard_size)
    save_tokenizer(model.tokenizer, folder)
    for name in _VOCABULARIES:
        if (file := base_file(model.source, name)) is not None:
            shutil.copyfile(file, folder / name)
    (folder / SIDECAR).mkdir()
    save_sidecar(model, folder / SIDECAR, plain.probe, plain.score)


def reload(model: BayesModel, folder: Path) -> Any:
    """Return what transformers makes of a folder: the bare transformer; llama.cpp is not run."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)


def usage(model: BayesModel, places: list[str]) -> str:
    """Return how it is converted and served, in Markdown."""
    pooling, place = model.backbone.pooling, places[0]
    text = f"""\
```bash
python convert_hf_to_gguf.py {place} --outfile model.gguf --outtype f32   # or f16, bf16, q8_0
llama-server -m model.gguf --embedding --pooling {pooling}
```

```python
import requests, torch
from bayestune.store import open_sidecar      # needs no backbone

asked = {{"content": PROMPTS, "embd_normalize": -1}}    # states as they are
found = requests.post("http://localhost:8080/embedding", json=asked).json()
phi = torch.tensor([row["embedding"][0] for row in found])
prediction = open_sidecar("{place}").predict(phi)
```

GGUF has no place for this head: it stands in `posterior/`. Quantised files give other states, which
the posterior was not fitted to: measure before you rely on it.
"""
    if model.task.fields.text2 is not None and not model.backbone.decoder:
        text += "llama.cpp gives both texts of a pair one segment; this encoder tells them apart.\n"
    return text


def _output_layer(model: BayesModel, made: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's own language-model head, which a classifier's base is loaded without."""
    tied = made.all_tied_weights_keys or {}
    names = [k for k in made.state_dict() if k not in state and k not in tied]
    found = base_tensors(model.source, names)
    return {name: tensor.to(model.backbone.dtype) for name, tensor in found.items()}
