"""One of two processes that train row-sharded factors; its results lie in a file afterwards.

    python sharded_run.py RANK FOLDER

The functions take ``mesh=None`` for the same training in one process.
"""

from __future__ import annotations

import copy
import datetime
import io
import sys
import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from bayestune.errors import ConfigError
from bayestune.geometry import random_point
from bayestune.optim import StiefelAdam, build

#: Rows over two processes: evenly, unevenly, as a stack, and one row, which one of them lacks.
SHAPES = [(8, 3), (13, 3), (8, 3), (4, 4), (2, 9, 3), (1, 1)]
STEPS = 6


def place(tensor, mesh, dim=None):
    """Return a tensor as it is, or its share of rows (all of it without a dim) as a DTensor."""
    if mesh is None:
        return tensor.clone()
    copies = [Replicate()] * (mesh.ndim - 1)
    return distribute_tensor(tensor, mesh, [*copies, Replicate() if dim is None else Shard(dim)])


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def start(mesh, cores):
    """Return factors, cores and a vector by group, sharded where a mesh is given."""
    g = torch.Generator().manual_seed(0)
    factors = []
    for *lead, n, r in SHAPES:
        points = [random_point(n, r, generator=g) for _ in range(lead[0] if lead else 1)]
        point = torch.stack(points) if lead else points[0]
        factors.append(nn.Parameter(place(point, mesh, len(lead))))
    theta = [torch.randn(3, 3, generator=g) for _ in range(2)]
    if cores == "sharded":
        theta = [place(t, mesh, 0) for t in theta]
    vector = place(torch.randn(5, generator=g), mesh, 0)
    return factors, [nn.Parameter(t) for t in theta], [nn.Parameter(vector)]


def optimiser(parts, update="retract"):
    factors, theta, vector = parts
    groups = [
        {"params": factors, "manifold": "stiefel", "update": update, "name": "stiefel"},
        {"params": theta, "manifold": "core", "weight_decay": 0.1},
        {"params": vector, "weight_decay": 0.1},
    ]
    return StiefelAdam(groups, lr=0.05, penalty=0.5)


def descend(parts, stepper, steps):
    for k in steps:
        g = torch.Generator().manual_seed(100 + k)
        for p in [p for part in parts for p in part]:
            gradient = torch.randn(p.shape, generator=g)
            if k == 0:  # a core at 0 leaves the factors without a gradient
                gradient.zero_()
            sharded = isinstance(p, DTensor)
            p.grad = (
                distribute_tensor(gradient, p.device_mesh, p.placements) if sharded else gradient
            )
        stepper.step()


def factors(mesh, update, cores="replicated"):
    """Take some steps; return all parameters and moments as wholes, and the largest error."""
    parts = start(mesh, cores)
    stepper = optimiser(parts, update)
    # Landing without a gradient is a field of rounding, which Adam makes as long as any other.
    descend(parts, stepper, range(1 if update == "landing" else 0, STEPS))
    values = [full(p) for part in parts for p in part]
    moments = [full(s["exp_avg"]) for s in stepper.state.values() if "exp_avg" in s]
    return {"values": values, "moments": moments, "error": stepper.largest_orthogonality_error()}


def resumed(mesh):
    """Return what a run interrupted after three steps, saved and restored, ends with."""
    parts = start(mesh, "sharded")
    stepper = optimiser(parts)
    descend(parts, stepper, range(3))
    file = io.BytesIO()
    torch.save(stepper.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        again = tuple([nn.Parameter(p.detach().clone()) for p in part] for part in parts)
    stepper = optimiser(again)
    stepper.load_state_dict(torch.load(file, weights_only=True))
    descend(again, stepper, range(3, STEPS))
    return {"values": [full(p) for part in again for p in part]}


def sent(mesh):
    """Return the collective calls of one step, by kind, and how many numbers each sums."""
    from torch.distributed.tensor.debug import CommDebugMode

    parts = start(mesh, "replicated")
    stepper = optimiser(parts)
    descend(parts, stepper, range(1))
    sizes, send = [], dist.all_reduce

    def watched(tensor, **options):
        sizes.append(tensor.numel())
        return send(tensor, **options)

    with CommDebugMode() as seen, mock.patch("torch.distributed.all_reduce", watched):
        stepper.step()
    kinds = {str(kind): count for kind, count in seen.get_comm_counts().items()}
    return {"kinds": kinds, "sizes": sizes}


def alike(mesh):
    """Return whether every moment is laid out as its parameter is, and the rows that are here."""
    parts = start(mesh, "sharded")
    stepper = optimiser(parts)
    descend(parts, stepper, range(2))
    pairs = [(p, stepper.state[p][k]) for p in parts[0] for k in ("exp_avg", "exp_avg_sq")]
    pairs += [(p, stepper.state[p]["exp_avg"]) for p in parts[1]]
    return {
        "alike": all(
            (s.placements, s.to_local().shape) == (p.placements, p.to_local().shape)
            for p, s in pairs
        ),
        "rows": [p.to_local().shape[-2] for p in parts[0]],
    }


def refusals(mesh):
    """Return the messages about columns apart and about points off the manifold."""
    point = random_point(12, 4, generator=torch.Generator().manual_seed(0))
    messages = []
    for placed in (place(point, mesh, 1), place(1.1 * point, mesh, 0)):
        try:
            StiefelAdam([{"params": [nn.Parameter(placed)], "manifold": "stiefel"}])
            messages.append("")
        except ConfigError as error:
            messages.append(str(error))
    return {"messages": messages}


def tensor_parallel(mesh):
    """Train factors whose products run on the shards, which leaves their gradients open sums."""
    g = torch.Generator().manual_seed(0)
    X, Y = (nn.Parameter(place(random_point(n, 3, generator=g), mesh, 0)) for n in (9, 7))
    theta = nn.Parameter(place(torch.randn(3, 3, generator=g), mesh))
    x, y = (place(torch.randn(20, n, generator=g), mesh) for n in (7, 9))
    groups = [
        {"params": [X, Y], "manifold": "stiefel"},
        {"params": [theta], "manifold": "core"},
    ]
    stepper = StiefelAdam(groups, lr=0.05)
    for _ in range(STEPS):
        (nn.functional.linear(nn.functional.linear(x @ Y, theta), X) - y).square().mean().backward()
        stepper.step()
        open_sums = mesh is not None and any(at.is_partial() for at in Y.grad.placements)
        stepper.zero_grad()
    return {"values": [full(p) for p in (X, Y, theta)], "open_sums": open_sums}


def fsdp(mesh):
    """Train a PoLAR network under FSDP2, each process on its half of the rows."""
    from peft import get_peft_model
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    import bayestune

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5))
    model = get_peft_model(net, bayestune.PolarConfig(r=3, target_modules=["0", "2"]))
    x, y = torch.randn(20, 7), torch.randint(5, (20,))
    if mesh is not None:
        fully_shard(model, mesh=mesh)
        x, y = (t.chunk(2)[mesh.get_local_rank()] for t in (x, y))
    stepper = build(model, lr=0.05)
    losses = []
    for k in range(STEPS):
        if k == 3:  # go on from a saved state, as FSDP2's own checkpoints do
            saved = copy.deepcopy(get_optimizer_state_dict(model, stepper))
            stepper = build(model, lr=0.05)
            set_optimizer_state_dict(model, stepper, saved)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        stepper.step()
        stepper.zero_grad()
    values = {n: full(p) for n, p in model.named_parameters() if p.requires_grad}
    rows = [p.to_local().shape[0] for p in model.parameters() if isinstance(p, DTensor)]
    return {
        "values": list(values.values()),
        "names": list(values),
        "losses": losses,
        "rows": rows,
        "error": stepper.largest_orthogonality_error(),
    }


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    results = {update: factors(mesh, update) for update in ("retract", "landing", "safe_landing")}
    results["cores"] = factors(mesh, "retract", "sharded")
    hybrid = dist.device_mesh.init_device_mesh("cpu", (1, 2))  # copies of shards
    results["hybrid"] = factors(hybrid, "retract", "sharded")
    results["resumed"] = resumed(mesh)
    results["sent"] = sent(mesh)
    results["alike"] = alike(mesh)
    results["refusals"] = refusals(mesh)
    results["tensor_parallel"] = tensor_parallel(mesh)
    results["fsdp"] = fsdp(mesh)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
