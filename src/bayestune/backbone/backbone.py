"""The adapted transformer as a feature extractor: token ids in, one pooled feature per text out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bayestune.backbone.breakdown import broken_rows
from bayestune.backbone.layers import layer_stack
from bayestune.backbone.pool import POOLED, POOLING
from bayestune.backbone.quantise import keep_gradients
from bayestune.backbone.split import enter_states, resume_from
from bayestune.backbone.tail import only_pooled, tokenwise
from bayestune.errors import ModelError, NumericsError
from bayestune.weights import WeightDistribution

#: What transformers' models call a learned table of positions.
_POSITIONS = ("position_embeddings", "embed_positions")

#: What an architecture raises that cannot be run in another way than its own.
_MISFITS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
#: Multiplications that a device could do while a layer is only set going; a GPU, and a CPU thread.
_IDLE = {"cpu": 1.4e7}
_IDLE_ELSEWHERE = 7e10
#: Tokens up to which plain products are the faster attention to train through in half precision
#: on a CPU: 5 times at 16 tokens, 1.3 times at 128; see bench/upper_layers.py.
_SHORT = 128


class Backbone(nn.Module):
    """``φ(x) = pool(transformer(x))``: the bare pooled forward of an adapted transformer.

    The vocabulary head is never evaluated. Frozen parts stay in evaluation mode while training, so
    that a text's features differ between steps only by what is trained.

    Args:
        peft_model: the PEFT model around the transformer.
        transformer: the bare transformer inside it (no head).
        pooling: ``last``, ``mean`` or ``cls``.
        first_layer: index of the first adapted layer; below it nothing is trained.
        decoder: whether the transformer is causal and takes explicit positions.

    Attributes:
        weights: the distribution over the adapter's weights; None where they are a point.
        sharded: whether its frozen layers are cut over several processes.
    """

    def __init__(
        self,
        peft_model: Any,
        transformer: nn.Module,
        *,
        pooling: str,
        first_layer: int,
        decoder: bool,
    ) -> None:
        super().__init__()
        self.peft_model = peft_model
        # A second registration would list every weight twice.
        object.__setattr__(self, "_transformer", transformer)
        object.__setattr__(self, "_layers", layer_stack(transformer)[1])
        self.pooling = pooling
        self.first_layer = first_layer
        self.decoder = decoder
        self._pool = POOLING[pooling]
        self.weights: WeightDistribution | None = None
        self.sharded = False
        self._halves: bool | None = None if first_layer > 0 else False
        self._tail: bool | None = None
        self._cut: list[nn.Module] = []
        self.train(False)

    @property
    def transformer(self) -> nn.Module:
        """The bare transformer with its adapters."""
        return self._transformer  # pyright: ignore[reportReturnType]

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the transformer."""
        return self._layers  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.peft_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the frozen weights, and so of hidden states."""
        frozen = (p.dtype for p in self.transformer.parameters() if not p.requires_grad)
        return next((d for d in frozen if d.is_floating_point), torch.float32)

    @functools.cached_property
    def positions(self) -> int | None:
        """How many tokens a learned table of positions serves; None without such a table."""
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Embedding) and name.split(".")[-1] in _POSITIONS:
                # RoBERTa counts from behind its padding token, OPT from an offset.
                unused = getattr(module, "offset", 0)
                if module.padding_idx is not None:
                    unused = module.padding_idx + 1
                return module.num_embeddings - unused
        return None

    @functools.cached_property
    def pass_overhead(self) -> float:
        """What a pass costs whatever its length, in tokens: little only for large layers."""
        idle = _IDLE.get(self.device.type, _IDLE_ELSEWHERE)
        return idle / max(1, sum(p.numel() for p in self.layers[0].parameters()))

    @property
    def has_kl(self) -> bool:
        """Whether the distribution over the adapter's weights has a divergence to be weighed."""
        return self.weights is not None and self.weights.has_kl

    @property
    def splits(self) -> bool:
        """Whether there are frozen layers below the first adapted one."""
        return self.first_layer > 0

    def train(self, mode: bool = True) -> Backbone:
        """Switch the adapters' dropout; the frozen transformer stays in evaluation mode."""
        super().train(False)
        keep_gradients(self)
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self.peft_model.modules():
            if isinstance(module, BaseTunerLayer):
                setattr(module, "training", mode)  # noqa: B010 - tuner layers are typed as no module
                for name in module.adapter_layer_names + module.other_param_names:
                    part = getattr(module, name, None)
                    if isinstance(part, nn.Module):
                        part.train(mode)
        if self.weights is not None:
            self.weights.train(mode)
        self.training = mode
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and the noise of training off for a while."""
        if not (training := self.training):  # a walk over all modules would cost single texts most
            yield
            return
        self.train(False)
        try:
            yield
        finally:
            self.train(training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return pooled features.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ones where a token is ``(B, T)``; a decoder's rows may be padded on
                either side, an encoder's on the right, because it counts from the left.
            position_ids: ``(B, T)``; counted by the mask where absent (decoders only).
            token_type_ids: ``(B, T)``, for pairs.

        Returns:
            Features ``(B, D)`` in fp32.
        """
        inputs = self._inputs(attention_mask, position_ids, token_type_ids)
        return self._pooled(lambda: self.transformer(input_ids=input_ids, **inputs), attention_mask)

    def enter(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the states entering the first adapted layer, ``(B, T, D)``, without gradients.

        Raises:
            ModelError: if more than one state per token enters that layer.
        """
        inputs = self._inputs(attention_mask, position_ids, token_type_ids)
        inputs["input_ids"] = input_ids
        with torch.no_grad():
            states = enter_states(self.transformer, self.layers, self.first_layer, inputs)
        if states.ndim != 3 or states.shape[:2] != input_ids.shape:
            raise ModelError(
                f"{type(self.transformer).__name__} passes states of the shape "
                f"{tuple(states.shape)} between its layers, not one per token; switch the prefix "
                "cache off with cache.prefix=off."
            )
        return states

    def resume(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return pooled features ``(B, D)`` from states that enter the first adapted layer."""
        inputs = self._inputs(attention_mask, position_ids, token_type_ids)

        def run() -> Any:
            return resume_from(self.transformer, self.layers, self.first_layer, hidden, inputs)

        return self._pooled(run, attention_mask)

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one fp32 feature per text ``(B, D)`` from hidden states ``(B, T, D)``."""
        return self._pool(hidden, attention_mask).float()

    def check_split(self, batch: Mapping[str, Tensor]) -> None:
        """Measure on real tokens that both halves together give the whole pass's features.

        Raises:
            ModelError: if they do not, as for an architecture whose upper layers read more than
                the states below them.
        """
        with torch.no_grad():
            whole = self(**batch)
            masks = {k: v for k, v in batch.items() if k != "input_ids"}
            try:
                halves = self.resume(self.enter(**batch), **masks)
            except ModelError:
                raise
            except _MISFITS as error:
                raise ModelError(
                    f"{type(self.transformer).__name__} cannot be run in two halves ({error}); "
                    "switch the prefix cache off with cache.prefix=off."
                ) from error
        error = self._gap(whole, halves)
        if not error <= self._tolerance:
            raise ModelError(
                f"Running {type(self.transformer).__name__} in two halves changes its features by "
                f"{error:.1e} (relative); switch the prefix cache off with cache.prefix=off."
            )

    def try_split(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether a pass can run in two halves; measured once, by `check_split`."""
        if self._halves is None:
            try:
                self.check_split(batch)
                self._halves = True
            except ModelError:
                self._halves = False
        return self._halves

    def check_finite(
        self, features: Tensor, rows: str, mask: Tensor, again: Callable[[], Any] | None = None
    ) -> None:
        """Stop where a feature is not a number.

        Args:
            features: ``(B, D)``.
            rows: what they are of, in words.
            mask: ones where a token is ``(B, T)``.
            again: the same pass, to find the layer that is to blame.

        Raises:
            NumericsError: naming the rows and the first layer.
        """
        if torch.isfinite(features).all():
            return
        raise NumericsError(
            f"Features of {rows} are {broken_rows(features, self.transformer, again, mask)}; lower "
            "train.lr, or use dtype=float32 for the backbone."
        )

    def _pooled(self, run: Callable[[], Any], attention_mask: Tensor) -> Tensor:
        """Return the pooled features of a pass, whose last layer is run for what is pooled."""
        if self._tail is None and attention_mask.shape[1] > 1:  # one token tells nothing
            self._tail = self._try_tail(run, attention_mask)
        with (
            self._only_pooled(attention_mask) if self._tail else nullcontext(),
            self._attention(attention_mask.shape[1]),
        ):
            hidden = run().last_hidden_state
        return self.pool(hidden, attention_mask)

    def _only_pooled(self, attention_mask: Tensor) -> AbstractContextManager[None]:
        index = POOLED[self.pooling](attention_mask)
        return only_pooled(self._cut, index, attention_mask.shape[1])

    def _attention(self, length: int) -> AbstractContextManager[Any]:
        """Choose how attention is computed: the fused kernel's backward pass is slow on a CPU."""
        half = self.dtype in (torch.bfloat16, torch.float16) and self.device.type == "cpu"
        if half and torch.is_grad_enabled() and length <= _SHORT:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def _tokenwise(self) -> list[nn.Module]:
        return tokenwise(self.layers[-1], random=self.weights is not None)

    def _try_tail(self, run: Callable[[], Any], attention_mask: Tensor) -> bool:
        """Measure whether the pooled tokens' part of the last layer gives the same features."""
        self._cut = self._tokenwise()
        if self.pooling not in POOLED or not self._cut:
            return False
        with self.evaluating(), torch.no_grad():
            whole = self.pool(run().last_hidden_state, attention_mask)
            try:
                with self._only_pooled(attention_mask):
                    part = self.pool(run().last_hidden_state, attention_mask)
            except _MISFITS:
                return False
        return self._gap(whole, part) <= self._tolerance

    @property
    def _tolerance(self) -> float:
        return 1e-4 if self.dtype == torch.float32 else 2e-2

    @staticmethod
    def _gap(whole: Tensor, other: Tensor) -> float:
        """Return the largest difference of features, relative to the largest of the first."""
        return float((whole - other).abs().amax() / whole.abs().amax().clamp_min(1e-6))

    def _inputs(
        self, attention_mask: Tensor, position_ids: Tensor | None, token_type_ids: Tensor | None
    ) -> dict[str, Any]:
        if self.weights is not None:
            self.weights.mask = attention_mask
        inputs: dict[str, Any] = {"attention_mask": attention_mask}
        if self.decoder:
            if position_ids is None:
                position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
            inputs |= {"position_ids": position_ids, "use_cache": False}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return inputs
