"""What every adapter owes PEFT: inherit a contract and fill in its methods.

The promises are checked through PEFT's and transformers' public functions only, so that a method
that passes behaves like one of PEFT's own.
"""

from __future__ import annotations

import pytest
from contract_additive import AdditiveFileContract, AdditiveTargetContract, MergeContract
from contract_files import FileContract
from contract_function import FunctionContract
from contract_neighbours import NeighbourContract
from contract_targets import TargetContract

__all__ = ["AdditiveContract", "PeftContract"]


@pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers for the old name of this property, and people for that method.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
    # An empty name, which the contract then sees refused.
    "ignore:Adapter name '' should not be contained:UserWarning",
)
class PeftContract(FunctionContract, TargetContract, NeighbourContract, FileContract):
    """Of all adapters; see `ContractBase` for the methods that a subclass defines."""


class AdditiveContract(PeftContract, MergeContract, AdditiveTargetContract, AdditiveFileContract):
    """Of those that add a ΔW, which can be merged; `AdditiveBase` has one method more."""
