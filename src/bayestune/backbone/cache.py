"""Hidden states entering the first adapted layer, kept once per text."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayestune.errors import StoreError

logger = logging.getLogger(__name__)


class PrefixCache:
    """A store of states ``(T, D)`` by the token ids they came from.

    In memory up to ``max_gb``, beyond it in a memory-mapped temporary file up to ``max_disk_gb``;
    what fits in neither is not kept and is computed anew each time. Nothing outlives the process.
    What the file gives back is compared with a checksum; where it differs it is computed anew.

    Args:
        identity: the fingerprint of model, revision, tokeniser, first adapted layer and dtype.
        max_gb: most gigabytes in memory.
        max_disk_gb: most gigabytes in the file.
        folder: where the file goes; None takes the system's place for temporary files.
    """

    def __init__(
        self,
        identity: str,
        *,
        max_gb: float = 4.0,
        max_disk_gb: float = 64.0,
        folder: Path | None = None,
    ) -> None:
        self.identity = identity
        self._budget = int(max_gb * 1e9)
        self._disk_budget = int(max_disk_gb * 1e9)
        self._folder = folder
        self._memory: dict[bytes, Tensor] = {}
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._file: Any = None
        self._shape: tuple[torch.dtype, int] | None = None
        self.memory_bytes = 0
        self.disk_bytes = 0
        self.refused = 0

    def key(self, ids: Sequence[int], types: Sequence[int] | None = None) -> bytes:
        """Return the key of one text: a hash of the cache's identity and the text's tokens."""
        digest = hashlib.blake2b(self.identity.encode(), digest_size=16)
        digest.update(array("q", ids).tobytes())
        if types:
            digest.update(b"|" + array("q", types).tobytes())
        return digest.digest()

    def __contains__(self, key: bytes) -> bool:
        return key in self._memory or key in self._places

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep the states ``(T, D)`` of one text.

        Raises:
            StoreError: if the disk is full before ``max_disk_gb`` is reached.
        """
        if key in self:
            return
        states = states.detach().to("cpu", copy=True).contiguous()
        size = states.numel() * states.element_size()
        if self.memory_bytes + size <= self._budget:
            self._memory[key] = states
            self.memory_bytes += size
        elif self.disk_bytes + size <= self._disk_budget:
            self._append(key, states, size)
        else:
            self.refused += 1

    def get(self, key: bytes) -> Tensor | None:
        """Return the states ``(T, D)`` of one text, or None where they are not kept."""
        if key in self._memory:
            return self._memory[key]
        if key not in self._places or self._file is None or self._shape is None:
            return None
        start, tokens, checksum = self._places[key]
        dtype, width = self._shape
        try:
            states = torch.from_file(
                self._file.name, shared=False, size=start + tokens * width, dtype=dtype
            )[start:].view(tokens, width)  # (T, D)
        except RuntimeError:  # shorter than it was, or gone
            states = None
        if states is None or zlib.crc32(_bytes(states)) != checksum:
            logger.warning("%s was changed by others; states are computed anew", self._file.name)
            del self._places[key]
            return None
        return states

    def _append(self, key: bytes, states: Tensor, size: int) -> None:
        try:
            if self._file is None:
                # Named, so that it can be mapped; removed when it is closed, at the latest here.
                self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
                    prefix="bayestune-prefix-", suffix=".bin", dir=self._folder, buffering=0
                )
                self._shape = (states.dtype, states.shape[1])
                weakref.finalize(self, _close, self._file)
            self._file.seek(self.disk_bytes)
            rest = _bytes(states)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            folder = self._folder or tempfile.gettempdir()
            raise StoreError(
                f"The prefix cache could not be written to {folder}: {error.strerror or error}. "
                "Set TMPDIR to a disk with room, or lower cache.max_disk_gb."
            ) from error
        start, checksum = self.disk_bytes // states.element_size(), zlib.crc32(_bytes(states))
        self._places[key] = (start, states.shape[0], checksum)
        self.disk_bytes += size


def _close(file: Any) -> None:
    with suppress(FileNotFoundError):  # others may have removed it
        file.close()


def _bytes(states: Tensor) -> memoryview:
    """Return the bytes of contiguous states."""
    return states.view(torch.uint8).flatten().numpy().data
