# SPDX-License-Identifier: Apache-2.0
"""Serve an ONNX file: ``python -m onnx_server``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import onnxruntime as ort
from model_runtime import BlockingModel, Tensors, TensorSpec, serve

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}


class OnnxModel(BlockingModel):
    """An ONNX model run by ONNX Runtime on the CPU."""

    def open(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("MODEL_THREADS", "1"))
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())

    def run(self, inputs: Tensors) -> Tensors:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))


def _specs(arguments: Sequence[ort.NodeArg]) -> list[TensorSpec]:
    return [
        TensorSpec(
            name=argument.name,
            datatype=DATATYPES[argument.type.removeprefix("tensor(").removesuffix(")")],
            shape=[size if isinstance(size, int) else -1 for size in argument.shape],
        )
        for argument in arguments
    ]


if __name__ == "__main__":
    serve(OnnxModel)
