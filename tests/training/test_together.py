"""Two processes train as one does: the same curve, the same choices, the same posterior."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import together_run
import torch
from safetensors.torch import load_file

import bayestune
from bayestune.processes import Processes
from bayestune.store import load

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def both(llama_base, folder) -> list[dict[str, Any]]:
    """What two processes of `together_run` found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": str(Path(bayestune.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if sys.platform == "linux":  # no look-up of the machine's name
        common["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, together_run.__file__, str(llama_base), str(folder)]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same(ours: dict[str, Any], theirs: dict[str, Any], rel: float) -> None:
    """Check a training against another: curve, choices, adapter and posterior."""
    assert ours.keys() == theirs.keys()
    assert ours["history"]
    flat = [
        [{k: v for k, v in row.items() if k != "stable_ranks"} for row in found["history"]]
        for found in (ours, theirs)
    ]
    for row, expected in zip(*flat, strict=True):
        assert row == pytest.approx(expected, rel=rel, abs=1e-6)
    assert ours["chosen"] == pytest.approx(theirs["chosen"], rel=rel, abs=1e-6)
    for part in ("adapter", "posterior"):
        assert ours[part].keys() == theirs[part].keys() != set()
        for name, tensor in ours[part].items():
            torch.testing.assert_close(tensor, theirs[part][name], rtol=rel, atol=2e-5, msg=name)


@pytest.mark.parametrize("name", together_run.CASES)
def test_two_processes_train_as_one_does(both, llama_base, name) -> None:
    alone = together_run.trained(str(llama_base), None, together_run.CASES[name])
    for process in both:
        same(process[name], alone, rel=2e-4)
    same(both[0][name], both[1][name], rel=0)


def test_each_process_holds_half_of_a_sharded_backbone(both) -> None:
    whole, half = (both[0][name]["held"] for name in ("uncached", "sharded"))
    assert both[0]["sharded"]["held"] == both[1]["sharded"]["held"]
    assert 0.5 * whole < half < 0.6 * whole  # the adapter is on both


def test_an_interrupted_training_goes_on_on_both(both, llama_base) -> None:
    assert {"checkpoint", "unfinished"} <= set(both[0]["resumed"].pop("reached"))
    same(both[0]["resumed"], together_run.trained(str(llama_base), None, {}), rel=2e-4)


def test_the_first_process_alone_writes(both, folder, llama_base) -> None:
    for name in together_run.CASES:
        run = folder / name
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == len(both[0][name]["history"])
        assert {p.name for p in run.iterdir()} == {
            *("env.json", "metrics.jsonl", "model", "recipe.yaml")
        }
    stored = load_file(folder / "raced" / "model" / "adapter_model.safetensors")
    found = both[0]["raced"]["adapter"]
    assert sum("polar_X" in name for name in stored) == sum("polar_X" in name for name in found)
    model = load(folder / "raced")
    assert model.notes["data"]["val_rows"] == together_run.HELD_OUT


def test_every_row_is_passed_by_one_process(both) -> None:
    # The start of the head, an epoch and its validation, features of both sets for the finaliser;
    # an odd row is passed twice. Reference scores alone are computed by both.
    train, val = together_run.ROWS, together_run.HELD_OUT
    half = -(-train // 2), -(-val // 2)
    assert [process["passed"] for process in both] == 2 * [3 * half[0] + 2 * half[1] + val]


def test_what_is_not_the_training_of_one_process_is_refused(both) -> None:
    for process in both:
        said = process["refusals"]
        assert "adapter.dropout=0.1 draws a mask for each row" in said["dropout"]
        assert "'blob' draws adapter weights anew for every pass" in said["noise"]
        assert "2 of them need at least 2" in said["batch"]
        assert "cache.prefix=on: processes that share the layers" in said["cache"]
        assert "different recipes or rows" in said["unlike"]
        assert "DEEPSPEED, which would flatten parameters" in said["deepspeed"]


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [[7], [4, 0, 3], list(range(17)), [9, 2, 6, 4, 8]])
def test_shares_have_every_position_once(fixed, size, rows) -> None:
    shares = [Processes(rank, size).share(rows, fixed=fixed) for rank in range(size)]
    assert sorted(p for share in shares for p in share.positions) == list(range(len(rows)))
    for rank, share in enumerate(shares):
        assert share.rows[: len(share.positions)] == [rows[p] for p in share.positions]
        assert share.rows  # none stands still while others sum
        if fixed:
            assert all(rows[p] % size == rank for p in share.positions)
        assert set(share.rows) <= set(rows)
    if not fixed:
        assert len({len(share.rows) for share in shares}) == 1
