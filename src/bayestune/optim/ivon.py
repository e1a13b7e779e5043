"""IVON: an optimiser whose state is a Gaussian over the parameters, at the cost of Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bayestune.errors import ConfigError


class Ivon(torch.optim.Optimizer):
    """Natural gradient descent of a diagonal Gaussian N(m, σ²), by one gradient a step.

    It minimises ``λ E_q ℓ(θ) + KL(q ‖ N(0, 1/(λδ)))``, ℓ the mean loss. Within `sampled` the
    parameters are a draw from q; `step` then moves the mean, which they are outside of it:

        σ² = 1 / (λ(h + δ))         θ = m + σ ∘ ε          g = ∇ℓ(θ)
        ĥ  = λ (θ − m) ∘ g ∘ (h + δ)                       (Price: E ĥ = E diag ∇²ℓ)
        h  ← h + ρ(ĥ − h) + ½ρ²(ĥ − h)² / (h + δ)          ρ = 1 − β₂, keeps h + δ above 0
        ḡ  ← β₁ḡ + (1 − β₁)g
        m  ← m − η clip( (ḡ / (1 − β₁ᵗ) + δm) / (h + δ), ±ξ )

    with η = lr, or lr · (h₀ + δ) with ``rescale_lr``: the step is then lr · ḡ as long as h is h₀.
    With λ = N, the number of examples, q is the variational posterior under the prior whose
    standard deviation is 1/√(λδ); with λ = N/κ the one whose divergence weighs κ. A larger λ is a
    colder posterior.

    State is kept in float32 or better, on the device of its parameter. Noise comes from torch's
    global generator of that device.

    Args:
        params: parameters or groups, which may set any of the following, and further keys.
        lr: learning rate.
        ess: λ, the effective sample size.
        hess_init: h₀.
        weight_decay: δ, the prior's precision over λ.
        betas: β₁ and β₂; h forgets its start within some 1/(1 − β₂) steps.
        clip_radius: ξ, the largest element of the preconditioned step; 0 for none.
        rescale_lr: whether the learning rate is in units of 1/(h₀ + δ).

    Raises:
        ConfigError: an option is out of range.

    Source: Shen et al. 2024 (arXiv 2402.17641), algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ess: float,
        *,
        hess_init: float = 1.0,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99999),
        clip_radius: float = 0.0,
        rescale_lr: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "ess": ess,
            "hess_init": hess_init,
            "weight_decay": weight_decay,
            "betas": betas,
            "clip_radius": clip_radius,
            "rescale_lr": rescale_lr,
        }
        self._noise: dict[Tensor, Tensor] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options.

        Args:
            param_group: ``params`` and any options that differ from the defaults.

        Raises:
            ConfigError: an option is out of range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        positive = ("ess", "hess_init")
        for key in (*positive, "lr", "weight_decay", "clip_radius"):
            if not float(group[key]) >= 0 or (key in positive and group[key] == 0):
                wanted = "above 0" if key in positive else "0 or more"
                raise ConfigError(f"IVON's {key} is {group[key]!r}; expected {wanted}.")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ConfigError(f"IVON's betas are {group['betas']!r}; expected numbers in [0, 1).")

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Hold a draw from q in the parameters; they are the mean again whatever happens within."""
        means: list[tuple[Tensor, Tensor]] = []
        self._noise.clear()
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        mean = p.clone()
                        means.append((p, mean))
                        std = self._std(group, p)
                        p.copy_(mean + std * torch.randn_like(std))
                        # What the parameter's type left of the noise is what the gradient sees.
                        self._noise[p] = p.to(std.dtype) - mean.to(std.dtype)
            yield
        finally:
            with torch.no_grad():
                for p, mean in means:
                    p.copy_(mean)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move mean and curvature by the gradients at the last draw; those without stay.

        Args:
            closure: not supported, as a draw has to be held while the loss is computed.

        Raises:
            ConfigError: no draw was held since the last step, or a closure is given.
        """
        if closure is not None or not self._noise:
            raise ConfigError(
                "Ivon.step takes the gradients of a pass within Ivon.sampled(), and no closure: "
                "with optimizer.sampled(): loss().backward(); then optimizer.step()."
            )
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(group, p, self._noise[p])
        self._noise.clear()

    def deviations(self) -> dict[Tensor, Tensor]:
        """Return the standard deviations σ of every parameter, of its shape."""
        return {p: self._std(group, p) for group in self.param_groups for p in group["params"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore moments and options, so that training continues bit for bit.

        Args:
            state_dict: what ``state_dict()`` of an optimiser with the same groups returned.
        """
        super().load_state_dict(state_dict)
        # The base class casts state to the type of its parameter, which may be a shorter one.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.to(p.device, copy=True)

    def _std(self, group: dict[str, Any], p: Tensor) -> Tensor:
        h = self._state(group, p)["hess"]
        return (group["ess"] * (h + group["weight_decay"])).rsqrt()

    def _state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            dtype = torch.promote_types(p.dtype, torch.float32)
            state["step"] = 0
            state["momentum"] = torch.zeros_like(p, dtype=dtype)
            state["hess"] = torch.full_like(p, group["hess_init"], dtype=dtype)
        return state

    def _move(self, group: dict[str, Any], p: Tensor, noise: Tensor) -> None:
        state, delta = self._state(group, p), group["weight_decay"]
        h, momentum = state["hess"], state["momentum"]
        assert p.grad is not None
        g = p.grad.to(h.dtype)
        beta1, beta2 = group["betas"]
        rho, precision = 1 - beta2, h + delta
        x = rho * (group["ess"] * noise * g - h / precision)  # ρ(ĥ − h) / (h + δ)
        h.copy_(precision * (1 + x + 0.5 * x.square()) - delta)
        momentum.lerp_(g, 1 - beta1)
        state["step"] += 1
        ahead = momentum / (1 - beta1 ** state["step"])
        step = (ahead + delta * p.to(h.dtype)) / (h + delta)
        if group["clip_radius"] > 0:
            step.clamp_(-group["clip_radius"], group["clip_radius"])
        lr = group["lr"] * (group["hess_init"] + delta if group["rescale_lr"] else 1)
        p.copy_(p.to(h.dtype) - lr * step)
