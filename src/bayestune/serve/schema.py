"""Requests and answers as OpenAPI describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class PredictRequest(BaseModel):
    """What to predict, and what to say of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: str | list[str | dict[str, Any]] = Field(
        description="One text, or a list of texts, or of rows by column where a row is more."
    )
    model: str | None = Field(None, description="Name of a run; the first one where absent.")
    intervals: bool = Field(
        False, description="Whether to report where the posterior puts each probability."
    )
    level: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="Mass of the posterior inside the intervals."
    )
    top: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Report only so many classes, the most probable first."
    )
    max_risk: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Abstain at this risk instead of the one the run was calibrated for."
    )


class ClassPrediction(BaseModel):
    """A class and its uncertainty; entropies are in nats."""

    id: str | int
    label: str
    probs: dict[str, float]
    confidence: float
    entropy: float = Field(description="aleatoric + epistemic")
    aleatoric: float
    epistemic: float
    ood_score: float = Field(description="The higher, the less familiar.")
    set: list[str] | None = Field(None, description="Of calibrated runs, at the stated coverage.")
    abstain: bool | None = Field(None, description="Of calibrated runs, at the stated risk.")
    intervals: dict[str, tuple[float, float]] | None = None
    truncated: bool | None = Field(None, description="True where the text was too long and cut.")


class NumberPrediction(BaseModel):
    """A number and its uncertainty, as standard deviations in its unit."""

    id: str | int
    mean: float
    std: float = Field(description="std² = aleatoric² + epistemic²")
    aleatoric: float
    epistemic: float
    ood_score: float
    truncated: bool | None = None


class PredictResponse(BaseModel):
    """Predictions in the order of the inputs."""

    model: str
    version: str = Field(description="Changes whenever what was learnt does.")
    predictions: list[ClassPrediction] | list[NumberPrediction]


class Problem(BaseModel):
    """What is wrong with a request."""

    code: str
    message: str
    field: str | None = Field(None, description="Where in the request, such as inputs.3.")


class ErrorResponse(BaseModel):
    """A request that was not answered."""

    error: Problem


def name_field(error: Mapping[str, Any]) -> tuple[str, str]:
    """Return where in a request pydantic sees an error, and what it is.

    Args:
        error: the last of those it reports, somewhere in a `PredictRequest`.
    """
    where = [part for part in error["loc"] if part != "body"]
    if where[:1] == ["inputs"] and error["type"] != "missing":  # of what it may be, nothing fits
        row = next((f".{part}" for part in where if isinstance(part, int)), "")
        expected = "a text or an object" if row else "a text or a list of them"
        return f"inputs{row}", f"Expected {expected}."
    return ".".join(map(str, where)), f"{error['msg']}."
