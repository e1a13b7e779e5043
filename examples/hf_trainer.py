"""PoLAR-VBLL in the Trainer of transformers: what a PEFT user changes is marked with a number.

    python examples/hf_trainer.py                       # the embedded model, the quick-start data
    python examples/hf_trainer.py --model Qwen/Qwen3-0.6B --train my.jsonl --test unseen.jsonl

Rows are JSON objects with "text" and "label". OUT/checkpoints holds what the Trainer writes,
OUT/adapter what stock PEFT loads, OUT/model what `bayestune predict`, `eval` and `calibrate` take.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import bayestune as bt
from bayestune.backbone import resolve
from bayestune.data.quickstart import quickstart_path

PROMPT = "{text}\nLabel:"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2-135m", help="a Hub id, a folder or smollm2-135m")
parser.add_argument("--train", type=Path, default=quickstart_path("train.jsonl"))
parser.add_argument("--test", type=Path, default=quickstart_path("test.jsonl"))
parser.add_argument("--out", type=Path, default=Path("runs/hf"))
parser.add_argument("--adapter", choices=["polar", "lora"], default="polar")
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--accumulate", type=int, default=1, help="micro-batches in a step")
parser.add_argument("--kl", type=float, default=1.0, help="weight of the KL; 1 is the ELBO")
parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")


def main(arguments: argparse.Namespace) -> dict[str, float]:
    task = bt.Task.from_jsonl(str(arguments.train))
    task, held_out = task.split(0.1, seed=0)
    test = bt.Task.from_jsonl(str(arguments.test), like=task)
    classes = list(task.labels)

    path = resolve(arguments.model).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def encode(rows: bt.Task) -> list[dict[str, Any]]:
        texts = [PROMPT.format(text=example.text) for example in rows]
        ids = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
        return [
            {"input_ids": one, "attention_mask": [1] * len(one), "labels": label}
            for one, label in zip(ids, rows.targets, strict=True)
        ]

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(classes))
    bt.head.install(base)  # 1: the last layer becomes a Gaussian
    layers = base.config.num_hidden_layers
    options: dict[str, Any] = {
        "r": arguments.rank,
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": list(range(layers - max(1, layers // 4), layers)),
        "task_type": "SEQ_CLS",
    }
    if arguments.adapter == "polar":
        config = bt.PolarConfig(alpha=2 * arguments.rank, **options)  # 2: instead of LoraConfig
    else:
        config = LoraConfig(lora_alpha=2 * arguments.rank, **options)
    model = get_peft_model(base, config)

    lr = 2e-3 if arguments.adapter == "polar" else 5e-4
    trainer = bt.hf.BayesTrainer(  # 3: instead of Trainer, with an optimiser for both
        optimizer_cls_and_kwargs=bt.optim.for_trainer(lr=lr, head_lr=5e-3),
        kl=arguments.kl,
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "checkpoints"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            gradient_accumulation_steps=arguments.accumulate,
            warmup_steps=0.06,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_nll",
            logging_steps=10,
            report_to="none",
            use_cpu=arguments.cpu,
            dataloader_pin_memory=torch.cuda.is_available() and not arguments.cpu,
        ),
        train_dataset=encode(task),
        eval_dataset=encode(held_out),
        processing_class=tokenizer,
    )
    trainer.train()
    found = trainer.evaluate(encode(test), metric_key_prefix="test")
    print({name: round(value, 4) for name, value in found.items()})

    trainer.save_model(str(arguments.out / "adapter"))  # stock PEFT loads it: the mean classifier
    full = bt.hf.to_bayes_model(
        arguments.out / "adapter",
        task,
        prompt={"template": PROMPT},
        train=task,
        val=held_out,
        device="cpu" if arguments.cpu else "auto",
    )
    full.save(arguments.out / "model")  # bayestune predict, eval, calibrate and bt.load take it
    chosen = bt.evaluate(full, test).scalars  # covariance and temperature by the held-out rows
    print({f"model_{name}": round(chosen[name], 4) for name in ("nll", "ece", "accuracy")})
    texts = [example.text for example in test][:3]
    pred = full.predict(texts)
    for text, label, p, epistemic in zip(
        texts, pred.labels, pred.confidence, pred.epistemic, strict=True
    ):
        print(
            json.dumps(
                {
                    "text": text,
                    "label": label,
                    "p": round(float(p), 3),
                    "epistemic": round(float(epistemic), 3),
                }
            )
        )
    return found


if __name__ == "__main__":
    main(parser.parse_args())
