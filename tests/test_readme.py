"""The ten lines do what they say, in README and docs alike."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bayestune.data.quickstart import quickstart_path

ROOT = Path(__file__).resolve().parent.parent


def ten_lines(path: Path) -> str:
    """Return the first Python block of a page that imports bayestune as bt."""
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "bt.fit(" in block)


def test_readme_and_docs_show_the_same_ten_lines() -> None:
    assert ten_lines(ROOT / "README.md") == ten_lines(ROOT / "docs" / "index.md")
    assert len(ten_lines(ROOT / "README.md").splitlines()) <= 10


def test_the_ten_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_base: Path
) -> None:
    for name, count in (("train", 120), ("test", 40)):
        rows = quickstart_path(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    labels = quickstart_path("labels.json").read_text(encoding="utf-8")
    (tmp_path / "labels.json").write_text(labels, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # The embedded model takes minutes; a tiny one runs the same lines.
    code = ten_lines(ROOT / "README.md").replace("smollm2-135m", str(llama_base))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    manifest = json.loads((tmp_path / "runs/x/model/bayestune.json").read_text(encoding="utf-8"))
    assert manifest["method"] == "polar_vbll"
    assert names["pred"].labels[0] in json.loads(labels)  # type: ignore[attr-defined]
