"""Fine-tuning from texts to a trained classifier, against HF Trainer with PEFT's LoRA.

(a) as a causal language model that writes the class, batches padded to their longest text;
(b) as ``AutoModelForSequenceClassification`` with batches grouped by length. Same texts, sites,
rank, batch size, epochs and warm-up. Ours is timed from texts, with the KL weight given: all that
is beside the epochs (finaliser, density, held-out choices) counts. Accuracy is of other texts.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from bench.speed.measure import Row, synchronise
from bench.speed.texts import tasks
from torch import nn

from bayestune.backbone import load_tokenizer, resolve
from bayestune.data import Task
from bayestune.model import BayesModel, build
from bayestune.progress import silent
from bayestune.training import fit

BATCH, RANK, TRAIN, TEST = 16, 8, 256, 128
#: Epochs, and those of the causal language model, whose time for all of them follows from one.
EPOCHS, TIMED = 8, 2


def run(
    device: str, base: str, repeats: int, epochs: int = EPOCHS, timed: int = TIMED
) -> list[Row]:
    """Train once by each; half an hour on a CPU, so that ``repeats`` does not matter."""
    train, test = tasks(TRAIN, TEST)
    ours = _ours(train, test, device, base, "all", epochs)
    lm = _causal(train, test, device, base, timed)
    classifier = _classifier(train, test, device, base, epochs)
    fast = _ours(train, test, device, base, "top:25%", epochs)
    causal = lm["setup"] + lm["epoch"] * epochs
    detail = {"ours": ours, "causal": lm, "classifier": classifier, "cached": fast}
    same = f"{TRAIN} texts, {epochs} epochs, all layers adapted"
    return [
        Row(
            f"fine-tuning, {same}: faster than HF Trainer with LoRA as a causal LM by (its time "
            f"per epoch over {timed})",
            causal / ours["seconds"],
            "×",
            "≥ 2",
            "no vocabulary, texts of one length together",
            detail,
        ),
        Row(
            f"fine-tuning, {same}: faster than HF Trainer with LoRA as a classifier by",
            classifier["seconds"] / ours["seconds"],
            "×",
            "≥ 1.1",
            "the same two passes; beside the epochs two passes without gradients, for the units of "
            "the posterior and for its last fit",
            detail,
        ),
        Row(
            "the same, ours with the top quarter adapted and the frozen layers cached, per epoch "
            "from the second on",
            classifier["epoch"] / fast["epoch"],
            "×",
            "≥ 5",
            "a quarter of the layers, less the skipped part of the last one",
            detail,
        ),
        Row(
            "the same over all epochs, everything counted",
            classifier["seconds"] / fast["seconds"],
            "×",
            "≥ 3",
            "the first pass through the frozen layers",
            detail,
        ),
    ]


def _ours(
    train: Task, test: Task, device: str, base: str, layers: str, epochs: int
) -> dict[str, float]:
    model = build(base=base, labels=train, device=device, layers=layers, rank=RANK)
    marks: list[float] = []
    started = time.perf_counter()
    fit(model, train, val=test.select(range(16)), kl=0.3, epochs=epochs, progress=_Marks(marks))
    synchronise(device)
    seconds = time.perf_counter() - started
    epoch = (marks[-1] - marks[0]) / (len(marks) - 1)
    return {
        "seconds": seconds,
        "epoch": epoch,
        "beside": seconds - epochs * epoch,
        "accuracy": _accuracy(model, test),
    }


class _Marks:
    """A progress that notes when each epoch of the training ends."""

    def __init__(self, marks: list[float]) -> None:
        self.marks = marks

    def __call__(self, label: str, total: int) -> Any:
        from contextlib import contextmanager

        if label != "training":
            return silent(label, total)

        @contextmanager
        def counted() -> Any:
            done = 0

            def advance(count: int, *_: Any) -> None:
                nonlocal done
                done += count
                if count and done % TRAIN == 0:
                    self.marks.append(time.perf_counter())

            yield advance

        return counted()


def _accuracy(model: BayesModel, test: Task) -> float:
    found = model.predict([example.text for example in test]).probs.argmax(1)
    return float((found == torch.tensor(test.targets)).float().mean())


def _lora(model: nn.Module, kind: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"], task_type=kind
    )
    return get_peft_model(model, config)  # pyright: ignore


def _trained(
    model: nn.Module, rows: list[dict[str, Any]], collate: Any, epochs: int, **options: Any
) -> dict[str, float]:
    """Train by HF Trainer; return its seconds, and those of an epoch without its setting up."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            warmup_steps=0.06,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
            **options,
        )
        trainer = Trainer(
            model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Watch()]
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    epoch = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {"seconds": seconds, "epoch": epoch, "setup": seconds - epochs * epoch}


def _classifier(train: Task, test: Task, device: str, base: str, epochs: int) -> dict[str, float]:
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    source = resolve(base)
    tokenizer = _padding(load_tokenizer(source))
    model = AutoModelForSequenceClassification.from_pretrained(
        source.path, num_labels=len(train.labels), pad_token_id=tokenizer.pad_token_id
    )
    model = _lora(model.to(device), "SEQ_CLS")
    rows = [
        {
            **tokenizer(example.text),
            "labels": label,
            "length": len(tokenizer(example.text).input_ids),
        }
        for example, label in zip(train, train.targets, strict=True)
    ]
    collate = DataCollatorWithPadding(tokenizer)
    found = _trained(model, rows, collate, epochs, train_sampling_strategy="group_by_length")

    @torch.inference_mode()
    def predicted(text: str) -> int:
        inputs = tokenizer(text, return_tensors="pt").to(device)
        return int(model(**inputs).logits.argmax())

    model.eval()
    hits = [predicted(e.text) == t for e, t in zip(test, test.targets, strict=True)]
    return found | {"accuracy": sum(hits) / len(hits)}


def _causal(train: Task, test: Task, device: str, base: str, epochs: int) -> dict[str, float]:
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

    source = resolve(base)
    tokenizer = _padding(load_tokenizer(source))
    model = AutoModelForCausalLM.from_pretrained(source.path)
    model = _lora(model.to(device), "CAUSAL_LM")
    answers = [tokenizer(f" {name}").input_ids for name in train.labels]
    rows = []
    for example, label in zip(train, train.targets, strict=True):
        ids = tokenizer(_prompt(example.text)).input_ids
        whole, silent_part = [*ids, *answers[label]], [-100] * len(ids)
        rows.append({"input_ids": whole, "labels": [*silent_part, *answers[label]]})
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    found = _trained(model, rows, collate, epochs)

    @torch.inference_mode()
    def predicted(text: str) -> int:
        inputs = tokenizer(_prompt(text), return_tensors="pt").to(device)
        logits = model(**inputs).logits[0, -1]
        return int(torch.stack([logits[answer[0]] for answer in answers]).argmax())

    model.eval()
    hits = [predicted(e.text) == t for e, t in zip(test, test.targets, strict=True)]
    return found | {"accuracy": sum(hits) / len(hits)}


def _prompt(text: str) -> str:
    return f"{text}\nTopic:"


def _padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
