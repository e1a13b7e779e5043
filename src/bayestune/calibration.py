"""Calibrating a trained model: sets of a stated coverage, abstention at a stated risk."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from bayestune.data import Task
from bayestune.errors import ConfigError, DataError
from bayestune.guarantees import KINDS, Guarantees, rows_needed, selective, uniforms
from bayestune.guarantees import sets as prediction_sets
from bayestune.guarantees.quantile import check_probability
from bayestune.metrics.inputs import check_choice
from bayestune.model import BayesModel
from bayestune.prediction import SCORES, Prediction
from bayestune.progress import Progress, silent


@dataclass(frozen=True)
class Wanted:
    """What is to be guaranteed; see `calibrate`."""

    coverage: float | None = None
    max_risk: float | None = None
    sets: str = "lac"
    by: str = "max_prob"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_choice(self.sets, "sets", tuple(KINDS))
        check_choice(self.by, "by", tuple(SCORES))
        for name in ("coverage", "max_risk", "confidence"):
            value = getattr(self, name)
            if value is not None:
                check_probability(value, name)
        if self.coverage is None and self.max_risk is None:
            raise ConfigError(
                "there is nothing to guarantee: give coverage (--coverage) for prediction sets, "
                "max_risk (--max-risk) for abstention, or both."
            )


def calibrate(
    model: BayesModel,
    task: Task,
    *,
    coverage: float | None = None,
    max_risk: float | None = None,
    sets: str = "lac",
    by: str = "max_prob",
    confidence: float = 0.95,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Guarantees:
    """Find what a trained model can promise, by labelled rows that it has not seen.

        P(y ∈ C(x)) ≥ coverage,   P(E[wrong | answered] ≤ max_risk) ≥ confidence

    for rows exchangeable with those of the task; `guarantees.sets` and `guarantees.selective` say
    over what. From now on predictions carry ``sets`` and ``abstain``; saving the model stores the
    rules with it, calibrating it again replaces them, training it again drops them.

    Args:
        model: gets the rules.
        task: n labelled rows, neither trained on nor chosen by.
        coverage: probability with which a set holds the true class; None for no sets.
        max_risk: error rate allowed among the answered rows; None where all are answered.
        sets: ``lac``, ``aps`` or ``raps``.
        by: the score by which rows are answered: ``max_prob``, ``entropy``,
            ``mutual_information`` or ``density``.
        confidence: probability with which the risk is kept, over the draw of the n rows.
        batch_size: texts in a pass; it does not change the result beyond rounding.
        progress: how to report.

    Returns:
        The rules, now the model's ``guarantees``.

    Raises:
        ConfigError: if an option is unknown or out of range, or the model predicts numbers.
        DataError: if a row has no label, there are too few rows for the coverage, or they are those
            that the model was trained on or chosen by.
    """
    Wanted(coverage, max_risk, sets, by, confidence)
    targets = _check(model, task, coverage)
    found = model.predict(task, batch_size, progress=progress)
    assert isinstance(found, Prediction)
    u = uniforms(example.content for example in task)
    choose, refuse = None, None
    if coverage is not None:
        choose = prediction_sets.calibrate(found.probs, targets, u, coverage, sets)
    if max_risk is not None:
        right = found.indices == targets
        refuse = selective.calibrate(SCORES[by](found), right, u, max_risk, confidence, by)
    model.guarantees = Guarantees(choose, refuse, task.hash, model.settings)
    return model.guarantees


def seen(model: BayesModel, task: Task) -> bool:
    """Return whether a task is what a model was trained on, chosen by or updated with.

    Known are the hashes of these rows, so that other files which hold some of them are not found.
    """
    facts = model.notes.get("data", {})
    known = {facts.get("train_hash"), facts.get("val_hash")}
    known |= {entry["hash"] for entry in model.notes.get("updates", ())}
    parts = [task]
    with suppress(ConfigError, DataError):  # rows that cannot be split were not split
        parts += task.split(model.recipe.train.hold_out, model.recipe.seed)
    return any(part.hash in known for part in parts)


def _check(model: BayesModel, task: Task, coverage: float | None) -> Tensor:
    """Return the classes of the rows where they can calibrate a model."""
    if model.task.kind == "regression":
        raise ConfigError(
            "sets and abstention are about classes; this model predicts numbers, whose intervals "
            "eval measures as coverage90."
        )
    targets = model.targets(model.read(task))
    least = 1 if coverage is None else rows_needed(coverage)
    if len(task) < least:
        raise DataError(
            f"{task.title}: {len(task)} rows cannot show a coverage of {coverage}: it takes "
            f"at least {least}, and some hundreds for sets that are not needlessly large."
        )
    if seen(model, task):
        raise DataError(
            f"{task.title} holds the rows that the model was trained on or chosen by, or updated "
            "with: they look better than new rows will. Give labelled rows that it has not seen."
        )
    return targets
