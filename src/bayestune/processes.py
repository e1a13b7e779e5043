"""The processes of one training: which one this is, what its share is, and sums over all of them.

torchrun starts processes with one command. Each holds the model and passes its share of every
batch through the backbone; the features ``(B, D)`` are put together, and from them every process
computes the same: bound, divergence and the step of the posterior, as one process alone would.
What is left to be summed is the gradient of the adapter, to which each adds by its own rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: What torchrun, and all that starts processes as it does, says to each of them.
_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Share(NamedTuple):
    """What one process passes through the backbone.

    Attributes:
        rows: what to pass, never nothing; those beyond the positions are there to keep up.
        positions: where the features of the first of them belong.
    """

    rows: list[int]
    positions: list[int]


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, rows: Sequence[int], *, fixed: bool = False) -> Share:
        """Return what of a batch is this process's.

        Dealt evenly, all pass equally many rows, the last of which may be one again.

        Args:
            rows: indices of the batch; of a set of rows all of its indices.
            fixed: a row is always the same process's, the one that keeps its frozen states; how
                many there are in a batch is then left to chance.
        """
        if fixed:
            positions = [p for p, row in enumerate(rows) if row % self.size == self.rank]
            return Share([rows[p] for p in positions] or [rows[0]], positions)
        positions = list(range(self.rank, len(rows), self.size))
        missing = -(-len(rows) // self.size) - len(positions)
        return Share([rows[p] for p in positions] + [rows[0]] * missing, positions)

    def whole(self, part: Tensor, share: Share, count: int) -> Tensor:
        """Return the features of a batch ``(B, D)`` from what each process has of them.

        Gradients reach this process's part and no further.

        Args:
            part: features of the rows of a share.
            share: whose.
            count: B.
        """
        if self.alone:
            return part
        at = torch.tensor(share.positions, dtype=torch.int64, device=part.device)
        own = part[: len(at)]
        found = part.new_zeros(count, *part.shape[1:], requires_grad=False)
        found[at] = own.detach()
        torch.distributed.all_reduce(found)
        return found.index_put((at,), own)

    @torch.no_grad()
    def reduce_gradients(self, parameters: Iterable[Tensor], *, mean: bool = False) -> None:
        """Sum gradients over the processes, or average those that are the same on all of them.

        Such gradients stay the same beyond rounding, whatever order a device adds in.
        """
        if self.alone:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        if mean:
            flat /= self.size
        for grad, total in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(total.view_as(grad))

    def same(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor on all of them, so that they decide alike."""
        if not self.alone:
            tensor = tensor.contiguous()
            torch.distributed.broadcast(tensor, 0)
        return tensor

    def agree(self, number: int) -> bool:
        """Return whether all processes have the same number, of 63 bits."""
        if self.alone:
            return True
        ends = torch.tensor([number, -number], dtype=torch.int64)
        torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        return int(ends[0]) == -int(ends[1])

    def any(self, flag: bool) -> bool:
        """Return whether one of the processes says so."""
        if self.alone:
            return flag
        said = torch.tensor(int(flag))
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return bool(said)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process through the block before any other enters it."""
        if not self.first:
            torch.distributed.barrier()
        yield
        if self.first and not self.alone:
            torch.distributed.barrier()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if not self.alone:
            torch.distributed.barrier()


#: One process that trains by itself.
ALONE = Processes()


def started_together() -> bool:
    """Return whether this process was started as one of several, by torchrun or what is like it."""
    return all(name in os.environ for name in _SAID) and int(os.environ["WORLD_SIZE"]) > 1


def join() -> Processes:
    """Join the processes this one was started with, on the GPU that is its own."""
    if started_together() and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group()  # gloo for the CPU, NCCL for CUDA
    return current()


def leave() -> None:
    """Close what `join` opened."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def current() -> Processes:
    """Return the processes that have joined, this one alone where none have."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ALONE
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
