# SPDX-License-Identifier: Apache-2.0
"""The Python API for deployments: thin, each call is a request like any other and blocks until its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_ai.resources import perform
from lepton_ai.settings import load_settings


class Deployment:
    """Brings models to Kubernetes and takes them away. Methods raise LeptonError with the operation's own words.

    `cluster` is a host of the inventory's group `clusters`, needed where several could be meant; `namespace` is its settings' own by default.
    """

    def __init__(self, *, cluster: str | None = None, namespace: str | None = None, site: Path | None = None) -> None:
        self._where = {"cluster": cluster, "cluster_namespace": namespace}
        self._settings = load_settings(site)

    def deploy(self, model: str, *, image: str | None = None, replicas: int | None = None) -> None:
        """Deploy a model as the inventory declares it, with this image and number of pods, and return when it is rolled out.

        What was there before is back when this raises.
        """
        self._do("deploy", model, image=image, replicas=replicas)

    def undeploy(self, model: str) -> None:
        """Take a model away, and return when its pods have ended. Its data stays."""
        self._do("undeploy", model)

    def _do(self, verb: str, model: str, **arguments: Any) -> None:
        given = {name: value for name, value in {**self._where, **arguments}.items() if value is not None}
        perform(self._settings, "deployment", verb, {"deployment": model, **given})
