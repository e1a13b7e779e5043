"""Pooling reads the attention mask and nothing else."""

from __future__ import annotations

import pytest
import torch

from bayestune.backbone.pool import POOLING, cls, last, mean

LENGTHS = (3, 7, 1, 5)


def padded(side: str, dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(LENGTHS), 7, 4, generator=generator)
    mask = torch.zeros(len(LENGTHS), 7, dtype=dtype)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(0, length) if side == "right" else slice(7 - length, 7)] = 1
    return hidden, mask


BRUTE = {
    "last": lambda states: states[-1],
    "cls": lambda states: states[0],
    "mean": lambda states: sum(states[1:], states[0]) / len(states),
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", list(POOLING))
def test_pooling_is_what_a_loop_over_the_tokens_gives(name, side, dtype):
    hidden, mask = padded(side, dtype)
    for row, feature in enumerate(POOLING[name](hidden, mask)):
        states = [hidden[row, t] for t in range(7) if mask[row, t]]
        torch.testing.assert_close(feature, BRUTE[name](states))


def test_a_hole_in_the_mask_is_stepped_over():
    hidden = torch.arange(5.0).view(1, 5, 1)
    mask = torch.tensor([[0, 1, 0, 1, 0]])
    assert (last(hidden, mask), cls(hidden, mask), mean(hidden, mask)) == (3.0, 1.0, 2.0)


def test_the_mean_of_bf16_states_is_summed_in_fp32():
    # Neighbours in bf16; neither their sum nor their mean is a number there.
    hidden = torch.tensor([[[1.0], [1.0078125]]], dtype=torch.bfloat16)
    mask = torch.ones(1, 2, dtype=torch.int64)
    assert mean(hidden, mask).item() == 1.00390625
    assert mean(hidden, mask).dtype == torch.float32


@pytest.mark.parametrize("name", list(POOLING))
def test_what_is_padded_gets_no_gradient(name):
    hidden, mask = padded("left")
    hidden.requires_grad_()
    POOLING[name](hidden, mask).sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert not hidden.grad[mask == 0].any()
