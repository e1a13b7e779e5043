"""One thread for small matrices: more of them cost time and gain nothing."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def polar_model() -> torch.nn.Module:
    """Two linear layers, both adapted by PoLAR."""
    from peft import get_peft_model

    import bayestune

    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 5))
    return get_peft_model(net, bayestune.PolarConfig(r=2, target_modules=["0", "1"]))
