"""Every block of code in README and docs runs, page by page, on a tiny model and a few rows.

What stands in for the reader's machine: a fresh folder for each page with the files that pages
name (`files`), a tiny model under every name that pages give to a model (`MODELS`), and the
quick-start data cut to some rows, wherever it is asked for. The text of a block is run as it stands
but for those names.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blocks import ROOT, Block, blocks, pages
from shell import Shell

#: Pages whose blocks another test runs, as they need more than a folder.
ELSEWHERE = {
    "docs/adding_a_method.md": "tests/methods/test_adding_a_method.py",
    "docs/hf_trainer.md": "tests/hf/test_hf_docs.py",
}
#: Names that pages give to models, and the fixture that takes their place.
MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama_base",
    "sentence-transformers/all-MiniLM-L6-v2": "bert_base",
    "smollm2-135m": "llama_base",
}
#: Blocks that may ask not to be run: installing, downloads, servers, a checkout's make, hours.
MOST_NOT_RUN = 14
ROWS = 80  # of every file

PAGES = [str(page.relative_to(ROOT)) for page in pages()]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell that knows the command."""
    made = Shell(tmp_path_factory.mktemp("bin"))
    yield made
    made.server.close()


@pytest.fixture
def quickstart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The quick-start data, a few rows of each file; the package reads them in place of its own."""
    from bayestune.data import quickstart

    short = tmp_path_factory.mktemp("quickstart")
    for name in quickstart.QUICKSTART_FILES:
        text = quickstart.quickstart_path(name).read_text(encoding="utf-8")
        rows = text.splitlines(keepends=True)
        most = ROWS if name.endswith(".jsonl") else len(rows)
        (short / name).write_text("".join(rows[:most]), encoding="utf-8")
    monkeypatch.setattr(quickstart, "files", lambda package: short)
    return short


@pytest.fixture
def files(quickstart: Path, tmp_path: Path) -> Path:
    """A folder with the files that pages name."""
    rows = {
        name: (quickstart / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for name in ("train", "test", "oos")
    }
    rows |= {
        "train": rows["train"][:60],
        "val": rows["train"][60:],
        "cal": rows["test"][::2],
        "unseen": rows["test"][1::2],
    }
    rows |= {"new": rows["test"][:6], "monday": rows["cal"], "tuesday": rows["unseen"]}
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some), encoding="utf-8")
    (tmp_path / "labels.json").write_bytes((quickstart / "labels.json").read_bytes())
    rng = random.Random(0)
    for name in ("train", "test"):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["text", "hours"])
            for row in rows[name]:
                table.writerow([json.loads(row)["text"], round(rng.uniform(1, 48), 1)])
    return tmp_path


@pytest.fixture
def stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders by the names of models; the embedded one is a tiny one where none is named, too."""
    from bayestune.backbone import source

    found = {name: str(request.getfixturevalue(fixture)) for name, fixture in MODELS.items()}
    tiny = source.resolve(found[source.EMBEDDED])
    monkeypatch.setattr(source, "embedded_file", lambda: Path(tiny.path, "config.json"))
    monkeypatch.setattr(source, "_gguf", lambda name, file: tiny)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_blocks_run(
    page: str,
    files: Path,
    shell: Shell,
    stand_ins: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(ROOT / page):
        if block.reason is None:
            _run(block, _swapped(block.code, stand_ins), shell, names)


def _swapped(code: str, models: dict[str, str]) -> str:
    for name, folder in models.items():
        code = code.replace(name, folder)
    return code


def _run(block: Block, code: str, shell: Shell, names: dict[str, Any]) -> None:
    if block.language == "bash":
        done = shell.run(code)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    else:
        # Blank lines before it, so that a traceback names the line of the page.
        exec(compile("\n" * (block.line - 1) + code, str(block.page), "exec"), names)


def test_few_blocks_ask_not_to_be_run() -> None:
    asking = [block for page in PAGES for block in blocks(ROOT / page) if block.reason is not None]
    assert len(asking) <= MOST_NOT_RUN, [str(block) for block in asking]
    assert all(block.reason for block in asking)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_what_runs_elsewhere_is_there(page: str) -> None:
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")
