"""Which parameter lands in which group, and at which step size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayestune.errors import ConfigError
from bayestune.optim import StiefelAdam, build, param_groups


class Adapter(nn.Module):
    """Two Stiefel factors per name, one core, as a tuner layer of PEFT holds them."""

    manifolds = {"factors": "stiefel", "left": "stiefel", "cores": "euclidean"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 8).requires_grad_(False)
        self.factors = nn.ParameterDict({"default": torch.eye(6)[:, :2], "other": torch.eye(6)})
        self.left = nn.Parameter(torch.eye(8)[:, :2])
        self.cores = nn.ParameterDict({"default": torch.zeros(2, 2)})


class Head(nn.Module):
    is_bayes_head = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 6))
        self.log_scale = nn.Parameter(torch.zeros(3, 6))
        self.inner = nn.Linear(2, 2)

    def lr_factors(self):
        return {"weight": 0.25, "inner.bias": 0.25}


class Plain(nn.Module):
    is_bayes_head = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def model():
    return nn.ModuleDict({"a": Adapter(), "b": Adapter(), "norm": nn.LayerNorm(6), "head": Head()})


def names(net, group):
    by_id = {id(p): name for name, p in net.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


def test_every_trainable_parameter_lands_in_one_group():
    net = model()
    net["b"].factors["other"].requires_grad_(False)
    groups = {g["name"]: g for g in param_groups(net, 1e-3, head_lr=0.02, weight_decay=0.1)}
    assert list(groups) == ["stiefel", "euclidean", "head", "head*0.25"]
    assert names(net, groups["stiefel"]) == {
        "a.factors.default",
        "a.factors.other",
        "a.left",
        "b.factors.default",
        "b.left",
    }
    assert names(net, groups["euclidean"]) == {
        "a.cores.default",
        "b.cores.default",
        "norm.weight",
        "norm.bias",
    }
    assert names(net, groups["head"]) == {"head.log_scale", "head.inner.weight"}
    assert names(net, groups["head*0.25"]) == {"head.weight", "head.inner.bias"}
    listed = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_options_reach_their_groups():
    options = {"weight_decay": 0.1, "head_weight_decay": 0.2, "update": "landing", "penalty": 0.7}
    groups = {g["name"]: g for g in param_groups(model(), 1e-3, head_lr=0.02, **options)}
    seen = {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()}
    assert seen == {
        "stiefel": (1e-3, 0.0),
        "euclidean": (1e-3, 0.1),
        "head": (0.02, 0.2),
        "head*0.25": (0.005, 0.2),
    }
    stiefel = groups["stiefel"]
    chosen = (stiefel["manifold"], stiefel["update"], stiefel["penalty"])
    assert chosen == ("stiefel", "landing", 0.7)
    assert groups["euclidean"]["manifold"] == "euclidean"


def test_the_head_takes_the_learning_rate_of_the_adapter_when_it_has_none_of_its_own():
    (group,) = param_groups(nn.Sequential(Plain()), 1e-3)
    assert (group["name"], group["lr"]) == ("head", 1e-3)


def test_shared_parameters_are_listed_once_and_a_head_owns_its_own():
    net = model()
    net["b"].left = net["a"].left
    net["head"].weight = nn.Parameter(net["norm"].weight.detach())
    net["norm"].weight = net["head"].weight
    groups = param_groups(net, 1e-3)
    listed = [id(p) for g in groups for p in g["params"]]
    assert len(listed) == len(set(listed))
    (head,) = [g for g in groups if g["name"] == "head*0.25"]
    assert "norm.weight" in names(net, head)


def test_empty_groups_are_left_out_and_nothing_trainable_is_an_error():
    (group,) = param_groups(nn.Linear(2, 2), 1e-3)
    assert group["name"] == "euclidean"
    with pytest.raises(ConfigError, match=r"Linear.*no trainable parameter; add an adapter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 1e-3)


def declare(base, **attributes):
    return type(base.__name__, (base,), attributes)()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (declare(Adapter, manifolds={"left": "stifel"}), "'stifel'.*Did you mean 'stiefel'"),
        (declare(Adapter, manifolds={"right": "stiefel"}), r"manifolds\['right'\].*NoneType"),
        (declare(Head, lr_factors=lambda self: {"weigth": 1.0}), "'weigth'.*mean 'weight'"),
        (declare(Head, lr_factors=lambda self: {"weight": 0.0}), "is 0.0; a positive number"),
        (declare(Head, lr_factors=lambda self: {"weight": float("inf")}), "is inf; a positive"),
    ],
)
def test_declarations_that_cannot_hold_are_refused(module, message):
    with pytest.raises(ConfigError, match=message):
        param_groups(module, 1e-3)


def test_wrappers_that_forward_attributes_do_not_confuse_the_sorting():
    class Forwarding(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

    net = Forwarding(Head())
    assert net.is_bayes_head
    assert net.lr_factors()
    found = {g["name"]: names(net, g) for g in param_groups(net, 1e-3)}
    assert found["head*0.25"] == {"inner.weight", "inner.inner.bias"}


def test_build_makes_an_optimiser_over_the_groups():
    optimizer = build(model(), 2e-3, head_lr=0.01, betas=(0.5, 0.6), eps=1e-5)
    assert isinstance(optimizer, StiefelAdam)
    assert [g["name"] for g in optimizer.param_groups] == [
        "stiefel",
        "euclidean",
        "head",
        "head*0.25",
    ]
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.5, 0.6), 1e-5)}
    assert optimizer.param_groups[0]["update"] == "retract"
