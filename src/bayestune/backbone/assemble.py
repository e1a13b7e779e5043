"""Load a transformer, adapt it with PEFT and put the head where PEFT saves and loads it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayestune.backbone.backbone import Backbone
from bayestune.backbone.complete import check_complete, check_size
from bayestune.backbone.layers import hidden_size, layer_stack, parse_layers
from bayestune.backbone.quantise import is_quantised, quantiser
from bayestune.backbone.source import Source
from bayestune.config import AdapterConfig, HeadConfig
from bayestune.errors import BayestuneError, ModelError

#: Names under which transformers' sequence classifiers keep a bare linear head over the last token.
SCORE = "score"


@dataclass(frozen=True)
class Base:
    """A loaded backbone, not adapted yet.

    Args:
        model: a sequence classifier with a bare ``score`` for decoders, else the bare encoder.
        transformer: the bare transformer in it.
        decoder: whether it is causal.
        width: D, the size of a feature.
    """

    model: Any
    transformer: nn.Module
    decoder: bool
    width: int


def load_tokenizer(source: Source) -> Any:
    """Load the tokeniser that belongs to a backbone.

    Raises:
        ModelError: if there is none, or an empty one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source.name} has no usable tokenizer: {reason}") from error
    if not isinstance(getattr(tokenizer, "model_max_length", 0), int | float):
        raise ModelError(
            f"{source.name} has no usable tokenizer: model_max_length is "
            f"{tokenizer.model_max_length!r}, which is no number."
        )
    # Without its files, transformers makes one of special tokens (and a piece or two) alone.
    if len(tokenizer) < len(tokenizer.all_special_tokens) + 8:
        raise ModelError(
            f"{source.name} has no usable tokenizer: its vocabulary is empty; the files of the "
            "tokenizer are missing."
        )
    return tokenizer


def load_base(
    source: Source,
    classes: int,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str = "none",
) -> Base:
    """Load a transformer for classification.

    A decoder comes as its sequence classifier, whose bare ``score`` reads the last token: replaced
    by our head, everything that PEFT saves is what stock PEFT loads. An encoder's own classifier
    reads features of its own making, so an encoder comes bare.

    Args:
        source: where from.
        classes: K.
        device: where to.
        dtype: of the weights.
        quantize: what becomes of linear layers; see `quantiser`.

    Raises:
        ConfigError: see `quantiser`.
        ModelError: if the weights cannot be loaded or the architecture is not a plain transformer.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    # Said, because transformers asks on the terminal otherwise. The other weight format is pickled.
    options = {"revision": source.revision, "trust_remote_code": False, "use_safetensors": True}
    weights: dict[str, Any] = {**options, "dtype": dtype, "output_loading_info": True}
    try:
        config, decoder, classifier = _architecture(source, classes)
        if (settings := quantiser(quantize, source.name, config, dtype)) is not None:
            weights["quantization_config"] = settings
        fixed = settings is not None or is_quantised(config)
        if fixed:  # what is quantised cannot always be moved
            weights["device_map"] = {"": device}
        with _quiet():
            if classifier:
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source.path, config=config, **weights
                )
                if not isinstance(getattr(model, SCORE, None), nn.Linear):
                    model, info = AutoModel.from_pretrained(source.path, **weights)
            else:
                model, info = AutoModel.from_pretrained(source.path, **weights)
    except (BayestuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an architecture makes of a configuration
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source.name} cannot be loaded as a transformer: {reason}") from error
    check_complete(source.name, info)
    return _frozen(model if fixed else model.to(device), decoder)


def outline(source: Source, classes: int) -> Base:
    """Return a transformer without its weights, to count what a method adds to it.

    Raises:
        ModelError: if it has no configuration, or its architecture is not a plain transformer.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    try:
        config, decoder, classifier = _architecture(source, classes)
        with torch.device("meta"):
            model = (AutoModelForSequenceClassification if classifier else AutoModel).from_config(
                config
            )
            if classifier and not isinstance(getattr(model, SCORE, None), nn.Linear):
                model = AutoModel.from_config(config)
    except BayestuneError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source.name} has no usable configuration: {reason}") from error
    return _frozen(model, decoder)


def _architecture(source: Source, classes: int) -> tuple[Any, bool, bool]:
    """Return a configuration, whether it is a decoder's, and whether as a classifier."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(
        source.path, revision=source.revision, trust_remote_code=False
    )
    files = list(Path(source.path).glob("*.safetensors")) if source.local else []
    if files:  # a configuration alone can be outlined, and is not loaded
        check_size(source.name, config, sum(file.stat().st_size for file in files))
    known = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    decoder = _is_decoder(config, known)
    if not (decoder and known is not None):
        return config, decoder, False
    config.num_labels = classes
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = _some_pad(config)
    return config, decoder, True


def _frozen(model: Any, decoder: bool) -> Base:
    bare = isinstance(getattr(model, SCORE, None), nn.Linear)
    transformer = getattr(model, model.base_model_prefix) if bare else model
    # Some architectures project their last state to another width, which their classifier reads.
    width = model.score.in_features if bare else hidden_size(model.config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Base(model, transformer, decoder, width)


def adapt(
    base: Base, head: nn.Module, adapter: AdapterConfig, config: HeadConfig
) -> tuple[Backbone, nn.Module]:
    """Put the head into the model and the adapter around it.

    Args:
        base: the loaded backbone; it is changed in place.
        head: the head, called ``score`` in decoders; encoders keep it apart.
        adapter: which adapter, where.
        config: the head's pooling.

    Returns:
        The adapted backbone, and the head that is trained and saved: PEFT works on a copy.

    Raises:
        ModelError: if the layers or the target modules are not there.
    """
    from peft import get_peft_model

    _, layers = layer_stack(base.transformer)
    chosen = parse_layers(adapter.layers, len(layers))
    as_classifier = base.model is not base.transformer
    if as_classifier:
        setattr(base.model, SCORE, head)
    task_type = "SEQ_CLS" if as_classifier else "FEATURE_EXTRACTION"
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a name that the latter has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        peft_model = get_peft_model(base.model, peft_config(adapter, base, chosen, task_type))
    pooling = config.pooling
    if pooling == "auto":
        pooling = "last" if base.decoder else "mean"
    backbone = Backbone(
        peft_model,
        base.transformer,
        pooling=pooling,
        first_layer=min(chosen),
        decoder=base.decoder,
    )
    if not as_classifier:
        return backbone, head.to(backbone.device)
    return backbone, getattr(base.model, SCORE).modules_to_save["default"]


def replace_head(backbone: Backbone, head: nn.Module) -> None:
    """Put another head into the place that PEFT saves, where the backbone has one."""
    wrapper = getattr(backbone.peft_model.get_base_model(), SCORE, None)
    if wrapper is not None:
        wrapper.modules_to_save["default"] = head


def peft_config(adapter: AdapterConfig, base: Base, layers: list[int], task_type: str) -> Any:
    """Return the PEFT configuration of an adapter section of a recipe.

    Raises:
        ModelError: if a target is not there or is not linear.
    """
    from peft import LoraConfig

    from bayestune.peft import ContextualLoraConfig, PolarConfig
    from bayestune.peft.targets import check_targets

    targets: Any = adapter.targets
    if targets == "auto":
        targets = default_targets(base)
    elif targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    name, _ = layer_stack(base.transformer)
    common: dict[str, Any] = {
        "r": adapter.rank,
        "target_modules": targets,
        "layers_to_transform": layers,
        "layers_pattern": name.rsplit(".", 1)[-1],
        "task_type": task_type,
    }
    if adapter.kind == "polar":
        return PolarConfig(alpha=adapter.alpha, dropout=adapter.dropout, **common)
    # PEFT checks LoRA's targets less, and does not restrict all-linear to some layers.
    checked = PolarConfig(**{**common, "r": 1})
    check_targets(checked, base.model)
    common |= {"target_modules": checked.target_modules, "lora_alpha": adapter.alpha}
    kind = LoraConfig if adapter.kind == "lora" else ContextualLoraConfig
    return kind(lora_dropout=adapter.dropout, **common)


def default_targets(base: Base) -> list[str]:
    """Return PEFT's default target modules of the architecture: query and value projections.

    Raises:
        ModelError: if PEFT knows none for it.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    transformer: Any = base.transformer
    kind = transformer.config.model_type
    names = {name.rsplit(".", 1)[-1] for name, _ in base.transformer.named_modules()}
    targets = [t for t in DEFAULTS.get(kind, ["q_proj", "v_proj"]) if t in names]
    if not targets:
        raise ModelError(
            f"No default target modules are known for {kind}; name some with adapter.targets, for "
            "example all-linear."
        )
    return targets


def _is_decoder(config: Any, classifier: Any) -> bool:
    """Tell causal architectures by what transformers can do with them."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if getattr(config, "is_encoder_decoder", False):
        raise ModelError("Encoder-decoder models are not supported; use a decoder or an encoder.")
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    return type(config) in AutoModelForCausalLM._model_mapping and not masked


def _some_pad(config: Any) -> int:
    """Return a pad id for configurations without one; pooling is by the mask, so any will do."""
    eos = getattr(config, "eos_token_id", None)
    return (eos[0] if isinstance(eos, list) else eos) or 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence that ``score`` is newly initialised and not sharded: it is replaced at once."""
    names = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
    logs = [logging.getLogger(name) for name in names]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
