"""Backbones as they come from a hub: a configuration, a tokeniser, weights; damaged or made up."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch

import bayestune as bt
from bayestune.store.manifest import digest_of
from reliability.cases.damage import BOMBS, cut, exchange, flip, insert, respell
from reliability.cases.harness import must
from reliability.cases.world import World, answers

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_ODD = (
    None,
    0,
    -1,
    1,
    3,
    7,
    2**31,
    2**62,
    0.5,
    -1.0,
    1e30,
    "x",
    "",
    True,
    [],
    {},
    [1, 2],
    {"a": 1},
)
_NAMES = (
    *(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    ),
    *("intermediate_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "head_dim"),
    *("model_type", "architectures", "torch_dtype", "dtype", "rope_scaling", "rope_parameters"),
    *(
        "auto_map",
        "quantization_config",
        "pad_token_id",
        "num_labels",
        "id2label",
        "tie_word_embeddings",
    ),
    *("attention_bias", "initializer_range", "is_encoder_decoder", "problem_type", "use_cache"),
)
_KINDS = ("bert", "gpt2", "t5", "llava", "mamba", "x", "../x", "", "qwen2", "distilbert")


class Bases:
    """Copies of a backbone, each with one thing wrong, under a run trained on the whole."""

    name, title = "bases", "backbones"

    def __init__(self, folder: Path, world: World) -> None:
        self.world, self.copy, self.folder = world, folder / "base", folder
        self.run = folder / "run"
        shutil.copytree(world.run, self.run)
        file = self.run / "model" / "bayestune.json"
        described = json.loads(file.read_text())
        described["recipe"]["model"] = described["base"]["name"] = str(self.copy)
        file.write_text(json.dumps({**described, "digest": digest_of(described)}))
        (file.parent / "guarantees.json").unlink()  # it is that of another description

    def case(self, rng: random.Random) -> bool:
        """Load a run on it, or begin a new model."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.world.base, self.copy)
        file = rng.choice((_CONFIG, _CONFIG, "tokenizer.json", "tokenizer_config.json", _WEIGHTS))
        self._damage(rng, self.copy / file)
        kind = rng.randrange(4)
        if kind < 2:
            # Where it was trained a backbone is known by its files, elsewhere by a part of them.
            model = bt.load(self.run, base=str(self.copy) if kind else None)
            same = answers(model)[:, :5].equal(self.world.answers[:, :5])
            must(same or (kind and file == _WEIGHTS), "another model, and nobody said so")
        else:
            labels = self.world.model.labels
            model = bt.build(
                "polar_vbll", base=str(self.copy), labels=labels, rank=2, layers="top:1"
            )
            found: Any = model.predict(["where is my parcel?"])
            must(bool(torch.isfinite(found.probs).all()), "answers that are no numbers")
        must(not (self.folder / "pwned").exists(), "code of a backbone was run")
        return True

    def _damage(self, rng: random.Random, file: Path) -> None:
        data = file.read_bytes()
        if file.suffix == ".json" and rng.random() < 0.1:
            data = rng.choice(BOMBS)
        elif file.name == _CONFIG and rng.random() < 0.8:
            config = json.loads(data)
            config[rng.choice(_NAMES)] = rng.choice(_ODD)
            if rng.random() < 0.2:
                config["model_type"] = rng.choice(_KINDS)
            if rng.random() < 0.1:
                code = f"open({str(self.folder / 'pwned')!r}, 'w')\nclass Model: pass\n"
                (self.copy / "code.py").write_text(code)
                config["auto_map"] = {"AutoConfig": "code.Model", "AutoModel": "code.Model"}
            data = json.dumps(config).encode()
        elif file.suffix == ".json" and rng.random() < 0.5:
            data = json.dumps(respell(rng, json.loads(data))).encode()
        else:
            data = rng.choice((flip, flip, cut, insert, exchange))(rng, data)
        file.write_bytes(data)
