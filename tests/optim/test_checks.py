"""What StiefelAdam refuses, and whether the message says why and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayestune.errors import ConfigError
from bayestune.geometry import random_point
from bayestune.optim import StiefelAdam


def point(n=9, r=3, dtype=torch.float32):
    return nn.Parameter(random_point(n, r, dtype=dtype))


def build(*params, **options):
    group = {"params": list(params), "manifold": "stiefel", "name": "adapters", **options}
    return StiefelAdam([group])


@pytest.mark.parametrize("flat", [torch.ones(27), torch.ones(0)])
def test_flattened_parameters_are_refused_at_construction(flat):
    with pytest.raises(ConfigError, match=r"'adapters'.*DeepSpeed ZeRO or FSDP1.*FSDP2") as caught:
        build(point(), nn.Parameter(flat))
    assert str(tuple(flat.shape)) in str(caught.value)


def test_parameters_flattened_later_are_refused_at_the_step():
    optimizer = build(point())
    flat = nn.Parameter(torch.ones(27))
    flat.grad = torch.ones(27)
    optimizer.param_groups[0]["params"] = [flat]  # as DeepSpeed replaces them
    with pytest.raises(ConfigError, match="DeepSpeed"):
        optimizer.step()
    assert torch.equal(flat, torch.ones(27))


@pytest.mark.parametrize("when", ["construction", "step"])
def test_wide_parameters_are_refused(when):
    wide = nn.Parameter(torch.eye(9)[:3].clone())
    wide.grad = torch.ones(3, 9)
    with pytest.raises(ConfigError, match=r"\(3, 9\), more columns than rows; .*transposed"):
        if when == "construction":
            build(wide)
        else:
            optimizer = build(point())
            optimizer.param_groups[0]["params"] = [wide]
            optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ConfigError, match=f"{dtype}.*keep the adapter in float32"):
        build(point(dtype=dtype))


def test_a_start_off_the_manifold_is_refused_unless_the_update_can_land():
    rough = nn.Parameter(1.1 * point().detach())  # ‖XᵀX − I‖ = 0.36
    far = nn.Parameter(2 * point().detach())
    with pytest.raises(ConfigError, match=r"0\.364 is above 0\.01; .*random_point"):
        build(rough)
    build(rough, update="safe_landing")
    with pytest.raises(ConfigError, match=r"above 0\.5"):
        build(far, update="safe_landing")
    build(far, update="landing")


def test_weight_decay_of_a_stiefel_group_is_refused_but_the_default_does_not_reach_it():
    with pytest.raises(ConfigError, match=r"weight_decay=0\.01.*decay the core"):
        build(point(), weight_decay=0.01)
    groups = [{"params": [point()], "manifold": "stiefel"}, {"params": [point()]}]
    optimizer = StiefelAdam(groups, weight_decay=0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"manifold": "stiefl"}, "manifold='stiefl'.*Did you mean 'stiefel'"),
        ({"update": "retraction"}, "update='retraction'.*Did you mean 'retract'"),
        ({"lr": -1.0}, "lr=-1.0.*must not be negative"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps": 0}, "eps=0.*divide 0 by 0"),
        ({"penalty": -1.0}, "penalty=-1.0"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\).*\[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(point(), **options)


def test_a_refused_group_leaves_the_optimiser_as_it_was():
    optimizer = build(point())
    with pytest.raises(ConfigError):
        optimizer.add_param_group({"params": [point()], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_the_state_of_another_optimiser_is_refused():
    p, q = point(), point()
    foreign = torch.optim.AdamW([q]).state_dict()
    with pytest.raises(ConfigError, match=r"manifold=None.*'adapters'.*'stiefel'"):
        build(p).load_state_dict(foreign)
    landing = build(q, update="landing").state_dict()
    with pytest.raises(ConfigError, match=r"update='landing'.*'retract'"):
        build(p).load_state_dict(landing)
