# SPDX-License-Identifier: Apache-2.0
"""Serve a TorchScript file: ``python -m torchscript_server``.

TorchScript keeps no names, types or shapes of its tensors, so they come from the
JSON file ``MODEL_SIGNATURE``: ``{"inputs": [{"name", "datatype", "shape"}, ...],
"outputs": [...]}``, in the order of ``forward``'s arguments and results.
"""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from model_runtime import BlockingModel, Tensors, TensorSpec, serve


class TorchScriptModel(BlockingModel):
    """A TorchScript module run on the CPU."""

    def open(self, path: str) -> None:
        torch.set_num_threads(int(os.environ.get("MODEL_THREADS", "1")))
        with open(os.environ["MODEL_SIGNATURE"], encoding="utf-8") as file:
            signature = json.load(file)
        self.inputs = [TensorSpec(**spec) for spec in signature["inputs"]]
        self.outputs = [TensorSpec(**spec) for spec in signature["outputs"]]
        self._module = torch.jit.load(path, map_location="cpu").eval()

    def run(self, inputs: Tensors) -> Tensors:
        arguments = [torch.from_numpy(np.require(inputs[spec.name], requirements="CW")) for spec in self.inputs]
        with torch.inference_mode():
            result = self._module(*arguments)
        values = result if isinstance(result, tuple) else (result,)
        if len(values) != len(self.outputs):
            raise RuntimeError(f"the signature says {len(self.outputs)} outputs, the model gave {len(values)}")
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, values, strict=True)}


if __name__ == "__main__":
    serve(TorchScriptModel)
