"""Passing texts through a backbone by several processes, each row by one of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bayestune.backbone import Reader
from bayestune.data import Encoded
from bayestune.processes import Processes, Share


def share_of(reader: Reader, encoded: Encoded, processes: Processes) -> Share:
    """Return the rows of this process: always the same ones where it keeps their frozen states."""
    return processes.share(range(len(encoded.ids)), fixed=reader.cache is not None)


def features(reader: Reader, encoded: Encoded, processes: Processes, **shown: Any) -> Tensor:
    """Return the features of all rows ``(N, D)``, on every process; see `Reader.features`."""
    if processes.alone:
        return reader.features(encoded, **shown)
    share = share_of(reader, encoded, processes)
    part = reader.features(encoded.select(share.rows), **shown)
    return processes.whole(part, share, len(encoded.ids))


def fill(reader: Reader, encoded: Encoded, processes: Processes, **shown: Any) -> None:
    """Keep the frozen states of this process's rows; see `Reader.fill`."""
    own = share_of(reader, encoded, processes).rows
    reader.fill(encoded if processes.alone else encoded.select(own), **shown)
