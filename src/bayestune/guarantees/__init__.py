"""Guarantees on top of any method's probabilities, for rows exchangeable with held-out ones.

Prediction sets that hold the true class with a stated probability (split conformal), and abstention
that keeps the error of what is answered below a stated rate (Learn then Test). Pure functions on
tensors, float64.
"""

from bayestune.guarantees.binomial import upper_bound
from bayestune.guarantees.guarantees import Guarantees
from bayestune.guarantees.quantile import conformal_quantile, rows_needed
from bayestune.guarantees.selective import AbstainRule
from bayestune.guarantees.sets import KINDS, SetRule
from bayestune.guarantees.uniform import uniforms

__all__ = [
    "KINDS",
    "AbstainRule",
    "Guarantees",
    "SetRule",
    "conformal_quantile",
    "rows_needed",
    "uniforms",
    "upper_bound",
]
