"""``bayestune doctor``: whether this machine has what training and prediction need."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import typer

from bayestune.cli.console import emit, emit_table, quiet
from bayestune.cli.options import Debug
from bayestune.cli.reporting import BAD_INPUT
from bayestune.errors import ModelError
from bayestune.version import __version__

Status = Literal["ok", "note", "broken"]

REQUIRED = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")
#: Optional packages: what they are for and which extra brings them.
OPTIONAL = {
    "gguf": ("GGUF files and the embedded model", "gguf"),
    "datasets": ("hf: data sets", "data"),
    "pyarrow": (".parquet files", "data"),
    "matplotlib": ("figures", "plots"),
}
#: Below this many free gigabytes a converted model or a prefix cache may not fit.
LOW_DISK = 2.0


class Check(NamedTuple):
    """One finding."""

    name: str
    status: Status
    detail: str


def doctor(ctx: typer.Context, debug: Debug = False) -> None:
    """Check versions, devices, the embedded model, extras, the cache folder and disk space."""
    from rich.table import Column, Table

    with quiet(ctx):
        found = [check for group in CHECKS for check in group()]
    table = Table("", "", Column(overflow="fold"), box=None, pad_edge=False, show_header=False)
    colours = {"ok": "green", "note": "yellow", "broken": "red"}
    for check in found:
        status = f"[{colours[check.status]}]{check.status}[/]"
        table.add_row(status, check.name, check.detail.replace("[", "\\["))
    emit_table(table)
    broken = [check.name for check in found if check.status == "broken"]
    if broken:
        emit(f"broken: {', '.join(broken)}")
        raise typer.Exit(BAD_INPUT)


def python() -> Iterator[Check]:
    """Check the interpreter."""
    version = platform.python_version()
    status: Status = "ok" if sys.version_info >= (3, 11) else "broken"
    yield Check("bayestune", "ok", __version__)
    yield Check("python", status, f"{version}, {platform.machine()}, {os.cpu_count()} cores")


def required() -> Iterator[Check]:
    """Check that every required package imports, and its version where a range is declared."""
    for name in REQUIRED:
        try:
            importlib.import_module(name)
            version = metadata.version(name)
        except (ImportError, OSError, RuntimeError, metadata.PackageNotFoundError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            yield Check(name, "broken", f"{reason}; install it with: pip install bayestune")
            continue
        wanted = declared(name)
        if wanted and not wanted[0](version):
            yield Check(name, "broken", f"{version}; bayestune needs {wanted[1]}")
        else:
            yield Check(name, "ok", version)


def declared(name: str) -> tuple[Callable[[str], bool], str] | None:
    """Return a test of a version and the range it tests, as the installed bayestune declares it."""
    try:
        from packaging.requirements import Requirement

        lines = metadata.requires("bayestune") or []
    except (ImportError, metadata.PackageNotFoundError):
        return None  # run from a source tree that is not installed
    for line in lines:
        requirement = Requirement(line)
        if requirement.name.replace("_", "-").lower() == name and requirement.marker is None:
            test = partial(requirement.specifier.contains, prereleases=True)
            return test, str(requirement.specifier)
    return None


def devices() -> Iterator[Check]:
    """Describe the build of torch and where it can compute."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    build = f"ROCm {torch.version.hip}" if torch.version.hip else build
    yield Check("torch build", "ok", f"{build}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: dtype is float32"
            memory = f"{facts.total_memory / 1e9:.0f} GB"
            yield Check(f"cuda:{i}", "ok", f"{facts.name}, {memory}, {bf16}")
    elif torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple GPU; dtype is float32 unless given")
    else:
        hint = ""
        if shutil.which("nvidia-smi"):
            hint = "; an NVIDIA driver is here: its torch build or version does not fit it"
        yield Check("device", "note" if hint else "ok", f"CPU, float32{hint}")


def polar() -> Iterator[Check]:
    """Check that PEFT knows the adapter."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as KNOWN

        import bayestune.peft  # noqa: F401

        ok = any(str(getattr(k, "value", k)) == "POLAR" for k in KNOWN)
    except (ImportError, ValueError, OSError) as error:
        yield Check("PoLAR in PEFT", "broken", (str(error).splitlines() or ["?"])[0])
        return
    yield Check("PoLAR in PEFT", "ok" if ok else "broken", "registered" if ok else "not registered")


def embedded() -> Iterator[Check]:
    """Look for the embedded default model."""
    from bayestune.backbone.source import EMBEDDED, embedded_file

    try:
        yield Check(EMBEDDED, "ok", f"installed, {embedded_file().stat().st_size / 1e6:.0f} MB")
    except ModelError as error:
        yield Check(EMBEDDED, "note", str(error))


def extras() -> Iterator[Check]:
    """Look for optional packages."""
    for name, (purpose, extra) in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            detail = f"not installed; for {purpose}: pip install 'bayestune[{extra}]'"
            yield Check(name, "note", detail)
        else:
            yield Check(name, "ok", f"{metadata.version(name)}, for {purpose}")


def disk() -> Iterator[Check]:
    """Check that the cache folder can be written and has room."""
    from bayestune.backbone.source import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = f"{folder} cannot be written ({error.strerror}); set BAYESTUNE_CACHE to another"
        yield Check("cache folder", "broken", detail)
        return
    yield Check("cache folder", "ok", str(folder))
    for name, place in (("cache disk", folder), ("temporary disk", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free / 1e9
        low = free < LOW_DISK
        yield Check(
            name, "note" if low else "ok", f"{free:.1f} GB free" + (" (low)" if low else "")
        )


CHECKS = (python, required, devices, polar, embedded, extras, disk)
