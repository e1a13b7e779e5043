"""What all distributions over adapter weights share: where they act, and how draws are held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayestune.errors import ModelError, StoreError
from bayestune.optim import Ivon, StiefelAdam
from bayestune.posterior.observed import LogitDraws, Observed
from bayestune.progress import Progress, silent
from bayestune.weights.noise import generator
from bayestune.weights.site import Site


@dataclass
class Drawing:
    """Draws that are held while a block of code runs.

    Attributes:
        draws: their indices s; the same index is the same draw, for ever.
        seed: of all of them.
        keys: a digest of the tokens of each text in the batch, for noise that depends on the text.
        mask: which positions of the batch are tokens, ``(B, T)``.
        blocks: whether a batch is repeated for each draw behind itself; else it is the batch of the
            one draw there is.
        kept: what a distribution keeps from batch to batch, by site.
    """

    draws: tuple[int, ...]
    seed: int
    keys: tuple[bytes, ...] = ()
    mask: Tensor | None = None
    blocks: bool = True
    kept: dict[str, Tensor] = field(default_factory=dict)


class WeightDistribution(nn.Module):
    """A distribution q(θ) over the weights at some sites of an adapted model.

    The weights themselves are the mean of q, so that what PEFT saves is the mean of the posterior.
    Within `drawing` every site sees a batch of ``(1 + S) · B`` rows, first B at the mean and then
    B under each draw: the first block is what the model gives without noise.

    A subclass defines `draw`, or `deviations` where sites are not independent, and what of the
    following it has: `train_forward`, `kl`, `after_step`, `tensors` and `load`.

    Args:
        sites: where q acts, by name.

    Attributes:
        mask: which positions of the current batch are tokens, ``(B, T)``; the backbone sets it.
    """

    mask: Tensor | None = None

    #: Whether anything is; a prior around a point is a distribution, too.
    is_random: ClassVar[bool] = True
    #: Whether it is drawn from; else it gives moments of the logits.
    is_drawn: ClassVar[bool] = True
    #: Whether there is a divergence for the trainer to weigh.
    has_kl: ClassVar[bool] = False
    #: Whether it steps along its divergence itself, apart from the loss; see `own_step`.
    steps_itself: bool = False
    #: What a prediction runs, of which `default_draws` is S.
    passes: ClassVar[str] = "1 + S through the adapted layers"
    #: Draws of a prediction unless the recipe says how many.
    default_draws: int = 10

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.train(False)  # as the backbone is; it switches both
        self._drawing: Drawing | None = None
        for name, site in self.sites.items():
            site.module.register_forward_hook(_Hook(self, name))

    def draw(self, site: str, random: torch.Generator) -> Tensor:
        """Return one draw of the deviation from the mean at a site, ``(out, in)``."""
        raise NotImplementedError

    def deviations(self, site: str, draws: Sequence[int], seed: int) -> Tensor:
        """Return deviations from the mean ``(S, out, in)``; they depend on seed, draw and site."""
        device = self.sites[site].weight.device
        each = [self.draw(site, generator(seed, s, site)) for s in draws]
        return torch.stack([one.to(device) for one in each])

    def mean_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Return the map's value at the mean: ``out``, unless training keeps the mean in parts."""
        return out

    def train_forward(self, site: str, x: Tensor, out: Tensor) -> Tensor:
        """Return the map's value under noise for training.

        Args:
            site: where.
            x: the map's input, ``(B, ..., in)``.
            out: its value at the weights as they stand, ``(B, ..., out)``.
        """
        return self.mean_forward(site, x, out)

    def kl(self) -> Tensor:
        """Return KL(q ‖ prior) in nats, a scalar."""
        return torch.zeros(())

    def kl_weight(self, step: int, rows: int, batch_size: int) -> float:
        """Return the weight of the divergence beside a mean loss, to be multiplied by κ."""
        return 1 / rows

    def optimizer(self, groups: Iterable[dict[str, Any]], kl_weight: float) -> StiefelAdam | Ivon:
        """Return the optimiser of some groups of parameters.

        Args:
            groups: of ``param_groups``.
            kl_weight: κ/N.
        """
        return StiefelAdam(groups)

    def own_step(self, weight: float, rate: float) -> None:
        """Step along ``weight · KL`` at a share of the peak rate, where the optimiser does not."""

    def require_steps(self, total: int) -> None:
        """Raise ConfigError, before training, where that many steps are too few."""

    def after_step(self, step: int, total: int) -> None:
        """Take note of the weights after step ``step`` (from 1) of ``total``."""

    def settle(self) -> dict[str, Any]:
        """Leave the mean in the adapter once training has ended; return what to report."""
        return {}

    def fold_temperature(self, temperature: float) -> None:
        """Scale what is random in the head, whose mean has been divided by T."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all that defines q beside its mean, by name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned.

        Raises:
            StoreError: if these are not the tensors of this distribution.
        """
        own = self.tensors()
        wrong = sorted(set(own) ^ set(tensors))
        wrong += [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
        if wrong:
            raise StoreError(
                f"The distribution over the adapter does not fit the model: {wrong[0]} is missing, "
                "unknown or of another shape."
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def drawing(self, draws: Sequence[int], seed: int, *, blocks: bool = True) -> Iterator[Drawing]:
        """Hold draws for every forward pass within, whatever its batch.

        Args:
            draws: their indices; one where there are no blocks.
            seed: of the draws.
            blocks: see `Drawing`.
        """
        outer, held = self._drawing, Drawing(tuple(draws), seed, blocks=blocks)
        self._drawing = held
        try:
            yield held
        finally:
            self._drawing = outer

    def count(self, samples: int | str) -> int:
        """Return how many draws ``predict.samples`` stands for; 0 where nothing is random."""
        if not self.is_random:
            return 0
        return self.default_draws if isinstance(samples, str) else samples

    def observe(
        self,
        reader: Any,
        head: nn.Module,
        encoded: Any,
        draws: int,
        seed: int,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Observed:
        """Return what q says about encoded texts: logits under draws, with features at the mean.

        Args:
            reader: feeds the backbone.
            head: features to logits.
            encoded: N texts.
            draws: S.
            seed: of the draws.
            batch_size: texts in a pass.
            progress: how to report.
        """
        phi, logits = reader.draws(encoded, head, range(draws), seed, batch_size, progress=progress)
        return LogitDraws(phi, logits)

    def require_unmerged(self) -> None:
        """Raise ModelError where a layer is merged into the base, out of reach of any noise."""
        merged = [name for name, site in self.sites.items() if getattr(site.layer, "merged", False)]
        if merged:
            raise ModelError(
                f"The adapter is merged into the base at {merged[0]}, where its weights cannot be "
                "drawn: unmerge it first (unmerge_adapter), or predict with predict.samples=0."
            )

    def held_forward(self, site: str, x: Tensor, out: Tensor, held: Drawing) -> Tensor:
        """Return the map's value for ``(1 + S) · B`` rows, the first B of them at the mean.

        Raises:
            MixedRowsError: if the map is fed something else than these rows.
        """
        if not held.draws:
            return self.mean_forward(site, x, out)
        if site not in held.kept:
            held.kept[site] = self.deviations(site, held.draws, held.seed)
        deviation = held.kept[site]  # (S, out, in)
        if not held.blocks:
            return self.mean_forward(site, x, out) + x @ deviation[0].mT
        rows, count = block_rows(site, x, held), len(held.draws)
        noisy = x[rows:].reshape(count, -1, x.shape[-1])  # (S, B · ..., in)
        added = torch.bmm(noisy, deviation.mT).view(-1, *out.shape[1:])  # (S · B, ..., out)
        mean = self.mean_forward(site, x, out)
        return torch.cat([mean[:rows], mean[rows:] + added])


def key(site: str) -> str:
    """Return the name under which a module may hold what belongs to a site."""
    return site.replace(".", "-")


class MixedRowsError(ModelError):
    """A layer is fed something that is not the rows of the batch, so draws cannot share a pass."""


def block_rows(site: str, x: Tensor, held: Drawing) -> int:
    """Return how many of the rows of a map's input belong to one draw.

    Raises:
        MixedRowsError: if the input is not that of the batch: an expert's share of the tokens, or
            a table of positions.
    """
    texts, tokens = (1, 1) if held.mask is None else held.mask.shape
    for rows in (texts, texts * tokens):
        if x.shape[0] == (1 + len(held.draws)) * rows:
            return rows
    raise MixedRowsError(
        f"{site} is fed {tuple(x.shape)} where the batch has {texts} texts of {tokens} tokens and "
        f"{len(held.draws)} draws."
    )


def distribution_of(model: nn.Module) -> WeightDistribution | None:
    """Return the distribution over weights that a model's passes go through; None without one."""
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return next((hook.weights for hook in hooks if isinstance(hook, _Hook)), None)


class _Hook:
    """Adds the noise of one site to the value of its map."""

    def __init__(self, weights: WeightDistribution, site: str) -> None:
        self.weights, self.site = weights, site

    def __call__(self, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        weights, x = self.weights, args[0]
        held = weights._drawing
        if held is not None:
            return weights.held_forward(self.site, x, out, held)
        if weights.training:
            return weights.train_forward(self.site, x, out)
        return weights.mean_forward(self.site, x, out)
