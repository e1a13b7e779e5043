"""The identity of a loaded backbone: of its numbers, not of its files or its precision."""

from __future__ import annotations

import torch

from bayestune.backbone import identity, load_base, resolve


def of(folder, dtype=torch.float32, classes=2) -> str:
    base = load_base(resolve(str(folder)), classes, torch.device("cpu"), dtype)
    return identity(base.transformer)


def test_precision_and_number_of_classes_do_not_matter(llama_base):
    assert of(llama_base) == of(llama_base, torch.bfloat16) == of(llama_base, classes=7)


def test_other_numbers_or_another_config_are_another_backbone(llama_base):
    base = load_base(resolve(str(llama_base)), 2, torch.device("cpu"), torch.float32)
    before = identity(base.transformer)
    for _, weight in sorted(base.transformer.named_parameters()):
        with torch.no_grad():
            weight.view(-1)[0] += 1
        assert identity(base.transformer) != before
        with torch.no_grad():
            weight.view(-1)[0] -= 1
    assert identity(base.transformer) == before
    base.transformer.config.rope_theta = 5.0
    assert identity(base.transformer) != before


def test_an_encoder_has_one_too(bert_base, llama_base):
    assert of(bert_base) == of(bert_base) != of(llama_base)
