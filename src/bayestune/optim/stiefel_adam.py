"""Adam on products of Stiefel manifolds and Euclidean spaces, driven by parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from bayestune.errors import ConfigError
from bayestune.geometry import (
    landing_field,
    orthogonality_error,
    polar_factor,
    project_tangent,
    safe_step,
    step_polar,
)
from bayestune.geometry.stiefel import wide_dtype
from bayestune.optim.checks import check_options, check_shape, check_start, group_name
from bayestune.optim.layout import gather_rows, gradient_here, here, own_rows, stacks, total_of


class StiefelAdam(torch.optim.Optimizer):
    """Adam whose ``manifold="stiefel"`` groups keep ``XᵀX = I`` after every step.

    Each parameter ``X`` of shape ``(..., n, r)`` of such a group takes, with ``Π_X`` the orthogonal
    projection onto the tangent space and all other operations element by element,

        ξ = Π_X(∇L)    m ← β₁ Π_X(m) + (1 − β₁) ξ    v ← β₂ v + (1 − β₂) ξ²
        V = −lr · Π_X( m̂ / (√v̂ + ε) )               X ← (X + V)((X + V)ᵀ(X + V))^{-1/2}

    The first moment is transported by projection. The second moment stays element-wise, because
    the inputs of a transformer have features that are larger than the rest by orders of magnitude:
    one scalar per factor would let these alone set the step. ``Π_X diag(v̂)^{-1/2} Π_X`` is
    symmetric and positive on the tangent space, so that a step without momentum still descends.
    ``lr`` has the meaning of Adam, the size of a change of an element.

    A factor's bias correction starts with its first non-zero gradient: where the core Θ starts at
    0, the factors beside it receive zero gradients in the first step and are left untouched.

    A group with ``manifold="core"`` holds the cores Θ between two such factors. Which bases X and Y
    stand for their subspaces is a convention: ΔW = X Θ Yᵀ is also (X Q)(QᵀΘR)(Y R)ᵀ. Adam's step,
    element by element, depends on it, and turns the nearly rank-one gradients of a transformer into
    a matrix of signs, of rank one again. The step of a core rotates with its bases,

        M ← β₁ M + (1 − β₁) ∇L          Θ ← (1 − lr · decay) Θ − lr √r · polar(β₁ M + (1 − β₁) ∇L)

    with polar(UΣVᵀ) = UVᵀ, steepest descent in the spectral norm; √r gives it the size of Adam's
    step, a root mean square of lr per element.

    Groups without a manifold take the step of :class:`torch.optim.AdamW`, bit for bit.

    Parameters may be DTensors whose rows lie on several processes, as FSDP2 leaves them. Moments
    lie alike; of a Stiefel factor only r × r products over its rows are sent.

    ``update`` chooses the step of a Stiefel group: ``"retract"`` as above; ``"landing"`` hands the
    landing field to AdamW as PoLAR's authors do, which holds the constraint only roughly;
    ``"safe_landing"`` is plain descent along the landing field with a safe step size, without
    moments.

    Args:
        params: parameters or groups. A group may set ``lr``, ``betas``, ``eps``, ``weight_decay``
            (only 0 for Stiefel groups, where it is the default), ``manifold``, ``update``,
            ``penalty`` and any further key, such as ``name``.
        lr: default step size.
        betas: default decay rates of the moments.
        eps: default term added to the denominator.
        weight_decay: default decoupled weight decay of the Euclidean groups.
        update: default update of the Stiefel groups.
        penalty: default weight λ of the landing field's pull towards the manifold.

    Raises:
        ConfigError: an option is out of range, or a Stiefel parameter is flattened, wide, in half
            precision or far from the manifold. Flattened ones are met again at ``step``.

    Source:
        Bécigneul and Ganea 2019 (Riemannian Adam); Kingma and Ba 2015; Loshchilov and Hutter 2019;
        Absil, Mahony and Sepulchre 2008 (retraction, transport by projection); arXiv 2506.03133;
        Carlson et al. 2015 and Jordan et al. 2024 ("Muon") for the step of a core.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        update: str = "retract",
        penalty: float = 5e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "manifold": "euclidean",
            "update": update,
            "penalty": penalty,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and, for Stiefel groups, its parameters.

        Args:
            param_group: ``params`` and any options that differ from the defaults.

        Raises:
            ConfigError: see the class.
        """
        if param_group.get("manifold") == "stiefel":
            # The default decay is meant for Euclidean groups: it would pull off the manifold.
            param_group.setdefault("weight_decay", 0.0)
        super().add_param_group(param_group)
        try:
            check_options(self.param_groups[-1])
            if self.param_groups[-1]["manifold"] == "stiefel":
                check_start(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore moments, clocks and options, so that training continues bit for bit.

        Args:
            state_dict: what ``state_dict()`` of an optimiser with the same groups returned.

        Raises:
            ConfigError: a group was saved under another manifold or update.
        """
        for ours, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            for key in ("manifold", "update"):
                if saved.get(key) != ours[key]:
                    raise ConfigError(
                        f"the saved optimiser state has {key}={saved.get(key)!r} for group "
                        f"{group_name(ours)}, this one has {ours[key]!r}; build the optimiser "
                        "as it was built for the saved run, or start with a fresh state"
                    )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; parameters without a gradient are left alone.

        Args:
            closure: recomputes and returns the loss, for callers that want it evaluated here.

        Returns:
            What the closure returned, or None.

        Raises:
            ConfigError: a wrapper has flattened or transposed a Stiefel parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["manifold"] == "euclidean":
                self._step_adamw(group, params, [gradient_here(p) for p in params])
                continue
            for p in params:
                check_shape(group, p)
            for stack in stacks(params):
                if group["manifold"] == "core":
                    self._step_core(group, stack)
                elif group["update"] == "retract":
                    self._step_retract(group, stack)
                else:
                    self._step_landing(group, stack)
        return loss

    def largest_orthogonality_error(self) -> float:
        """Return the largest ``‖XᵀX − I‖_F`` of all Stiefel parameters, 0.0 without any."""
        errors = [
            orthogonality_error(here(p.detach()), total_of(p)).amax().item()
            for group in self.param_groups
            if group["manifold"] == "stiefel"
            for p in group["params"]
        ]
        return max(errors, default=0.0)

    def _step_adamw(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.tensor(0.0)  # on the CPU, as AdamW has it
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        beta1, beta2 = group["betas"]
        adamw(
            [here(p) for p in params],
            grads,
            [here(state["exp_avg"]) for state in states],
            [here(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            has_complex=any(torch.is_complex(p) for p in params),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_retract(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] = torch.zeros((), device=p.device)
            elif state["step"].device != p.device:
                state["step"] = state["step"].to(p.device)
        beta1, beta2 = group["betas"]
        total = total_of(params[0])
        X = torch.stack([here(p) for p in params])  # (B, ..., k, r)
        G = torch.stack([gradient_here(p) for p in params])
        first = [here(state["exp_avg"]) for state in states]
        second = [here(state["exp_avg_sq"]) for state in states]
        m, v = torch.stack(first), torch.stack(second)
        t = torch.stack([state["step"] for state in states])  # (B,)

        moving = total((G != 0).flatten(1).any(1).to(t.dtype)) > 0
        started = (t > 0) | moving
        t = t + started
        # Wide, as a float32 power loses digits of 1 − β₂ᵗ; no clock of a started factor is 0.
        clock = t.to(wide_dtype(t.device)).clamp_min(1)
        clock = clock.view(-1, *(1,) * (X.ndim - 1))
        correction1 = (1 - beta1**clock).to(X.dtype)
        correction2 = (1 - beta2**clock).to(X.dtype)

        xi = project_tangent(X, G, total)
        m = project_tangent(X, m, total).mul_(beta1).add_(xi, alpha=1 - beta1)
        v = v.mul_(beta2).addcmul_(xi, xi, value=1 - beta2)
        direction = (m / correction1).div_((v / correction2).sqrt_().add_(group["eps"]))
        V = project_tangent(X, direction, total).mul_(-group["lr"])
        moved = step_polar(X, V, total=total)
        X = torch.where(started.view_as(clock), moved, X)

        torch._foreach_copy_([here(p) for p in params], list(X.unbind()))
        torch._foreach_copy_(first, list(m.unbind()))
        torch._foreach_copy_(second, list(v.unbind()))
        torch._foreach_copy_([state["step"] for state in states], list(t.unbind()))

    def _step_core(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["exp_avg"] = torch.zeros_like(p)
        beta1, lr = group["betas"][0], group["lr"]
        G = torch.stack([gradient_here(p) for p in params])  # (B, ..., k, r)
        moments = [here(state["exp_avg"]) for state in states]
        M = torch.stack(moments).lerp_(G, 1 - beta1)
        ahead = zip(params, M.lerp(G, 1 - beta1), strict=True)
        step = polar_factor(torch.stack([gather_rows(p, rows) for p, rows in ahead]))
        step = step.mul_(-lr * G.shape[-1] ** 0.5)  # (B, ..., r, r)
        own = torch.stack([own_rows(p, whole) for p, whole in zip(params, step, strict=True)])
        values = [here(p) for p in params]
        theta = torch.stack(values).mul_(1 - lr * group["weight_decay"]).add_(own)
        torch._foreach_copy_(values, list(theta.unbind()))
        torch._foreach_copy_(moments, list(M.unbind()))

    def _step_landing(self, group: dict[str, Any], params: list[Tensor]) -> None:
        penalty, lr = group["penalty"], group["lr"]
        total = total_of(params[0])
        X = torch.stack([here(p) for p in params])  # (B, ..., k, r)
        G = torch.stack([gradient_here(p) for p in params])
        field = landing_field(X, G, penalty, total)
        if group["update"] == "landing":
            self._step_adamw(group, params, list(field.unbind()))
            return
        eta = safe_step(X, field, penalty, lr, total=total)[..., None, None]
        torch._foreach_copy_([here(p) for p in params], list((X - eta * field).unbind()))
