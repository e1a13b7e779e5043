"""A GGUF file becomes an ordinary folder of safetensors, once and atomically."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from bayestune.errors import ModelError

logger = logging.getLogger(__name__)


def convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into ``folder`` as plain fp32 safetensors with its tokeniser.

    The weights that transformers reads from a GGUF file are plain floats, but the model stays
    marked as quantised and is refused by trainers; the marks are not carried over.

    Args:
        file: the GGUF file.
        folder: the folder to create; another process may create it first, which is as good.

    Raises:
        ModelError: if the file is not GGUF, its architecture is not supported or `gguf` is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file} is not a GGUF file: it does not begin with the bytes GGUF.")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelError(
            'GGUF files need the package gguf; install it with: pip install "bayestune[gguf]"'
        ) from None
    logger.info("converting %s once; the result is kept in %s", file.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        source = {"gguf_file": file.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **source)
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent), dtype=torch.float32, **source
            )
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{file} cannot be read as a model: {reason}") from error
        for mark in ("hf_quantizer", "quantization_method"):
            if hasattr(model, mark):
                delattr(model, mark)
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        try:
            staging.replace(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
