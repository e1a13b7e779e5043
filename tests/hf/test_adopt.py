"""From a Trainer's folder to a model with all public verbs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from safetensors.torch import load_file, save_file
from toy_tasks import foreign_texts

import bayestune as bt
from bayestune.errors import ConfigError, StoreError

TOPICS = ["login", "parcel", "refund"]


@pytest.fixture(scope="module")
def saved(classifier, encode, tokenizer, tmp_path_factory):
    """Return the folder and the trainer of a training of PoLAR or LoRA, done once."""
    from transformers import TrainingArguments

    made = {}

    def get(kind="polar"):
        if kind in made:
            return made[kind]
        if kind == "polar":
            config = bt.PolarConfig(r=4, alpha=8, target_modules="all-linear", task_type="SEQ_CLS")
        else:
            config = LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=["q_proj", "up_proj"],
                layers_to_transform=[2, 3],
                init_lora_weights="gaussian",
                task_type="SEQ_CLS",
            )
        folder = tmp_path_factory.mktemp(kind)
        trainer = bt.hf.BayesTrainer(
            model=classifier(config),
            args=TrainingArguments(
                output_dir=str(folder / "out"),
                per_device_train_batch_size=16,
                num_train_epochs=4,
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                report_to="none",
                save_strategy="no",
                log_level="error",
            ),
            train_dataset=encode(96),
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=bt.optim.for_trainer(lr=2e-3, head_lr=5e-2),
        )
        trainer.train()
        trainer.save_model(str(folder / "adapter"))
        made[kind] = folder / "adapter", trainer
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["polar", "lora"])
def test_it_predicts_saves_and_loads_what_the_trainer_predicts(
    kind, saved, encode, topics_task, tmp_path
):
    folder, trainer = saved(kind)
    rows, task = encode(30, 5), topics_task(30, 5)
    expected = torch.from_numpy(trainer.predict(rows).predictions).exp()
    model = bt.hf.to_bayes_model(folder, TOPICS)
    assert model.method.name == f"{kind}_vbll"
    texts = [example.text for example in task]
    torch.testing.assert_close(model.predict(texts).probs, expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model")
    again = bt.load(tmp_path / "model")
    assert torch.equal(again.predict(texts).probs, model.predict(texts).probs)
    stock = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    direct = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    batch = {k: v for k, v in trainer.data_collator(rows).items() if k != "labels"}
    with torch.no_grad():
        mean = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(stock.eval()(**batch).logits, mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(direct.eval()(**batch).logits, mean, rtol=1e-4, atol=1e-4)


def test_held_out_rows_finish_it_and_it_is_calibrated(saved, topics_task, tmp_path):
    folder, _ = saved()
    train, val, test = topics_task(96), topics_task(90, 1000), topics_task(120, 2000)
    plain = bt.hf.to_bayes_model(folder, TOPICS)
    seen = bt.hf.to_bayes_model(folder, train, train=train)
    model = bt.hf.to_bayes_model(folder, TOPICS, train=train, val=val)
    assert plain.density is None
    torch.testing.assert_close(seen.predict(test).probs, plain.predict(test).probs)
    known, unknown = seen.predict(test).ood_score, seen.predict(foreign_texts(40)).ood_score
    assert bt.metrics.auroc(known, unknown) > 0.9
    before = bt.metrics.nll(plain.predict(val).probs, plain.targets(val))
    assert bt.metrics.nll(model.predict(val).probs, model.targets(val)) < before
    assert model.notes["chosen"]["temperature"] != 1
    assert model.notes["chosen"]["trained_by"] == "transformers.Trainer"
    bt.calibrate(model, topics_task(120, 3000), coverage=0.9)
    model.save(tmp_path / "model")
    sets = bt.load(tmp_path / "model").predict(test).sets
    assert sets is not None
    right = [TOPICS[int(k)] in names for names, k in zip(sets, model.targets(test), strict=True)]
    assert sum(right) / 120 > 0.8


def test_what_no_recipe_describes_is_refused(saved, tmp_path, bert_base, classifier):
    folder, _ = saved("lora")

    def changed(name, **values):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "adapter_config.json").read_text()) | values
        (copy / "adapter_config.json").write_text(json.dumps(config))
        return copy

    with pytest.raises(ConfigError, match="use_dora=True"):
        bt.hf.to_bayes_model(changed("dora", use_dora=True), TOPICS)
    with pytest.raises(ConfigError, match="init_lora_weights='pissa'"):
        bt.hf.to_bayes_model(changed("pissa", init_lora_weights="pissa"), TOPICS)
    with pytest.raises(ConfigError, match="holds OFT"):
        bt.hf.to_bayes_model(changed("oft", peft_type="OFT"), TOPICS)
    other = changed("other")
    tensors = load_file(other / "adapter_model.safetensors")
    kept = {k: v for k, v in tensors.items() if "layers.3.self_attn.q_proj" not in k}
    save_file(kept, other / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="other modules in some layers"):
        bt.hf.to_bayes_model(other, TOPICS)
    kept = {k: v for k, v in tensors.items() if "score" not in k or k.endswith("score.weight")}
    save_file(kept, other / "adapter_model.safetensors")
    with pytest.raises(StoreError, match="has no posterior"):
        bt.hf.to_bayes_model(other, TOPICS)
    with pytest.raises(StoreError, match="holds no PEFT adapter"):
        bt.hf.to_bayes_model(tmp_path / "nothing", TOPICS)
    with pytest.raises(StoreError, match=r"bt\.hf\.to_bayes_model"):
        bt.load(folder)
    config = bt.PolarConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    classifier(config, base=bert_base).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="encoder's classifier"):
        bt.hf.to_bayes_model(tmp_path / "bert", TOPICS)


def test_val_alone_and_other_tasks_are_refused(saved, topics_task, choice):
    with pytest.raises(ConfigError, match="is choice"):
        bt.hf.to_bayes_model(saved()[0], choice)
    with pytest.raises(ConfigError, match="give train, too"):
        bt.hf.to_bayes_model(saved()[0], TOPICS, val=topics_task(30))
