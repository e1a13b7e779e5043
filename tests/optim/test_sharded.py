"""Row-sharded factors on two processes: the step of one process, and r × r products alone sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_run
import torch

import bayestune

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes of `sharded_run` found."""
    folder = tmp_path_factory.mktemp("sharded")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(bayestune.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if sys.platform == "linux":  # no look-up of the machine's name
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, sharded_run.__file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def close(ours, theirs, atol):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("update", ["retract", "landing", "safe_landing"])
def test_sharded_steps_are_the_dense_ones(both, update):
    dense = sharded_run.factors(None, update)
    moved = zip(dense["values"], sharded_run.start(None, "replicated")[0], strict=False)
    assert all((a - b).abs().max() > 0.01 for a, b in moved if a.numel() > 1)
    for process in both:
        close(process[update]["values"], dense["values"], 1e-6)
        close(process[update]["moments"], dense["moments"], 1e-6)
        assert process[update]["error"] == pytest.approx(dense["error"], abs=1e-5)
        if update == "retract":
            assert process[update]["error"] < 1e-5


@pytest.mark.parametrize("mesh", ["cores", "hybrid"])
def test_cores_may_be_sharded_as_well_and_shards_be_copied(both, mesh):
    dense = sharded_run.factors(None, "retract")
    for process in both:
        close(process[mesh]["values"], dense["values"], 1e-6)
        close(process[mesh]["moments"], dense["moments"], 1e-6)


def test_moments_lie_where_their_parameters_do(both):
    assert [process["alike"]["alike"] for process in both] == [True, True]
    assert [process["alike"]["rows"] for process in both] == [
        [4, 7, 4, 2, 5, 1],
        [4, 6, 4, 2, 4, 0],
    ]


def test_products_of_r_by_r_are_all_that_is_sent(both):
    # Five stacks: two factors of one shape, and four others. Each sends whether a gradient has
    # come yet, three projections and the retraction.
    products = [2 * 9, 9, 16, 2 * 9, 1]
    flags = [2, 1, 1, 1, 1]
    for process in both:
        assert process["sent"]["kinds"] == {"c10d.allreduce_": 25}
        expected = [
            n for flag, product in zip(flags, products, strict=True) for n in (flag, *4 * [product])
        ]
        assert process["sent"]["sizes"] == expected


def test_an_interrupted_sharded_run_continues_bit_for_bit(both):
    for process in both:
        close(process["resumed"]["values"], process["cores"]["values"], 0)


def test_columns_apart_and_points_off_the_manifold_are_refused(both):
    for process in both:
        columns, off = process["refusals"]["messages"]
        assert "each process must hold whole rows: use Shard(0) or Replicate()" in columns
        assert "does not start on the manifold: ‖XᵀX − I‖_F = 0.42" in off


def test_gradients_that_are_open_sums_are_closed(both):
    dense = sharded_run.tensor_parallel(None)
    for process in both:
        assert process["tensor_parallel"]["open_sums"]
        close(process["tensor_parallel"]["values"], dense["values"], 2e-6)


def test_fsdp2_trains_a_polar_network_like_one_process(both):
    dense = sharded_run.fsdp(None)
    for process in both:
        assert process["fsdp"]["names"] == dense["names"]
        close(process["fsdp"]["values"], dense["values"], 2e-5)
        assert process["fsdp"]["error"] < 1e-5
    losses = [sum(pair) / 2 for pair in zip(*(p["fsdp"]["losses"] for p in both), strict=True)]
    assert losses == pytest.approx(dense["losses"], abs=1e-5)
    assert dense["losses"][-1] < dense["losses"][0] - 0.2
    assert both[0]["fsdp"]["rows"] != both[1]["fsdp"]["rows"]  # uneven, and sharded
