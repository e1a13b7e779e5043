"""Where the head's float64 is computed."""

from __future__ import annotations

import pytest
import torch

from bayestune.head.precision import wide_device


@pytest.mark.parametrize(
    ("device", "place"),
    [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu"), ("mps:0", "cpu")],
)
def test_a_device_without_float64_leaves_it_to_the_cpu(device, place) -> None:
    assert wide_device(torch.device(device)) == torch.device(place)
