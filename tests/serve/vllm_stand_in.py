"""What vLLM 0.33 looks like to an IO processor: just as much of it, with a model for an engine.

Written from its interface: the names and arguments of what a plug-in imports, and the order in
which its server (`online`) and its ``LLM.encode`` (`offline`) call a processor.
"""

from __future__ import annotations

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bayestune.data import Encoded
from bayestune.model import BayesModel

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "recorded" / "vllm_0_33.json").read_text()
)
#: What computes the pooled state of each prompt ``(N, D)``.
Engine = Callable[[list[list[int]]], Tensor]


def engine(model: BayesModel) -> Engine:
    """The engine of a server whose adapter is a model's own."""
    return lambda prompts: model.reader().features(Encoded(prompts, None, 0))


class IOProcessor(ABC):
    def __init__(self, vllm_config: Any, renderer: Any) -> None:
        super().__init__()
        self.vllm_config = vllm_config

    def parse_data(self, data: object) -> Any:
        raise NotImplementedError

    def merge_pooling_params(self, params: Any = None) -> Any:
        return params or PoolingParams(task="plugin")

    @abstractmethod
    def pre_process(self, prompt: Any, request_id: str | None = None, **kwargs: Any) -> Any: ...

    @abstractmethod
    def post_process(
        self, model_output: Any, request_id: str | None = None, **kwargs: Any
    ) -> Any: ...


@dataclass
class PoolingParams:
    use_activation: bool | None = None
    dimensions: int | None = None
    task: str | None = None
    skip_reading_prefix_cache: bool | None = None

    def clone(self) -> PoolingParams:
        return deepcopy(self)


@dataclass
class PoolingOutput:
    data: Tensor


@dataclass
class PoolingRequestOutput:
    request_id: str
    outputs: Any
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool
    error: Any = None


def modules() -> dict[str, ModuleType]:
    """The modules of vLLM that a plug-in imports."""
    names = ("vllm", "vllm.plugins", "vllm.plugins.io_processors", "vllm.pooling_params")
    found = {name: ModuleType(name) for name in (*names, "vllm.plugins.io_processors.interface")}
    found["vllm.plugins.io_processors.interface"].IOProcessor = IOProcessor  # type: ignore
    found["vllm.pooling_params"].PoolingParams = PoolingParams  # type: ignore
    return found


def forget() -> None:
    """Let the plug-in be imported anew."""
    sys.modules.pop("bayestune.serve.vllm", None)


class Server:
    """``POST /pooling``, and ``LLM.encode`` with ``pooling_task="plugin"``.

    Args:
        processor: of a plug-in.
        run: the engine.
        tokens: what the server makes of the tokens it is given, such as cutting them.
    """

    def __init__(
        self,
        processor: Any,
        run: Engine,
        tokens: Callable[[list[int]], list[int]] = lambda ids: ids,
    ) -> None:
        self.processor, self.run, self.tokens = processor, run, tokens
        self.executor = ThreadPoolExecutor(1)
        self.params: list[PoolingParams] = []

    async def online(
        self, body: dict[str, Any], request_id: str, delay: float = 0.0, fails: bool = False
    ) -> dict[str, Any]:
        """Answer a request, in a task of its own as the server does."""
        return await asyncio.create_task(self._online(body, f"pooling-{request_id}", delay, fails))

    async def _online(
        self, body: dict[str, Any], request_id: str, delay: float, fails: bool
    ) -> dict[str, Any]:
        parsed = self.processor.parse_data(body["data"])
        prompts = self._prompts(self.processor.pre_process(prompt=parsed, request_id=request_id))
        self.params.append(self.processor.merge_pooling_params())
        await asyncio.sleep(delay)
        if fails:
            raise RuntimeError("the engine failed")
        outputs = self._outputs(prompts, request_id)
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self.executor, self._post, outputs, request_id)
        return {"request_id": request_id, "created_at": 0, "data": data}

    def _post(self, outputs: Sequence[PoolingRequestOutput], request_id: str) -> Any:
        with torch.inference_mode():
            return self.processor.post_process(outputs, request_id=request_id)

    def offline(self, prompts: dict[str, Any], params: PoolingParams | None = None) -> list[Any]:
        """Answer as ``LLM.encode(prompts, pooling_task="plugin")`` does."""
        parsed = self.processor.parse_data(prompts["data"])
        sent = self._prompts(self.processor.pre_process(prompt=parsed))
        for one in [params or PoolingParams()] * len(sent):
            self.params.append(self.processor.merge_pooling_params(one.clone()))
        found = self.processor.post_process(self._outputs(sent, ""))
        return [PoolingRequestOutput("", found, [], 0, True)]

    def _prompts(self, given: Any) -> list[list[int]]:
        assert isinstance(given, list) and given
        assert all(isinstance(one, dict) and set(one) == {"prompt_token_ids"} for one in given)
        assert all(type(i) is int for one in given for i in one["prompt_token_ids"])
        return [self.tokens(list(one["prompt_token_ids"])) for one in given]

    def _outputs(self, prompts: list[list[int]], request_id: str) -> list[PoolingRequestOutput]:
        states = self.run(prompts)
        return [
            PoolingRequestOutput(f"{request_id}-{i}", PoolingOutput(states[i]), ids, 0, True)
            for i, ids in enumerate(prompts)
        ]
