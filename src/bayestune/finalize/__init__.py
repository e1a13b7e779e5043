"""Finalisers: what is done once to a trained posterior, on cached features."""

from __future__ import annotations

from bayestune.finalize.checks import require_possible, require_predictive
from bayestune.finalize.choice import Candidate
from bayestune.finalize.features import Features, Rows
from bayestune.finalize.generative import generative_head, to_generative
from bayestune.finalize.options import KAPPAS
from bayestune.finalize.refresh import FAMILY_OF, REFRESHES
from bayestune.finalize.regression import (
    finish_regression,
    fit_std_factor,
    regression_losses,
    regression_predictive,
)
from bayestune.finalize.select import held_out_missing, open_choices, select
from bayestune.finalize.temperature import (
    clearly_worse,
    fit_temperature,
    given_temperature,
    held_out_nll,
    item_nll,
    observed_at,
    predictive_at,
    require_rows,
    rows_at_once,
    search_temperature,
)
from bayestune.finalize.update import Delivered, update_head

__all__ = [
    "FAMILY_OF",
    "KAPPAS",
    "REFRESHES",
    "Candidate",
    "Delivered",
    "Features",
    "Rows",
    "clearly_worse",
    "finish_regression",
    "fit_std_factor",
    "fit_temperature",
    "generative_head",
    "given_temperature",
    "held_out_missing",
    "held_out_nll",
    "item_nll",
    "observed_at",
    "open_choices",
    "predictive_at",
    "regression_losses",
    "regression_predictive",
    "require_possible",
    "require_predictive",
    "require_rows",
    "rows_at_once",
    "search_temperature",
    "select",
    "to_generative",
    "update_head",
]
