"""The command line in this process, data files, and runs trained with it once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_checks import write_rows
from toy_tasks import foreign_texts, topic_rows

#: A run of about a second.
QUICK = ("rank=4", "layers=top:2", "kl=1", "epochs=3", "head_lr=0.05")


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Run a verb; returns typer's result with exit_code, stdout and stderr."""
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    def run(*arguments: object, input: str | bytes | None = None, code: int | None = 0) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=input)
        if code is not None:
            assert result.exit_code == code, (result.stdout, result.stderr)
        return result

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training, validation, test and out-of-scope rows, as JSON lines."""
    folder = tmp_path_factory.mktemp("rows")
    content = {
        "train": topic_rows(90),
        "val": topic_rows(30, 1),
        "test": topic_rows(60, 2),
        "oos": [{"text": text} for text in foreign_texts(20)],
    }
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in content.items()}


@pytest.fixture(scope="session")
def train_arguments(llama_base: Path, files: dict[str, Path]) -> list[str]:
    """Everything that ``train`` needs but for --out and --method."""
    return ["train", "--model", str(llama_base), "--data", str(files["train"]), *QUICK]


@pytest.fixture(scope="session")
def runs(
    train_arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any]]:
    """One finished run and its result per method; do not change them."""
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    found = {}
    for method, own in (("polar_vbll", ()), ("mle", ("kl=0",))):
        out = tmp_path_factory.mktemp("runs") / method
        extra = ["--method", method, "--out", str(out), *own]
        result = CliRunner().invoke(app, [*train_arguments, *extra])
        assert result.exit_code == 0, result.stderr
        found[method] = (out, result)
    return found


@pytest.fixture(scope="session")
def run_folder(runs: dict[str, tuple[Path, Any]]) -> Path:
    """The finished PoLAR-VBLL run."""
    return runs["polar_vbll"][0]
