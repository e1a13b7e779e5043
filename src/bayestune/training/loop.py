"""The training loop: alternating optimisation of one evidence lower bound.

    L(φ, η) = mean NLL bound + κ/N · KL(q_η ‖ p)

Each step runs the backbone once. The posterior η is updated on the features as they are (detached);
then the adapter φ is updated against the new posterior, through the same pass.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bayestune.backbone import Reader
from bayestune.config import TrainConfig
from bayestune.data import length_grouped_batches
from bayestune.errors import ConfigError, NumericsError
from bayestune.finalize import Features, Rows
from bayestune.gradients import gradients_required
from bayestune.methods import Method, Terms
from bayestune.optim import DEVIATIONS, Ivon, StiefelAdam, param_groups, step_deviations
from bayestune.processes import ALONE, Processes
from bayestune.progress import Advance
from bayestune.training.checkpoint import rng_state, set_rng_state, trainable
from bayestune.training.penalty import confidence

logger = logging.getLogger(__name__)

#: Share of a batch in the running mean of the deviations' fixed point, at the peak of the schedule.
DEVIATION_RATE = 0.1


def natural_deviations(head: nn.Module, kappa: float, asked: str) -> nn.Parameter | None:
    """Return the log deviations ``(K, D)`` that take natural steps; None where all take Adam's.

    Args:
        head: the head.
        kappa: the KL weight.
        asked: ``train.deviations``; ``auto`` takes natural steps of the diagonal covariance of a
            classifier, for which they were measured to be better.

    Raises:
        ConfigError: ``natural`` is asked for, but the head has no deviations of its own, or no KL
            gives them a fixed point.
    """
    family = getattr(head, "family", None)
    if asked == "auto":
        noisy = getattr(head, "noise", None) is not None
        asked = "natural" if family == "diagonal" and kappa > 0 and not noisy else "adam"
    if asked == "adam":
        return None
    if family not in ("diagonal", "eigen") or kappa == 0:
        raise ConfigError(
            "train.deviations=natural moves the deviations of a Gaussian head whose covariance is "
            "diagonal or eigen, with train.kl above 0; use adam."
        )
    return head.log_scale  # pyright: ignore[reportReturnType]


@dataclass
class Meter:
    """Running means of one epoch."""

    nll: float = 0.0
    kl: float = 0.0
    norm: float = 0.0
    examples: int = 0
    steps: int = 0
    skipped: int = 0

    def add(self, nll: float, kl: float, norm: float, examples: int) -> None:
        """Count one step; the NLL weighs by its examples, so that a short batch counts less."""
        self.nll += nll * examples
        self.kl += kl
        self.norm += norm
        self.examples += examples
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return the epoch's means."""
        steps = max(self.steps, 1)
        return {
            "train_nll": self.nll / max(self.examples, 1),
            "kl": self.kl / steps,
            "grad_norm": self.norm / steps,
        }


@dataclass
class Loop:
    """One optimisation of a model's adapter and head.

    Attributes:
        method: gives the two terms of the objective.
        reader: feeds the backbone.
        head: the distribution over the last layer.
        rows: the training rows.
        config: rates, schedule, clipping.
        kappa: κ.
        seed: of the order of batches.
        epochs: how many epochs the schedule spans, the last one cut short by ``config.max_steps``.
        processes: those that train together.
    """

    method: Method
    reader: Reader
    head: nn.Module
    rows: Rows
    config: TrainConfig
    kappa: float
    seed: int
    epochs: int
    processes: Processes = ALONE
    step: int = 0
    epoch: int = 0
    meter: Meter = field(default_factory=Meter)
    adapter: StiefelAdam | Ivon = field(init=False)
    posterior: StiefelAdam | Ivon = field(init=False)
    natural: nn.Parameter | None = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        groups = param_groups(
            nn.ModuleList([self.reader.backbone, self.head]),
            lr=config.lr,
            head_lr=config.head_lr,
            weight_decay=config.weight_decay,
            core=config.core,
        )
        of_head = [g for g in groups if g["name"].startswith("head")]
        of_adapter = [g for g in groups if not g["name"].startswith("head")]
        weights = self.reader.backbone.weights
        if weights is not None and weights.steps_itself:
            of_adapter = [g for g in of_adapter if g["name"] != DEVIATIONS]
        self.natural = natural_deviations(self.head, self.kappa, config.deviations)
        if (own := self.natural) is not None:
            of_head = [{**g, "params": [p for p in g["params"] if p is not own]} for g in of_head]
            of_head = [g for g in of_head if g["params"]]
        self.adapter, self.posterior = map(self._optimizer, (of_adapter, of_head))

    def _optimizer(self, groups: list[dict[str, Any]]) -> StiefelAdam | Ivon:
        weights = self.reader.backbone.weights
        if weights is None:
            optimizer = StiefelAdam(groups)
        else:
            optimizer = weights.optimizer(groups, self.kappa / len(self.rows))
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        return optimizer

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return math.ceil(len(self.rows) / self.config.batch_size)

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole schedule."""
        return self.config.max_steps or self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Return the share of the peak rate at a step: a linear rise, then a fall to the floor."""
        warm = max(1, round(self.config.warmup * self.total_steps))
        if step < warm:
            return (step + 1) / warm
        return max(self.config.floor, (self.total_steps - step) / max(1, self.total_steps - warm))

    def batches(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch that are still to come."""
        batches = length_grouped_batches(
            self.rows.encoded.lengths, self.config.batch_size, seed=self.seed, epoch=self.epoch
        )
        done, most = self.epoch * len(batches), self.config.max_steps
        yield from batches[self.step - done : most - done if most else None]

    def run_epoch(
        self, advance: Advance, after_step: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Train to the end of the current epoch.

        Args:
            advance: progress, by examples.
            after_step: called when a step is complete.

        Returns:
            Means over the steps of the epoch.

        Raises:
            NumericsError: if a loss, gradient or feature is not finite; the state is then the one
                before that step. With ``train.nonfinite=skip``: if that is so in all batches.
        """
        self.reader.backbone.train(True)
        for batch in self.batches():
            try:
                self.meter.add(*self.run_step(batch), len(batch))
            except NumericsError as error:
                if self.config.nonfinite == "stop" or not self.is_finite:
                    raise
                logger.warning("a batch is left out: %s", error)
                self.meter.skipped += 1
                self.step += 1
            advance(len(batch), f"nll {self.meter.means()['train_nll']:.3f}")
            after_step()
        self.reader.backbone.train(False)
        meter = self.meter
        if meter.skipped and not meter.steps:
            raise NumericsError(
                f"All {meter.skipped} batches of epoch {self.epoch + 1} were left out; lower "
                "train.lr or train.head_lr, or use dtype=float32 for the backbone."
            )
        self.head.update_prior()  # pyright: ignore[reportCallIssue]
        self.epoch += 1
        self.meter = Meter()
        skips = self.config.nonfinite == "skip"
        return meter.means() | ({"skipped_batches": meter.skipped} if skips else {})

    def run_step(self, batch: list[int]) -> tuple[float, float, float]:
        """Take one step; return the NLL term, the KL and the norm of the adapter's gradient.

        Raises:
            NumericsError: naming step, epoch and ids; nothing has changed then.
        """
        device = self.reader.backbone.device
        rng, head, moments = rng_state(device), {}, {}
        if self.config.schedule == "alternate":  # else nothing moves before all is known
            head = {name: t.clone() for name, t in self.head.state_dict().items()}
            moments = copy.deepcopy(self.posterior.state_dict())
        try:
            return self._step(batch)
        except NumericsError as error:
            if head:
                self.head.load_state_dict(head)
                self.posterior.load_state_dict(moments)
            set_rng_state(device, rng)
            self.adapter.zero_grad()
            self.head.zero_grad()
            ids = [self.rows.ids[i] for i in batch] if self.rows.ids else batch
            raise NumericsError(
                f"{error} It was at step {self.step} in epoch {self.epoch + 1}; batch ids: "
                f"{', '.join(map(repr, ids))}."
            ) from error

    @property
    def is_finite(self) -> bool:
        """Whether all that is trained is finite."""
        tensors = trainable(self.reader.backbone, self.head).values()
        return all(bool(torch.isfinite(t).all()) for t in tensors)

    def _step(self, batch: list[int]) -> tuple[float, float, float]:
        rate = self.rate(self.step)
        for optimizer in (self.adapter, self.posterior):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        with self._drawn():
            terms, own = self._backward(batch, rate)
        weights = self.reader.backbone.weights
        self._require_finite_gradients(self.reader.backbone, "the adapter's")
        if self.config.schedule == "joint":
            self._require_finite_gradients(self.head, "the head's")
        norm = self._clip()
        self.adapter.step()
        if weights is not None and weights.steps_itself:
            weights.own_step(own, rate)
        if self.config.schedule == "joint":
            self._step_posterior(rate)
        self.adapter.zero_grad()
        self.head.zero_grad()
        self.step += 1
        if weights is not None:
            weights.after_step(self.step, self.total_steps)
        # A density per unit of the user's numbers; log 1 = 0 for classes.
        return terms.nll.item() + math.log(self.rows.unit), terms.kl.item(), norm

    def _backward(self, batch: list[int], rate: float) -> tuple[Terms, float]:
        """Leave the gradients of a batch; return the objective's terms and the weight of the KL."""
        phi = self._features(batch)  # (B, D)
        scale = self.kappa / len(self.rows)
        weights, own = self.reader.backbone.weights, 0.0
        if self.config.schedule == "alternate":
            still = self.rows.batch(phi.detach(), batch)
            for _ in range(self.config.head_steps):
                terms = self.method.loss(self.head, still)
                self._descend(terms.nll + scale * terms.kl + self._penalty(still), terms)
                self.processes.reduce_gradients(self.head.parameters(), mean=True)
                self._require_finite_gradients(self.head, "the head's")
                self._step_posterior(rate)
                self.head.zero_grad()
        now = self.rows.batch(phi, batch)
        terms = self.method.loss(self.head, now)
        loss = terms.nll + scale * terms.kl + self._penalty(now)
        if weights is not None and weights.has_kl:
            own = self.kappa * weights.kl_weight(self.step, len(self.rows), self.config.batch_size)
            kl = weights.kl()
            terms = Terms(terms.nll, terms.kl + kl.detach())
            # Every process has it whole, and their gradients are summed.
            loss = loss if weights.steps_itself else loss + own / self.processes.size * kl
        self._descend(loss, terms)
        groups = self.adapter.param_groups
        self.processes.reduce_gradients(p for group in groups for p in group["params"])
        if self.config.schedule == "joint":
            self.processes.reduce_gradients(self.head.parameters(), mean=True)
        return terms, own

    def _features(self, batch: list[int]) -> Tensor:
        """Return the features of a batch ``(B, D)``, whose gradients reach what ran here."""
        share = self.processes.share(batch, fixed=self.reader.cache is not None)
        part = self.reader.batch(self.rows.encoded, share.rows)
        return self.processes.whole(part, share, len(batch))

    @contextmanager
    def _drawn(self) -> Iterator[None]:
        """Hold a draw of all weights, where the optimiser learns a distribution over them."""
        with ExitStack() as stack:
            for optimizer in (self.adapter, self.posterior):
                if isinstance(optimizer, Ivon):
                    stack.enter_context(optimizer.sampled())
            yield

    def _penalty(self, batch: Features) -> Tensor | float:
        """Return what the recipe adds to the objective, which is no part of the bound."""
        smoothing, bonus = self.config.label_smoothing, self.config.entropy_bonus
        if smoothing == bonus == 0:
            return 0.0
        return confidence(self.head(batch.phi), batch, smoothing, bonus)

    def _step_posterior(self, rate: float) -> None:
        self.posterior.step()
        if (own := self.natural) is not None:
            weight = self.kappa / len(self.rows)
            rho = DEVIATION_RATE * rate
            step_deviations(own, own.grad, rho, weight)  # pyright: ignore[reportArgumentType]

    def _descend(self, loss: Tensor, terms: Terms) -> None:
        if not torch.isfinite(loss):
            raise NumericsError(
                f"The loss is {loss.item()} in the head (NLL {terms.nll.item():.4g}, KL "
                f"{terms.kl.item():.4g}); lower train.lr or train.head_lr."
            )
        with gradients_required():
            loss.backward()

    def _require_finite_gradients(self, module: nn.Module, whose: str) -> None:
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        if torch.isfinite(torch.nn.utils.get_total_norm(gradients.values())):
            return
        broken = [n for n, g in gradients.items() if not torch.isfinite(g).all()]
        # Gradients come from the loss: the last layer was the first to break down.
        where = f"of {broken[-1]}" if broken else "as a whole"
        raise NumericsError(
            f"A gradient of {whose} weights, {where}, is NaN or infinite; lower train.lr or "
            "train.head_lr."
        )

    def _clip(self) -> float:
        # Deviations of adapter weights have gradients of another size, from the KL.
        groups = [g for g in self.adapter.param_groups if g["name"] != DEVIATIONS]
        parameters = [p for g in groups for p in g["params"]]
        limit = self.config.clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def state(self) -> dict[str, Any]:
        """Return the positions of the schedule, JSON-ready."""
        at = {"step": self.step, "epoch": self.epoch, "kappa": self.kappa}
        return at | {"meter": asdict(self.meter)}

    @property
    def done(self) -> int:
        """How many examples the steps have seen, over all epochs."""
        return self.epoch * len(self.rows) + self.meter.examples
