"""One of two processes that train together; what it has learnt lies in a file afterwards.

python distributed_run.py BASE ROWS SCHEDULE FOLDER
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch


def learnt(base, rows, folder, size, steps):
    """Return all that four steps change, by schedule and name."""
    found = {}
    for schedule in ("alternate", "joint"):
        model = train(base, rows, folder, size, steps, schedule)
        named = model.named_parameters()
        found |= {f"{schedule} {n}": p.detach() for n, p in named if p.requires_grad}
    return found


def train(base, rows, folder, size, steps, schedule):
    """Take four steps of one schedule and return the model."""
    from peft import get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainingArguments,
    )

    import bayestune as bt

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    bt.head.install(model)
    config = bt.PolarConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
    model = get_peft_model(model, config).double()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        max_steps=4,
        train_sampling_strategy="sequential",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
    )
    trainer = bt.hf.BayesTrainer(
        model=model,
        args=arguments,
        train_dataset=torch.load(rows, weights_only=True),
        processing_class=AutoTokenizer.from_pretrained(base),
        optimizer_cls_and_kwargs=bt.optim.for_trainer(lr=2e-3, head_lr=5e-2),
        schedule=schedule,
    )
    trainer.train()
    return model


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    base, rows, folder = sys.argv[1:]
    torch.set_num_threads(1)
    out = Path(folder)
    found = learnt(base, rows, out / "two", 4, 2)
    torch.save(found, out / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
