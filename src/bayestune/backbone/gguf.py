"""A GGUF file becomes an ordinary folder of safetensors, once and atomically."""

from __future__ import annotations

import logging
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bayestune.backbone.complete import check_complete
from bayestune.errors import ModelError, StoreError
from bayestune.files import checksum, discard, read_json, verify, write_json

logger = logging.getLogger(__name__)

#: Checksum, size and time of every file of a converted model.
_NOTES = "checksums.json"

#: What transformers and gguf raise on files that are cut short or of an unknown kind.
_UNREADABLE = (
    *(ValueError, LookupError, OSError, RuntimeError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, struct.error),
)


def is_whole(folder: Path) -> bool:
    """Return whether a converted model is there as it was written.

    Its files are read only where their size or time is another than noted. A folder that is
    damaged, or of a version that noted nothing, is removed.

    Raises:
        StoreError: if it cannot be.
    """
    if not folder.is_dir():
        return False
    try:
        for name, (sha256, stamp) in read_json(folder / _NOTES).items():
            if not (folder / name).is_file() or _stamp(folder / name) != stamp:
                verify(folder, {name: sha256})
    except (StoreError, AttributeError, TypeError, ValueError) as error:
        logger.warning("%s is converted anew: %s", folder, error)
        discard(folder)
        return False
    return True


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into ``folder`` as plain fp32 safetensors with its tokeniser.

    The weights that transformers reads from a GGUF file are plain floats, but the model stays
    marked as quantised and is refused by trainers; the marks are not carried over.

    Args:
        file: the GGUF file.
        folder: the folder to create; another process may create it first, which is as good.

    Raises:
        ModelError: if the file is not GGUF, its architecture is not supported or `gguf` is missing.
        StoreError: if the folder cannot be written.
    """
    import torch
    from safetensors import SafetensorError
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
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent)}
    place |= {"gguf_file": file.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
        model, info = load(**place, dtype=torch.float32, output_loading_info=True)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file} cannot be read as a model: {reason}") from error
    check_complete(str(file), info)
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    staging: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        notes = {f.name: (checksum(f), _stamp(f)) for f in sorted(staging.iterdir())}
        write_json(staging / _NOTES, notes)
        try:
            staging.replace(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{file.name} could not be converted into {folder}: {error}. Set BAYESTUNE_CACHE to a "
            "folder with room."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
