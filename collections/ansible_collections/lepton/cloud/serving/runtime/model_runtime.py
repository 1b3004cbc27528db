# SPDX-License-Identifier: Apache-2.0
"""KServe model server for blocking inference libraries.

A runtime subclasses :class:`BlockingModel` and calls :func:`serve`. Requests
over ``MODEL_SLOTS`` wait without blocking the event loop, so that health checks
and metrics keep answering.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import signal
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelRepository, ModelServer
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.logging import KSERVE_LOG_CONFIG, configure_logging
from kserve.model_server import app
from kserve.utils.numpy_codec import from_np_dtype
from kserve.utils.utils import generate_uuid
from prometheus_client import Gauge
from starlette_exporter import PrometheusMiddleware

Tensors = Mapping[str, np.ndarray]

WAITING = Gauge("model_requests_waiting", "Requests waiting for a free slot.", ["model_name"])
RUNNING = Gauge("model_requests_running", "Inferences running now.", ["model_name"])


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; -1 in ``shape`` stands for any size."""

    name: str
    datatype: str
    shape: list[int]

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Raise InvalidInput unless a tensor of this type and shape fits."""
        if datatype != self.datatype or len(shape) != len(self.shape) or any(want not in (-1, size) for want, size in zip(self.shape, shape, strict=True)):
            raise InvalidInput(f"input {self.name!r}: expected {self.datatype}{self.shape}, got {datatype}{list(shape)}")


class BlockingModel(Model):
    """A model whose ``run`` blocks; at most ``slots`` of them run at a time."""

    def __init__(self, name: str, slots: int = 1) -> None:
        super().__init__(name)
        self._slots = asyncio.Semaphore(slots)
        self._waiting = WAITING.labels(name)
        self._running = RUNNING.labels(name)
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []

    @abstractmethod
    def open(self, path: str) -> None:
        """Load the model file; set ``inputs`` and ``outputs``."""

    @abstractmethod
    def run(self, inputs: Tensors) -> Tensors:
        """Run one inference; called in a worker thread."""

    def get_input_types(self) -> list[dict[str, Any]]:
        return [asdict(spec) for spec in self.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [asdict(spec) for spec in self.outputs]

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        inputs = self._decode(payload)
        with self._waiting.track_inprogress():
            await self._slots.acquire()
        try:
            with self._running.track_inprogress():
                outputs = await asyncio.to_thread(self.run, inputs)
        finally:
            self._slots.release()
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=[InferOutput(name, list(value.shape), from_np_dtype(value.dtype), value) for name, value in outputs.items()],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def _decode(self, payload: InferRequest | dict[str, Any]) -> dict[str, np.ndarray]:
        if not isinstance(payload, InferRequest):
            raise InvalidInput("only the V2 protocol is served")
        specs = {spec.name: spec for spec in self.inputs}
        given = [tensor.name for tensor in payload.inputs]
        if sorted(given) != sorted(specs):
            raise InvalidInput(f"expected inputs {sorted(specs)}, got {sorted(given)}")
        for tensor in payload.inputs:
            specs[tensor.name].check(tensor.datatype, tensor.shape)
        try:
            return {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"cannot read the input: {error}") from error


class FixedRepository(ModelRepository):
    """Refuses the repository API: nobody loads or unloads a model over the network."""

    def load(self, name: str) -> bool:
        raise ModelNotReady(name, "loading is not allowed")

    def unload(self, name: str) -> None:
        raise KeyError(name)  # answered as 404


class FixedServer(ModelServer):
    """Ends without unloading, which :class:`FixedRepository` refuses."""

    def stop(self, sig: int) -> None:
        self.registered_models.models.clear()
        super().stop(sig)


class ServerErrorsOnly(logging.Filter):
    """Drops the stack trace KServe logs for each wrong request (400 and 404)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], (InvalidInput, ModelNotFound)))


def serve(model_class: type[BlockingModel]) -> None:
    """Load the model and serve it until SIGTERM; settings come from the environment."""
    # Until the server takes over: without a handler, PID 1 would ignore SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    configure_logging(_log_config(os.environ.get("MODEL_ACCESS_LOG", "") == "1"))
    model = model_class(os.environ["MODEL_NAME"], int(os.environ.get("MODEL_SLOTS", "1")))
    model.open(os.environ["MODEL_FILE"])  # an error here ends the process with status 1
    model.ready = True
    app.add_middleware(
        PrometheusMiddleware,
        app_name=model.name,
        prefix="model_server",
        skip_paths=["/metrics", "/v2/health/live", "/v2/health/ready"],
    )
    FixedServer(
        http_port=int(os.environ.get("HTTP_PORT", "8080")),
        enable_grpc=False,
        enable_latency_logging=False,
        registered_models=FixedRepository(),
        grace_period=int(os.environ.get("GRACE_SECONDS", "30")),
    ).start([model])


def _log_config(access_log: bool) -> dict[str, Any]:
    """KServe's log settings without a line per request, unless asked for."""
    config = copy.deepcopy(KSERVE_LOG_CONFIG)
    config["filters"] = {"server_errors_only": {"()": ServerErrorsOnly}}
    config["handlers"]["kserve"]["filters"] = ["server_errors_only"]
    if not access_log:
        for name in ("uvicorn.access", "kserve.trace"):
            config["loggers"][name]["level"] = "WARNING"
    return config
