"""A client that makes predictions of the states another server returns; it needs no backbone."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bayestune.data import Encoded
from bayestune.errors import ConfigError, ServerError
from bayestune.prediction import Prediction, RegressionPrediction
from bayestune.preprocessor import Texts
from bayestune.serve.mixture import mixture
from bayestune.serve.states import TOLERANCE, with_probe, without_probe
from bayestune.store import Sidecar, open_sidecar

#: What vLLM takes beside OpenAI's fields: states as they are, of known byte order.
VLLM = {"use_activation": False, "endianness": "little"}
_BUSY = (429, 503)
_LONGEST = 60.0  # seconds that a server may ask for


class VllmClient:
    """Predicts from ``/v1/embeddings`` of vLLM, or of a server that answers like it.

    The server must take token ids and return the pooled states of the exported adapter as they
    are, not scaled to length 1. Every request carries the side-car's probe, by which another
    adapter, pooling or scale is noticed and refused.

    Args:
        url: of the server, such as ``http://localhost:8000``.
        sidecar: folder of an export, or of its side-car.
        model: the server's name of the adapter; of an export with S draws they are ``NAME-0`` …
            ``NAME-(S − 1)``, all of which are asked.
        api_key: sent as a bearer token.
        batch_size: texts of one request.
        encoding: how states travel.
        timeout: seconds that one request may take.
        retries: how often to come again after 429 or 503, when Retry-After says so.
        tolerance: how far the probe's state may be away, see `states.without_probe`.
        extra: fields of every request; vLLM's where None.

    Raises:
        ConfigError: if the address is none or a number is out of range.
        StoreError: if the side-car is missing or damaged.
    """

    def __init__(
        self,
        url: str,
        sidecar: str | Path,
        model: str = "bayes",
        *,
        api_key: str | None = None,
        batch_size: int = 64,
        encoding: Literal["base64", "float"] = "base64",
        timeout: float = 60.0,
        retries: int = 4,
        tolerance: float = TOLERANCE,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url is {url!r}; expected http://HOST:PORT or https://HOST.")
        if batch_size < 1 or retries < 0 or not timeout > 0 or not tolerance > 0:
            raise ConfigError("batch_size, timeout and tolerance are above 0, retries 0 or more.")
        if encoding not in ("base64", "float"):
            raise ConfigError(f"encoding is {encoding!r}; expected 'base64' or 'float'.")
        self.url = f"{url.rstrip('/').removesuffix('/v1')}/v1/embeddings"
        self.adapters = _adapters(Path(sidecar), model)
        self._key, self._batch, self._encoding = api_key, batch_size, encoding
        self._timeout, self._retries, self._tolerance = timeout, retries, tolerance
        self._extra = dict(VLLM if extra is None else extra)

    def predict(self, texts: Texts) -> Prediction | RegressionPrediction:
        """Predict as `BayesModel.predict` does, without sets and abstentions.

        Args:
            texts: N texts, pairs, rows or a task.

        Raises:
            DataError: if a text cannot be read.
            ConfigError: if the server's states are not those of the exported adapter.
            ServerError: if the server cannot be reached, refuses, or answers something else.
        """
        reads = next(iter(self.adapters.values())).preprocessor
        task = reads.read(texts)
        mask, encoded = reads.mask(task), reads.encode(task)
        return mixture(
            [
                sidecar.predict(self.states(name, sidecar, encoded), mask)
                for name, sidecar in self.adapters.items()
            ]
        )

    def states(self, model: str, sidecar: Sidecar, encoded: Encoded) -> Tensor:
        """Return the states that one adapter makes of N encoded texts ``(N, D)``."""
        parts = [torch.empty(0, len(sidecar.probe.state))]
        for start in range(0, len(encoded.ids), self._batch):
            rows = encoded.select(range(start, min(start + self._batch, len(encoded.ids))))
            found = self._ask(model, with_probe(sidecar, rows))
            parts.append(without_probe(sidecar, found, self._tolerance))
        return torch.cat(parts)

    def _ask(self, model: str, prompts: list[list[int]]) -> Tensor:
        asked = {"model": model, "input": prompts, "encoding_format": self._encoding}
        answer = self._post(json.dumps(asked | self._extra).encode())
        try:
            data = sorted(answer["data"], key=lambda row: row["index"])
            places = [row["index"] for row in data]
            states = np.stack([_state(row["embedding"]) for row in data])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ServerError(f"{self.url} answers something else than embeddings.") from error
        if places != list(range(len(prompts))):
            raise ServerError(
                f"{self.url} answers {len(places)} states; expected {len(prompts)}, one a prompt."
            )
        return torch.from_numpy(states)

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        for left in range(self._retries, -1, -1):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in _BUSY or not left:
                        raise ServerError(_refusal(self.url, error)) from error
                    wait = _retry_after(error.headers.get("Retry-After"))
                time.sleep(2.0 ** (self._retries - left - 1) if wait is None else wait)
            except ValueError as error:
                raise ServerError(f"{self.url} does not answer in JSON.") from error
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                raise ServerError(f"{self.url} cannot be asked: {reason}.") from error
        raise AssertionError("the last try returns or raises")


def _adapters(folder: Path, model: str) -> dict[str, Sidecar]:
    """Return the side-cars of an export by their adapters' names in the server."""
    count = len(list(folder.glob("sample-*")))
    if not count:
        return {model: open_sidecar(folder)}
    return {f"{model}-{s}": open_sidecar(folder / f"sample-{s}") for s in range(count)}


def _state(found: Any) -> np.ndarray:
    if isinstance(found, str):
        return np.frombuffer(base64.b64decode(found, validate=True), "<f4").astype(np.float32)
    state = np.asarray(found, np.float32)
    if state.ndim != 1:
        raise ValueError("no list of numbers")
    return state


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    """Return what a server has against a request, in its own words where it has some."""
    text = error.read(4096).decode(errors="replace")
    try:
        text = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        text = text.splitlines()[0] if text else error.reason
    return f"{url} refuses with {error.code}: {text}"


def _retry_after(given: str | None) -> float | None:
    """Return seconds, of a number or a date; None where a header says neither."""
    try:
        if given is None:
            return None
        seconds = float(given) if given.strip().isdigit() else _until(given)
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST)


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
