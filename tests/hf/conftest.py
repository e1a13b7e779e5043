"""A tiny classifier with a Bayesian last layer, and a Trainer for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_tasks import topic_rows

import bayestune as bt
from bayestune.data import Task

TOPICS = ["login", "parcel", "refund"]


@pytest.fixture(scope="session")
def tokenizer(llama_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_base)


@pytest.fixture(scope="session")
def encode(tokenizer: Any) -> Callable[..., list[dict[str, Any]]]:
    """Tokenised rows of the toy task, as a Trainer takes them."""

    def encoder(count: int, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
        rows = topic_rows(count, seed, **options)
        ids = tokenizer([row["text"] for row in rows])["input_ids"]
        return [
            {"input_ids": one, "attention_mask": [1] * len(one), "labels": TOPICS.index(r["label"])}
            for one, r in zip(ids, rows, strict=True)
        ]

    return encoder


@pytest.fixture(scope="session")
def topics_task() -> Callable[..., Task]:
    def make(count: int, seed: int = 0) -> Task:
        return Task.from_rows(topic_rows(count, seed))

    return make


@pytest.fixture(scope="session")
def classifier(llama_base: Path) -> Callable[..., Any]:
    """Return the model of a PEFT user who has installed a head."""

    def build(
        config: Any = None, *, base: Path = llama_base, head: Any = None, dtype: Any = torch.float32
    ) -> Any:
        from peft import get_peft_model
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=dtype)
        bt.head.install(model, head)
        if config is None:
            config = bt.PolarConfig(
                r=4, alpha=8, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"
            )
        return get_peft_model(model, config)

    return build


@pytest.fixture
def trainer(classifier: Any, encode: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """Return a trainer; arguments of ours go to it, all others to its TrainingArguments."""

    def make(
        model: Any = None, train: Any = None, val: Any = None, ours: Any = None, **arguments: Any
    ) -> Any:
        from transformers import TrainingArguments

        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "num_train_epochs": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "log_level": "error",
        }
        options = {
            "optimizer_cls_and_kwargs": bt.optim.for_trainer(lr=2e-3, head_lr=5e-2),
            **(ours or {}),
        }
        return bt.hf.BayesTrainer(
            model=classifier() if model is None else model,
            args=TrainingArguments(**{**defaults, **arguments}),
            train_dataset=encode(96) if train is None else train,
            eval_dataset=encode(60, 100) if val is None else val,
            processing_class=tokenizer,
            **options,
        )

    return make
