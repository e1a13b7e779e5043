"""Settings of the adapter tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("contract_function", "contract_targets", "contract_files")
