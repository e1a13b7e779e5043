"""A local Ray with two workers: one is killed midway, and no row is lost or there twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray_run
from cli_checks import read_lines, write_rows

import bayestune

pytest.importorskip("ray", reason="ray is not installed: pip install 'bayestune[ray]'")


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(run_folder, tmp_path, cli) -> None:
    texts = [{"text": f"where is my parcel {i}", "id": f"a{i}"} for i in range(130)]
    write_rows(tmp_path / "a.jsonl", texts)
    others = write_rows(tmp_path / "b.jsonl", [{"text": f"refund {i}"} for i in range(100)])
    others.write_text(others.read_text() + "broken\n")
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(bayestune.__file__).parents[1]}{os.pathsep}{tests}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, ray_run.__file__, str(run_folder), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["first"] == found["again"] == [230, 1]
    assert found["redone"] == ["part-000001.jsonl"]
    assert [said.partition("not valid")[0] for said in found["said"]] == [f"{others} line 101: "]
    parts = sorted((tmp_path / "out").glob("part-*.jsonl"))
    rows = [row for part in parts for row in read_lines(part.read_text())]
    names = [(Path(row["file"]).name, row["id"]) for row in rows]
    assert names == [("a.jsonl", f"a{i}") for i in range(130)] + [
        ("b.jsonl", i + 1) for i in range(100)
    ]
    alone = read_lines(cli("predict", run_folder, tmp_path / "a.jsonl").stdout)
    for row, expected in zip(rows, alone, strict=False):
        assert row["probs"] == pytest.approx(expected["probs"], rel=1e-4)
    assert not list((tmp_path / "out").glob(".part-*"))  # nothing half-written stays
