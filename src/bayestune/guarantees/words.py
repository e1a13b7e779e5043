"""What a calibrated model promises, in sentences for people."""

from __future__ import annotations

import math

from bayestune.guarantees.guarantees import Guarantees
from bayestune.guarantees.selective import AbstainRule
from bayestune.guarantees.sets import SetRule


def sentences(found: Guarantees) -> list[str]:
    """Return one line or two for each rule of a model: the promise, and what came of its rows."""
    lines = [] if found.sets is None else [_sets(found.sets)]
    return lines + ([] if found.abstain is None else _abstention(found.abstain))


def _sets(rule: SetRule) -> str:
    return (
        f"sets: {rule.kind}, score at most {rule.threshold:.4g}: they hold the true class with "
        f"probability {rule.coverage:g} or more, and {rule.size:.2f} classes on these rows"
    )


def _abstention(rule: AbstainRule) -> list[str]:
    i = rule.chosen
    if i is not None:
        return [
            f"abstention: unless {_condition(rule)}; the error among answers is at most "
            f"{rule.max_risk:g} with confidence {rule.confidence:g}",
            f"on these rows: {_facts(rule, i)}; bound {_up(rule.bounds[i])}",
        ]
    least = rule.attainable
    attainable = "these rows are too few for any"
    if least is not None and (at := rule.at(least)) is not None:
        attainable = f"the least that they show is {_up(least)}, with {_facts(rule, at)}"
    fewest = math.ceil(math.log(1 - rule.confidence) / math.log1p(-rule.max_risk))
    return [
        f"abstention: ALL ROWS. No threshold on {rule.by} is shown to keep the error among answers "
        f"at {rule.max_risk:g} with confidence {rule.confidence:g}",
        f"it takes {fewest} answered rows without an error, or more with some; {attainable}",
    ]


def _condition(rule: AbstainRule) -> str:
    """Return which rows are answered; the confidence is the higher, the better."""
    if rule.by == "max_prob":
        return f"confidence > {-rule.threshold:.6g}"
    return f"{rule.by} < {rule.threshold:.6g}"


def _facts(rule: AbstainRule, i: int) -> str:
    accepted, errors = rule.accepted[i], rule.errors[i]
    return (
        f"{accepted} of {rule.n} ({accepted / rule.n:.1%}) answered, {errors} of them wrong "
        f"({errors / max(accepted, 1):.2%})"
    )


def _up(bound: float) -> str:
    """Return a bound in four digits that are not less."""
    return f"{min(bound + 5e-5, 1):.4f}"
