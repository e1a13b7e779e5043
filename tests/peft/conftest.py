"""Settings of the adapter tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "contract_additive",
    "contract_files",
    "contract_function",
    "contract_neighbours",
    "contract_targets",
)
