"""What every additive adapter owes PEFT: inherit `PeftContract` and fill in three methods.

The promises are checked through PEFT's and transformers' public functions only, so that a method
that passes behaves like one of PEFT's own.
"""

from __future__ import annotations

import pytest
from contract_files import FileContract
from contract_function import FunctionContract
from contract_targets import TargetContract

__all__ = ["PeftContract"]


@pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers for the old name of this property.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
class PeftContract(FunctionContract, TargetContract, FileContract):
    """The whole contract; see `ContractBase` for the three methods that a subclass defines."""
