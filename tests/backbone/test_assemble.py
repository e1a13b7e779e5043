"""From a source to an adapted backbone, with the head where PEFT saves and loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from backbone_zoo import CLASSES, WIDTH, backbone, base, batch, config, texts
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    T5Config,
)

from bayestune.backbone import (
    Source,
    adapt,
    load_base,
    load_tokenizer,
    output_rows,
    pick_device,
    pick_dtype,
    replace_head,
    resolve,
)
from bayestune.config import AdapterConfig, HeadConfig
from bayestune.errors import ConfigError, ModelError
from bayestune.head import GaussianHead, LinearHead

CPU = torch.device("cpu")


def load(folder: Path, classes: int = CLASSES, dtype: torch.dtype = torch.float32):
    return load_base(resolve(str(folder)), classes, CPU, dtype)


def linear(width: int = WIDTH) -> LinearHead:
    return LinearHead(in_features=width, num_classes=CLASSES)


def adapted(model: nn.Module) -> set[str]:
    """Paths of the adapted modules within the transformer."""
    return {
        name.rsplit("base_model.model.", 1)[-1].removeprefix("model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def test_a_decoder_comes_as_its_classifier_without_a_vocabulary_head(llama_base):
    loaded = load(llama_base)
    assert (loaded.decoder, loaded.width) == (True, WIDTH)
    assert type(loaded.model).__name__ == "LlamaForSequenceClassification"
    assert loaded.transformer is loaded.model.model
    assert loaded.model.score.weight.shape == (CLASSES, WIDTH)
    assert not any("lm_head" in name for name, _ in loaded.model.named_parameters())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    stored = AutoModel.from_pretrained(llama_base).state_dict()
    assert all(torch.equal(stored[k], v) for k, v in loaded.transformer.state_dict().items())


def test_an_encoder_comes_bare(bert_base):
    loaded = load(bert_base)
    assert (loaded.decoder, loaded.width) == (False, WIDTH)
    assert loaded.model is loaded.transformer and type(loaded.model).__name__ == "BertModel"


def test_features_are_as_wide_as_the_architectures_last_state(tmp_path):
    AutoModelForCausalLM.from_config(config("opt")).save_pretrained(tmp_path)  # projects 32 to 16
    loaded = load(tmp_path)
    assert loaded.width == 16
    made, _ = adapt(loaded, linear(16), AdapterConfig(layers="top:1"), HeadConfig())
    assert made(**batch(texts())).shape == (5, 16)


def test_a_model_without_a_padding_token_needs_none(tmp_path):
    AutoModelForCausalLM.from_config(config("llama", pad_token_id=None)).save_pretrained(tmp_path)
    assert load(tmp_path).model.config.pad_token_id is not None


def test_an_encoder_decoder_is_refused(tmp_path):
    T5Config(vocab_size=8, d_model=8, num_layers=1).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"^Encoder-decoder models are not supported; use a dec"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "junk", "empty"])
def test_damaged_weights_are_one_sentence(damage, llama_base, tmp_path):
    folder = shutil.copytree(llama_base, tmp_path / "copy")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "junk": b"\xff" * 100, "empty": b""}[damage])
    refused = r"copy (cannot be loaded as a transformer: .+|has .+ too small)"
    with pytest.raises(ModelError, match=refused) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_missing_weights_are_never_made_up(kind, llama_base, bert_base, tmp_path):
    folder = shutil.copytree({"llama": llama_base, "bert": bert_base}[kind], tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    gone = next(k for k in tensors if "1.self_attn.v_proj" in k or "1.attention.self.value.w" in k)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"copy is incomplete: it lacks the weights .*\.1\."):
        load(folder)


def test_an_unknown_architecture_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "novel"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded as a transformer") as error:
        load(tmp_path)
    assert "novel" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma2", "deberta"])
def test_a_model_without_a_tokenizer_says_so(kind, tmp_path):
    """Where its files are missing, transformers raises for some and makes up one for others."""
    config(kind).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no usable tokenizer: .+") as error:
        load_tokenizer(resolve(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_damaged_tokenizer_says_so(bert_base, tmp_path):
    folder = shutil.copytree(bert_base, tmp_path / "copy")
    assert load_tokenizer(resolve(str(folder)))("login").input_ids
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelError, match=r"copy has no usable tokenizer: .+"):
        load_tokenizer(resolve(str(folder)))


def test_a_decoders_head_lies_where_stock_peft_finds_it(llama_base):
    loaded = load(llama_base)
    given = GaussianHead(in_features=WIDTH, num_classes=CLASSES)
    made, head = adapt(loaded, given, AdapterConfig(layers="top:2"), HeadConfig())
    settings = made.peft_model.peft_config["default"]
    assert settings.task_type == "SEQ_CLS" and "score" in settings.modules_to_save
    wrapper = made.peft_model.get_base_model().score
    assert wrapper.modules_to_save["default"] is head and head is not given
    assert all(p.requires_grad for p in head.parameters())
    assert (made.pooling, made.first_layer, made.decoder) == ("last", 2, True)
    other = linear()
    replace_head(made, other)
    assert wrapper.modules_to_save["default"] is other


def test_an_encoders_head_stays_apart(bert_base):
    loaded = load(bert_base)
    given = linear()
    made, head = adapt(loaded, given, AdapterConfig(layers="1"), HeadConfig())
    settings = made.peft_model.peft_config["default"]
    assert head is given and settings.task_type == "FEATURE_EXTRACTION"
    assert (made.pooling, made.first_layer, made.decoder) == ("mean", 1, False)
    before = {name for name, _ in made.named_modules()}
    replace_head(made, linear())  # there is no other place to keep in step
    assert {name for name, _ in made.named_modules()} == before


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_the_recipes_pooling_is_taken(pooling):
    assert backbone("llama", pooling=pooling).pooling == pooling


SELF = "self_attn.{}_proj"


@pytest.mark.parametrize("kind", ["polar", "lora"])
@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("auto", ("q", "v")),
        ("q_proj,o_proj", ("q", "o")),
        (" k_proj , v_proj", ("k", "v")),
    ],
)
def test_adapters_sit_on_the_targets_of_the_chosen_layers(kind, targets, names):
    made = backbone("llama", layers="1,3", adapter={"kind": kind, "targets": targets})
    expected = {f"layers.{i}.{SELF.format(name)}" for i in (1, 3) for name in names}
    assert adapted(made.peft_model) == expected
    assert made.first_layer == 1


@pytest.mark.parametrize("adapter", ["polar", "lora"])
@pytest.mark.parametrize("kind", ["llama", "bert", "gpt_neox"])
def test_all_linear_is_every_linear_module_of_the_chosen_layers(kind, adapter):
    made = backbone(kind, layers="top:2", adapter={"kind": adapter, "targets": "all-linear"})
    plain = base(kind).transformer
    path = next(n for n, m in plain.named_modules() if isinstance(m, nn.ModuleList))
    expected = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and name.startswith((f"{path}.2.", f"{path}.3."))
    }
    found = {name.removeprefix("gpt_neox.") for name in adapted(made.peft_model)}
    assert len(expected) >= 8 and found == expected


@pytest.mark.parametrize("kind", ["polar", "lora"])
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            "q_prj",
            r"not found in LlamaForSequenceClassification: 'q_prj'\. Did you mean 'q_proj'\?",
        ),
        ("q_proj,query", r"not found in .*: 'query'\. Valid: 'q_proj', 'k_proj'"),
        ("q_proj,", r"not found in .*: ''\. Valid: 'q_proj', 'k_proj'"),
        ("embed_tokens", r"no target in \['embed_tokens'\] lies in a layer"),
        ("input_layernorm", r"is a LlamaRMSNorm, but only linear layers"),
    ],
)
def test_wrong_targets_are_named_with_the_nearest(kind, targets, message):
    with pytest.raises(ModelError, match=message):
        backbone("llama", adapter={"kind": kind, "targets": targets})


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_without_known_targets_the_key_is_named(kind):
    with pytest.raises(
        ModelError, match=f"known for {kind}; name some with adapter.targets, for ex"
    ):
        backbone(kind, adapter={"targets": "auto"})


def test_a_rank_above_the_size_of_a_target_is_refused():
    with pytest.raises(ModelError, match="17"):
        backbone("llama", adapter={"rank": 17, "targets": "v_proj"})  # v has 16 outputs


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"adapter\.layers is 'top:5'; .* of the 4 layers"):
        backbone("llama", layers="top:5")


@pytest.mark.parametrize("kind", ["polar", "lora"])
def test_the_scale_is_alpha_over_rank(kind):
    made = backbone("llama", adapter={"kind": kind, "rank": 4, "alpha": 6.0, "dropout": 0.25})
    layers = [m for m in made.peft_model.modules() if isinstance(m, BaseTunerLayer)]
    assert layers and all(layer.scaling["default"] == 1.5 for layer in layers)
    settings = made.peft_model.peft_config["default"]
    assert 0.25 in (getattr(settings, "dropout", None), getattr(settings, "lora_dropout", None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["polar", "lora"])
def test_a_half_precision_base_keeps_adapter_and_head_in_fp32(kind, dtype, llama_base):
    loaded = load(llama_base, dtype=dtype)
    assert {p.dtype for p in loaded.transformer.parameters()} == {dtype}
    head = GaussianHead(in_features=WIDTH, num_classes=CLASSES)
    made, head = adapt(loaded, head, AdapterConfig(kind=kind), HeadConfig())
    trained = {p.dtype for p in made.parameters() if p.requires_grad}
    frozen = {p.dtype for p in made.transformer.parameters() if not p.requires_grad}
    assert (trained, frozen, made.dtype) == ({torch.float32}, {dtype}, dtype)
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    made(**batch(texts()))[:, ::2].square().sum().backward()
    gradients = [p.grad for p in made.transformer.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def letters(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.detach()


IDS = [7, 31, 5]


def test_label_rows_are_those_of_the_lm_head(llama_base, tied_base):
    for folder, tied in ((llama_base, False), (tied_base, True)):
        source = resolve(str(folder))
        loaded = load(folder)
        assert loaded.transformer.config.tie_word_embeddings == tied
        rows = output_rows(source, loaded, IDS)
        assert rows.dtype == torch.float32 and rows.shape == (3, WIDTH)
        assert torch.equal(rows, letters(folder)[IDS])
        own = loaded.transformer.get_input_embeddings().weight[IDS]
        assert torch.equal(rows, own) == tied
        rows.zero_()  # a copy
        assert own.abs().sum() > 0


def test_label_rows_of_a_bf16_checkpoint_in_shards(llama_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    rows = output_rows(resolve(str(tmp_path)), load(tmp_path, dtype=torch.bfloat16), IDS)
    assert torch.equal(rows, letters(llama_base)[IDS].bfloat16().float())


@pytest.mark.parametrize("shards", [False, True])
def test_label_rows_of_a_hub_model(shards, llama_base, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(llama_base)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")

    def cached_file(repo, name, **_):
        assert repo == "org/name"
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    source = Source("org/name", "org/name", "v1", "org/name@abc")
    assert torch.equal(output_rows(source, load(llama_base), IDS), letters(llama_base)[IDS])
    shutil.rmtree(tmp_path)
    with pytest.raises(ModelError, match=r"org/name has no lm_head\.weight"):
        output_rows(source, load(llama_base), IDS)


def test_without_an_lm_head_there_are_no_label_rows(bert_base, tmp_path):
    with pytest.raises(ModelError, match=r"no lm_head\.weight to start .*; use head\.prior=zero"):
        output_rows(resolve(str(bert_base)), base("llama"), IDS)
    AutoModelForSequenceClassification.from_config(config("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no lm_head\.weight"):
        output_rows(resolve(str(tmp_path)), load(tmp_path), IDS)


def test_a_classifier_with_as_many_classes_may_be_a_base(tmp_path):
    AutoModelForSequenceClassification.from_config(config("llama")).save_pretrained(tmp_path)
    assert load(tmp_path).model.score.weight.shape == (CLASSES, WIDTH)
    with pytest.raises(ModelError, match="cannot be loaded as a transformer"):
        load(tmp_path, classes=CLASSES + 1)


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ModelError, match="The device 'abacus' cannot be used here"):
        pick_device("abacus")
    with pytest.raises(ModelError, match="The device 'cuda:77' cannot be used here") as error:
        pick_device("cuda:77")
    assert "\n" not in str(error.value)


def test_types():
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"no dtype 'bfloat'\. Did you mean 'bfloat16'\?"):
        pick_dtype("bfloat", CPU)
    with pytest.raises(ConfigError, match="no dtype 'load'"):
        pick_dtype("load", CPU)
