"""One row on its way through the server, and what it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from bayestune.data import Encoded, Example
from bayestune.errors import BayestuneError, ConfigError
from bayestune.guarantees import AbstainRule, selective, uniforms
from bayestune.model import BayesModel
from bayestune.prediction import SCORES, Prediction, RegressionPrediction


@dataclass(frozen=True)
class Asked:
    """What a request asks beside predictions.

    Attributes:
        level: mass of the posterior inside the intervals of the probabilities; None for none.
        max_risk: the risk at which to abstain, instead of the one that the run was calibrated for.
        top: how many classes to report, the most probable first; None for all.
    """

    level: float | None = None
    max_risk: float | None = None
    top: int | None = None


@dataclass
class Row:
    """One row that waits.

    Attributes:
        example: what was read.
        encoded: its tokens.
        asked: what is to be answered.
        arrived: when, in seconds of the event loop's clock.
        answer: what its request waits for.
    """

    example: Example
    encoded: Encoded
    asked: Asked
    arrived: float
    answer: asyncio.Future[dict[str, Any]] = field(repr=False)

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.encoded.ids[0])


def answer(model: BayesModel, rows: Sequence[Row]) -> list[dict[str, Any] | BayestuneError]:
    """Answer rows in one pass; where that fails, one by one, so that each fails for itself.

    Args:
        model: predicts.
        rows: of any requests.

    Returns:
        What each is answered, or why it cannot be.
    """
    try:
        return list(_answers(model, rows))
    except BayestuneError as error:
        if len(rows) == 1:
            return [error]
        return [answer(model, [row])[0] for row in rows]


def _answers(model: BayesModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
    task = replace(model.task, examples=tuple(row.example for row in rows))
    mask = model.mask(task)
    observed = model.observe_encoded(join([row.encoded for row in rows]), batch_size=len(rows))
    found = model.predict_features(observed, mask)
    rules, u = model.guarantees, None
    if isinstance(found, Prediction) and rules is not None:
        u = uniforms(example.content for example in task)
        found = found.under(rules, u)
    out = list(found.rows([row.example.id for row in rows]))
    levels = {row.asked.level for row in rows if row.asked.level is not None}
    ends = {level: model.readout.intervals(observed, level, mask) for level in sorted(levels)}
    for i, (row, line) in enumerate(zip(rows, out, strict=True)):
        if row.asked.max_risk is not None and isinstance(found, Prediction):
            line["abstain"] = _abstains(rules and rules.abstain, found, u, i, row.asked.max_risk)
        complete(line, found, i, row.encoded, ends.get(row.asked.level or 0.0), row.asked.top)
    return out


def complete(
    line: dict[str, Any],
    found: Prediction | RegressionPrediction,
    i: int,
    encoded: Encoded,
    ends: Tensor | None,
    top: int | None,
) -> None:
    """Add to the line of a row what its request asks beside the prediction.

    Args:
        line: from ``found.rows``.
        found: the predictions.
        i: which one.
        encoded: the row's tokens.
        ends: of the intervals ``(2, N, K)``; None for none.
        top: how many classes to keep; None for all.
    """
    if encoded.truncated:
        line["truncated"] = True
    if isinstance(found, Prediction):
        _name_intervals(found, ends, i, line)
        if top is not None:
            _keep_top(line, top)


def _abstains(
    rule: AbstainRule | None, found: Prediction, u: Tensor | None, i: int, max_risk: float
) -> bool:
    """Return whether a row is too uncertain for a risk that its request states."""
    if rule is None or u is None:
        raise ConfigError("the run is not calibrated for abstention: max_risk means nothing to it.")
    one = slice(i, i + 1)
    rule = replace(rule, max_risk=max_risk)
    return bool(selective.apply(rule, SCORES[rule.by](found)[one], u[one])[0])


def _name_intervals(found: Prediction, ends: Tensor | None, i: int, line: dict[str, Any]) -> None:
    if ends is None:
        return
    low, high = ends[:, i].tolist()
    named = zip(found.names, low, high, strict=True)
    line["intervals"] = {name: [a, b] for name, a, b in named}


def _keep_top(line: dict[str, Any], count: int) -> None:
    kept = sorted(line["probs"], key=line["probs"].get, reverse=True)[:count]
    for key in ("probs", "intervals"):
        if key in line:
            line[key] = {name: line[key][name] for name in kept}


def join(parts: Sequence[Encoded]) -> Encoded:
    """Return rows that were encoded one by one as one."""
    types = [part.token_type_ids for part in parts]
    return Encoded(
        [part.ids[0] for part in parts],
        None if types[0] is None else [part[0] for part in types if part is not None],
        0,
    )
