"""vLLM's IO processor: predictions from ``POST /pooling``; loaded by vLLM, and by nothing here.

    BAYESTUNE_SIDECARS=bayes=EXPORT vllm serve BASE … --io-processor-plugin bayestune

A request's rows become token ids as in training, the engine returns their pooled states, and the
side-car makes predictions of those. vLLM does not tell a plug-in which adapter a request names;
the side-car's probe goes along with every request and shows whether it was the right one.

Written against the interface of vLLM 0.33.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from bayestune.errors import ConfigError, DataError
from bayestune.prediction import Prediction
from bayestune.serve.inputs import RowError, read_inputs
from bayestune.serve.limits import Limits
from bayestune.serve.pending import Asking, Pending
from bayestune.serve.rows import Asked, complete, join
from bayestune.serve.runs import split_name
from bayestune.serve.schema import PredictRequest, name_field
from bayestune.serve.states import TOLERANCE, with_probe, without_probe
from bayestune.store import Sidecar, open_sidecar

try:
    from vllm.plugins.io_processors.interface import (  # pyright: ignore[reportMissingImports]
        IOProcessor,
    )
    from vllm.pooling_params import PoolingParams  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        f"bayestune.serve.vllm is a plug-in of vLLM 0.33, which is not installed here ({error}). "
        "In the environment of the server: pip install 'bayestune[vllm]'. To ask such a server, "
        "use bayestune.serve.VllmClient, which needs no vLLM."
    ) from error

#: Names and folders of side-cars, as in ``bayes=exports/x chat=exports/y``.
SIDECARS = "BAYESTUNE_SIDECARS"
#: How far the probe's state may be away, where it is not to be `states.TOLERANCE`.
PROBE_TOLERANCE = "BAYESTUNE_PROBE_TOLERANCE"


def plugin() -> str:
    """Return where the processor is: what vLLM's entry points of this group do."""
    return f"{__name__}.Processor"


class Processor(IOProcessor):
    """Predictions of exported models.

    Args:
        vllm_config: vLLM's own.
        renderer: vLLM's own; rows are tokenised by the side-cars instead.

    Raises:
        ConfigError: if no side-car is named, two have one name, or the tolerance is no number.
        StoreError: if one is missing or damaged.
    """

    def __init__(self, vllm_config: Any, renderer: Any) -> None:
        super().__init__(vllm_config, renderer)
        self.sidecars = open_sidecars(os.environ.get(SIDECARS, ""))
        self._tolerance = _tolerance(os.environ.get(PROBE_TOLERANCE))
        self._pending, self._limits = Pending(), Limits()

    def parse_data(self, data: object) -> PredictRequest:
        """Read the ``data`` of a request, which are the fields of our own ``/v1/predict``.

        Raises:
            DataError: naming the field that is wrong.
        """
        if not isinstance(data, Mapping):
            raise DataError("data: expected an object with inputs.")
        try:
            found = PredictRequest.model_validate(dict(data))
        except ValidationError as error:
            field, message = name_field(error.errors()[-1])
            raise DataError(f"data.{field}: {message}") from None
        if not found.inputs:
            raise DataError("data.inputs: there is nothing to predict.")
        if not isinstance(found.inputs, str) and len(found.inputs) > self._limits.request_rows:
            most = self._limits.request_rows
            raise DataError(f"data.inputs: {len(found.inputs)} rows; a request may have {most}.")
        if found.max_risk is not None:
            raise DataError(
                "data.max_risk: an export is not calibrated for abstention: what is promised holds "
                "for the model as bayestune serve runs it."
            )
        self._name(found)
        return found

    def merge_pooling_params(self, params: Any = None) -> Any:
        """Return what asks the engine for pooled states as they are.

        Raises:
            ConfigError: if a caller's own would change them.
        """
        if params is not None and (params.use_activation or params.dimensions is not None):
            raise ConfigError("pooling_params: leave out use_activation and dimensions.")
        return PoolingParams(task="embed", use_activation=False)

    def pre_process(
        self, prompt: PredictRequest, request_id: str | None = None, **_: Any
    ) -> list[dict[str, list[int]]]:
        """Return token ids of the side-car's probe and of the rows.

        Raises:
            DataError: naming the row that cannot be read.
        """
        name = self._name(prompt)
        sidecar = self.sidecars[name]
        reads = sidecar.preprocessor
        inputs = [prompt.inputs] if isinstance(prompt.inputs, str) else prompt.inputs
        try:
            task = read_inputs(reads.task, inputs, self._limits.row_chars)
        except RowError as error:
            raise DataError(f"data.inputs.{error.position}: {error}") from None
        encoded = tuple(reads.tokenize(task.select([i])) for i in range(len(task)))
        asked = Asked(prompt.level if prompt.intervals else None, None, prompt.top)
        prompts = with_probe(sidecar, join(encoded))
        self._pending.put(request_id, Asking(name, task, asked, encoded, prompts))
        return [{"prompt_token_ids": list(ids)} for ids in prompts]

    def post_process(
        self, model_output: Sequence[Any], request_id: str | None = None, **_: Any
    ) -> dict[str, Any]:
        """Return the answer of our own ``/v1/predict``: model, version and predictions.

        Raises:
            ConfigError: if the states are not those of the side-car's adapter.
        """
        asking = self._pending.take(request_id, [row.prompt_token_ids for row in model_output])
        sidecar, readout = self.sidecars[asking.sidecar], self.sidecars[asking.sidecar].readout
        states = torch.stack([row.outputs.data for row in model_output])  # (1 + N, D)
        phi = without_probe(sidecar, states, self._tolerance)
        mask = sidecar.preprocessor.mask(asking.task)
        found, level = readout.predict(phi, mask), asking.asked.level
        ends = None
        if level is not None and isinstance(found, Prediction):
            ends = readout.intervals(phi, level, mask)
        lines = list(found.rows([example.id for example in asking.task]))
        for i, line in enumerate(lines):
            complete(line, found, i, asking.encoded[i], ends, asking.asked.top)
        return {"model": asking.sidecar, "version": sidecar.version, "predictions": lines}

    def _name(self, request: PredictRequest) -> str:
        """Return which side-car answers: the only one, or the one that a request names."""
        names = ", ".join(map(repr, self.sidecars))
        if request.model is None:
            if len(self.sidecars) > 1:
                raise DataError(f"data.model: several side-cars are served; name one of {names}.")
            return next(iter(self.sidecars))
        if request.model not in self.sidecars:
            raise DataError(f"data.model: {request.model!r} is no side-car; expected {names}.")
        return request.model


def open_sidecars(given: str) -> dict[str, Sidecar]:
    """Open side-cars by name.

    Args:
        given: ``NAME=FOLDER …`` as a shell would split it; the folder's name where there is none.

    Raises:
        ConfigError: if there is none, or two have one name.
        StoreError: if one is missing or damaged.
    """
    found: dict[str, Sidecar] = {}
    for part in shlex.split(given):
        name, folder = split_name(part)
        if name in found:
            raise ConfigError(f"{SIDECARS} names {name!r} twice.")
        found[name] = open_sidecar(folder)
    if not found:
        raise ConfigError(
            f"{SIDECARS} names no side-car: set it to NAME=FOLDER, an export that bayestune export "
            "--to vllm wrote."
        )
    return found


def _tolerance(given: str | None) -> float:
    try:
        found = TOLERANCE if given is None else float(given)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise ConfigError(f"{PROBE_TOLERANCE} is {given!r}; expected a number above 0.")
    return found
