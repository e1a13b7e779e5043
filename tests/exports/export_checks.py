"""What the tests of exports ask again and again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayestune.model import BayesModel

TEXTS = ["find my parcel", "how can you refund this charge again please", "login"]


def prompts(model: BayesModel, texts: list[str] = TEXTS) -> list[str]:
    """The texts as the card of an export tells its reader to write them."""
    del model
    return [f"{text}\nLabel:" for text in texts]


def mean_logits(model: BayesModel, texts: Any = TEXTS) -> Tensor:
    """Logits of the posterior mean, by the model itself."""
    with torch.no_grad():
        return model.head(model.features(texts))


def stock_logits(stock: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Logits of a stock classifier for a padded batch."""
    with torch.no_grad():
        return stock.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.float()


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())


def python_of(folder: Path) -> str:
    """The first Python block of an export's card, its path filled in."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code, *_) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code.replace("PATH", str(folder))
