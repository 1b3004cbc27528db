# SPDX-License-Identifier: Apache-2.0
"""Serve a TensorFlow SavedModel: ``python -m tensorflow_server``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from kserve.utils.numpy_codec import from_np_dtype
from model_runtime import BlockingModel, Tensors, TensorSpec, serve


class TensorFlowModel(BlockingModel):
    """A SavedModel signature run on the CPU."""

    def open(self, path: str) -> None:
        threads = int(os.environ.get("MODEL_THREADS", "1"))
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._model = tf.saved_model.load(path)  # kept: the signature holds it weakly
        self._signature = self._model.signatures[os.environ.get("MODEL_SIGNATURE_KEY", "serving_default")]
        self.inputs = _specs(self._signature.structured_input_signature[1])
        self.outputs = _specs(self._signature.structured_outputs)

    def run(self, inputs: Tensors) -> Tensors:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in self._signature(**tensors).items()}


def _specs(signature: Mapping[str, Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            name=name,
            datatype=from_np_dtype(tensor.dtype.as_numpy_dtype),
            shape=[-1 if size is None else size for size in tensor.shape],
        )
        for name, tensor in signature.items()
    ]


if __name__ == "__main__":
    serve(TensorFlowModel)
