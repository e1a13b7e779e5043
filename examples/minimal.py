"""PoLAR-VBLL in plain PyTorch: no trainer, one file, to be read from top to bottom.

    python examples/minimal.py                       # the embedded model, the quick-start data
    python examples/minimal.py --model Qwen/Qwen3-0.6B

ΔW = s · X Θ Yᵀ with orthonormal X and Y adapts the transformer; q(W) = Π_k N(w̄_k, diag s_k²) is the
last layer. Both are trained by one bound, −mean E log p(y | Wφ) + KL(q ‖ p) / N, in turn.
"""

from __future__ import annotations

import argparse
import json
import random

import torch
from peft import get_peft_model
from transformers import AutoModel, AutoTokenizer

import bayestune as bt
from bayestune.backbone import resolve
from bayestune.data.quickstart import quickstart_path
from bayestune.posterior import Predictive

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2-135m", help="a Hub id, a folder or smollm2-135m")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--rows", type=int, default=None, help="train on so many rows")
arguments = parser.parse_args()


# Data: texts, and the index of each one's class.
def read(name: str, limit: int | None = None) -> list[dict[str, str]]:
    lines = quickstart_path(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:limit]]


train, test, foreign = read("train.jsonl", arguments.rows), read("test.jsonl"), read("oos.jsonl")
classes = json.loads(quickstart_path("labels.json").read_text(encoding="utf-8"))
N, K = len(train), len(classes)

# Model: PEFT puts the adapter around the query and value projections of the upper quarter.
torch.manual_seed(0)
path = resolve(arguments.model).path
tokenizer = AutoTokenizer.from_pretrained(path)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
base = AutoModel.from_pretrained(path, dtype=torch.float32)
layers, width = base.config.num_hidden_layers, base.config.hidden_size
upper = list(range(layers - max(1, layers // 4), layers))
where = {"layers_to_transform": upper, "layers_pattern": "layers"}
model = get_peft_model(base, bt.PolarConfig(r=8, alpha=16, task_type="FEATURE_EXTRACTION", **where))
head = bt.head.GaussianHead(in_features=width, num_classes=K)


def features(rows: list[dict[str, str]]) -> torch.Tensor:
    """Return the state of the last token of each text, (B, D)."""
    texts = [row["text"] + "\nLabel:" for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    hidden = model(**batch).last_hidden_state  # (B, T, D)
    return hidden[torch.arange(len(rows)), batch["attention_mask"].sum(1) - 1]


def all_features(rows: list[dict[str, str]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([features(rows[i : i + 32]) for i in range(0, len(rows), 32)])


def labels(rows: list[dict[str, str]]) -> torch.Tensor:
    return torch.tensor([classes.index(row["label"]) for row in rows])


# Prior, initial deviations and step size of the head follow from the size of the features.
head.set_feature_energy(all_features(train[:: max(1, N // 128)]))
adapter = bt.optim.build(model, lr=2e-3)  # Riemannian for X and Y, spectral for Θ
posterior = bt.optim.build(head, lr=5e-3)
steps = arguments.epochs * -(-N // arguments.batch_size)
schedules = [
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    for optimizer in (adapter, posterior)
]

for epoch in range(arguments.epochs):
    random.Random(epoch).shuffle(train)
    total = 0.0
    for i in range(0, N, arguments.batch_size):
        rows = train[i : i + arguments.batch_size]
        phi, y = features(rows), labels(rows)
        # The posterior moves on the features as they are ...
        loss = -head.bound(phi.detach(), y).mean() + head.kl() / N
        posterior.zero_grad()
        loss.backward()
        posterior.step()
        # ... then the adapter, against the new posterior and through the same pass.
        nll = -head.bound(phi, y).mean()
        adapter.zero_grad()
        nll.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adapter.step()
        for schedule in schedules:
            schedule.step()
        total += nll.item() * len(rows)
    print(f"epoch {epoch + 1}: nll {total / N:.3f}, kl {head.kl().item():.1f}")

# Prediction: logits are Gaussian, and probabilities are averaged over them.
with torch.no_grad():
    known = Predictive.from_moments(*head.moments(all_features(test)))
    unknown = Predictive.from_moments(*head.moments(all_features(foreign)))
y = labels(test)
print(
    f"test: accuracy {bt.metrics.accuracy(known.probs, y):.3f}, "
    f"nll {bt.metrics.nll(known.probs, y):.3f}, ece {bt.metrics.ece(known.probs, y):.3f}"
)
print(
    f"epistemic uncertainty: {known.epistemic.mean():.3f} nats, "
    f"out of scope {unknown.epistemic.mean():.3f}"
)
print(f"largest orthogonality error of X and Y: {adapter.largest_orthogonality_error():.1e}")
