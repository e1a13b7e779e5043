"""Feeding encoded texts to a backbone, from the prefix cache where it holds them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayestune.backbone.backbone import Backbone
from bayestune.backbone.cache import PrefixCache
from bayestune.data import Encoded, length_grouped_batches, packed_batches, pad
from bayestune.errors import ConfigError, ModelError
from bayestune.progress import Progress, silent
from bayestune.weights import Drawing, MixedRowsError, WeightDistribution

#: Rows of one pass in which every text stands once for each draw.
_ROWS = 512


class Reader:
    """Turns encoded texts into pooled features, whole or from cached states.

    Args:
        backbone: the feature extractor.
        pad_id: fills rows of a batch; any token will do, masks decide.
        cache: states entering the first adapted layer; None runs whole passes.
        padding_side: ``right``, or ``left`` for decoders.

    Raises:
        ConfigError: if an encoder is to be padded on the left, where it counts positions from.
    """

    def __init__(
        self,
        backbone: Backbone,
        pad_id: int,
        cache: PrefixCache | None = None,
        padding_side: str = "right",
    ) -> None:
        if padding_side == "left" and not backbone.decoder:
            raise ConfigError("An encoder counts positions from the left; pad it on the right.")
        self.backbone = backbone
        self.pad_id = pad_id
        self.cache = cache
        self.padding_side = padding_side

    def batch(self, encoded: Encoded, rows: Sequence[int]) -> Tensor:
        """Return features ``(B, D)`` in fp32 of some rows, with gradients where they are on."""
        tensors = self.tensors(encoded, rows)
        mask = tensors["attention_mask"]
        hidden = self._kept(encoded, rows, mask)

        def run() -> Tensor:
            if hidden is None:
                return self.backbone(**tensors)
            return self.backbone.resume(
                hidden, **{name: t for name, t in tensors.items() if name != "input_ids"}
            )

        features = run()
        self.backbone.check_finite(features, f"rows {list(rows)[:8]}", mask, run)
        return features

    def features(
        self,
        encoded: Encoded,
        batch_size: int = 32,
        *,
        progress: Progress = silent,
        label: str = "features",
    ) -> Tensor:
        """Return the features of all rows ``(N, D)`` on the CPU, in order and without gradients."""
        out: Tensor | None = None
        with (
            self.backbone.evaluating(),
            torch.no_grad(),
            progress(label, len(encoded.ids)) as advance,
        ):
            for rows in self._batches(encoded.lengths, batch_size):
                features = self.batch(encoded, rows).cpu()
                if out is None:
                    out = features.new_empty(len(encoded.ids), features.shape[1])
                out[rows] = features
                advance(len(rows))
        return torch.empty(0, 0) if out is None else out

    def draws(
        self,
        encoded: Encoded,
        head: nn.Module,
        draws: Sequence[int],
        seed: int,
        batch_size: int = 32,
        *,
        progress: Progress = silent,
        label: str = "draws",
    ) -> tuple[Tensor, Tensor]:
        """Return features at the mean and logits under draws of the adapter's weights.

        All draws of a batch go through the adapted layers in one pass.

        Args:
            encoded: N texts.
            head: features to logits.
            draws: indices of S draws; the same one is the same draw for all texts.
            seed: of the draws.
            batch_size: texts in a pass, fewer where the draws make it larger than 512 rows.
            progress: how to report.
            label: what to call it.

        Returns:
            Features ``(N, D)`` and logits ``(S, N, K)`` on the CPU, in order, without gradients.
        """
        weights, times = self.backbone.weights, 1 + len(draws)
        assert weights is not None
        weights.require_unmerged()
        if not len(encoded.ids):
            return torch.empty(0, 0), torch.empty(len(draws), 0, 0)
        batch_size = max(1, min(batch_size, _ROWS // times))
        found: list[tuple[list[int], Tensor, Tensor]] = []
        with (
            self.backbone.evaluating(),
            torch.no_grad(),
            progress(label, len(encoded.ids)) as advance,
        ):
            halves = self.backbone.try_split(self.tensors(encoded, range(min(2, len(encoded.ids)))))
            with weights.drawing(draws, seed) as held:
                for rows in self._batches(encoded.lengths, batch_size):
                    tensors = self.tensors(encoded, rows)
                    held.mask = tensors["attention_mask"].bool()
                    held.keys = tuple(_text_key(encoded, i) for i in rows)
                    hidden = self._kept(encoded, rows, tensors["attention_mask"])
                    if hidden is None and halves:
                        hidden = self.backbone.enter(**tensors)
                    phi, logits = self._drawn(head, weights, held, tensors, hidden)
                    self.backbone.check_finite(phi, f"rows {list(rows)[:8]}", held.mask)
                    found.append((rows, phi.cpu(), logits.cpu()))
                    advance(len(rows))
        order = torch.tensor([i for rows, _, _ in found for i in rows]).argsort()
        phi, logits = torch.cat([p for _, p, _ in found]), torch.cat([z for _, _, z in found], 1)
        return phi[order], logits[:, order]

    def _drawn(
        self,
        head: nn.Module,
        weights: WeightDistribution,
        held: Drawing,
        tensors: dict[str, Tensor],
        hidden: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return features ``(B, D)`` at the mean and logits ``(S, B, K)`` of one batch.

        In one pass; draw by draw where a layer is not fed the rows of the batch.
        """
        device, count = next(head.parameters()).device, len(held.draws)
        if held.blocks:
            try:
                phi = self._repeated(tensors, hidden, 1 + count).to(device)
                return phi[: len(phi) // (1 + count)], head(phi).unflatten(0, (1 + count, -1))[1:]
            except MixedRowsError:
                held.blocks = False
        logits = []
        for s in held.draws:
            with weights.drawing([s], held.seed, blocks=False) as alone:
                alone.mask, alone.keys = held.mask, held.keys
                logits.append(head(self._repeated(tensors, hidden, 1).to(device)))
        with weights.drawing([], held.seed, blocks=False):
            phi = self._repeated(tensors, hidden, 1)
        return phi, torch.stack(logits)

    def fill(
        self,
        encoded: Encoded,
        batch_size: int = 32,
        *,
        progress: Progress = silent,
        label: str = "",
    ) -> None:
        """Compute and keep the frozen states of every text that the cache does not hold yet."""
        if self.cache is None:
            return
        missing: dict[bytes, int] = {}
        for i in range(len(encoded.ids)):
            key = _key(self.cache, encoded, i)
            if key not in self.cache:
                missing.setdefault(key, i)
        todo = list(missing.values())
        lengths = [encoded.lengths[i] for i in todo]
        with progress(label or "frozen layers", len(todo)) as advance:
            for batch in self._batches(lengths, batch_size):
                rows = [todo[j] for j in batch]
                tensors = self.tensors(encoded, rows)
                states = self.backbone.enter(**tensors)  # (B, T, D)
                for i, state, mask in zip(rows, states, tensors["attention_mask"], strict=True):
                    self.cache.put(_key(self.cache, encoded, i), state[mask.bool()])
                advance(len(rows))

    def _batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Return the batches of passes without gradients, in which every row stands once."""
        if self.backbone.sharded:  # then all processes have to make equally many passes
            return length_grouped_batches(lengths, batch_size, shuffle=False)
        return packed_batches(lengths, batch_size, self.backbone.pass_overhead)

    def tensors(self, encoded: Encoded, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the padded inputs of some rows on the backbone's device."""
        ids, mask, positions = pad([encoded.ids[i] for i in rows], self.pad_id, self.padding_side)
        _require_known(ids, self.backbone.transformer)
        return self._place(ids, mask, positions, encoded, rows)

    def _kept(self, encoded: Encoded, rows: Sequence[int], mask: Tensor) -> Tensor | None:
        """Return the states of some rows ``(B, T, D)`` from the cache; None unless it has all."""
        if self.cache is None:
            return None
        kept = [self.cache.get(_key(self.cache, encoded, i)) for i in rows]
        states = [s for s in kept if s is not None]
        if len(states) < len(rows):
            return None
        # The mask and the positions are those of the padded ids; only their place is taken.
        hidden = states[0].new_zeros(*mask.shape, states[0].shape[1])  # (B, T, D)
        for b, state in enumerate(states):
            right = self.padding_side == "right"
            span = slice(0, len(state)) if right else slice(mask.shape[1] - len(state), None)
            hidden[b, span] = state
        return hidden.to(mask.device)

    def _repeated(self, tensors: dict[str, Tensor], hidden: Tensor | None, times: int) -> Tensor:
        """Return features ``(times · B, D)`` of a batch repeated, block by block.

        Where the states that enter the first adapted layer are there, only what follows is.
        """
        many = {name: t.repeat(times, 1) for name, t in tensors.items()}  # (times · B, T)
        if hidden is None:
            return self.backbone(**many)
        del many["input_ids"]
        return self.backbone.resume(hidden.repeat(times, 1, 1), **many)

    def _place(
        self, ids: Tensor, mask: Tensor, positions: Tensor, encoded: Encoded, rows: Sequence[int]
    ) -> dict[str, Tensor]:
        tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if encoded.token_type_ids is not None:
            types = [encoded.token_type_ids[i] for i in rows]
            tensors["token_type_ids"], _, _ = pad(types, 0, self.padding_side)
        if not self.backbone.decoder:
            del tensors["position_ids"]  # encoders count their own
        return {name: t.to(self.backbone.device) for name, t in tensors.items()}


def _text_key(encoded: Encoded, row: int) -> bytes:
    """Return a digest of a text's tokens."""
    types = encoded.token_type_ids[row] if encoded.token_type_ids is not None else ()
    text = array("q", [*encoded.ids[row], -1, *types]).tobytes()
    return hashlib.blake2b(text, digest_size=8).digest()


def _require_known(ids: Tensor, transformer: nn.Module) -> None:
    """Refuse token ids that the embeddings do not have: reading them fails, or ends the device."""
    table = getattr(transformer, "get_input_embeddings", lambda: None)()
    rows = getattr(table, "num_embeddings", None)
    if rows is not None and ids.numel() and int(ids.max()) >= rows:
        raise ModelError(
            f"The tokenizer gives the token {int(ids.max())}, but the backbone knows {rows}: the "
            "two do not belong together."
        )


def _key(cache: PrefixCache, encoded: Encoded, row: int) -> bytes:
    types = encoded.token_type_ids[row] if encoded.token_type_ids is not None else None
    return cache.key(encoded.ids[row], types)
