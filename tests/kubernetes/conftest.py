# SPDX-License-Identifier: Apache-2.0
"""A namespace of each test's own, with the modules on one side and kubectl on the other."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.conftest import ansible_module, eventually
from tests.kubernetes.cluster import Cluster


@dataclass
class Namespace:
    """One namespace of the cluster. `settings` are the connection's options, where they are not the administrator's."""

    cluster: Cluster
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def module(self, module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        where = {"kubeconfig": str(self.cluster.kubeconfig), "namespace": self.name, **self.settings}
        where = {option: value for option, value in where.items() if value is not None}
        return ansible_module(module, {**where, **arguments}, check=check, python=sys.executable)

    def deploy(self, name: str = "chat", *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return self.module("model_deployment", name=name, check=check, **arguments)

    def kubectl(self, *words: str, given: Any = None) -> str:
        return self.cluster.kubectl("--namespace", self.name, *words, given=given)

    def find(self, *words: str) -> dict[str, Any] | None:
        return self.cluster.find("--namespace", self.name, *words)

    def get(self, *words: str) -> dict[str, Any]:
        return self.cluster.get("--namespace", self.name, *words)

    def everything(self) -> list[str]:
        """Return all objects that a change would show in, by kind, name and version."""
        kinds = "deployments,replicasets,pods,services,serviceaccounts,persistentvolumeclaims,networkpolicies,poddisruptionbudgets,horizontalpodautoscalers"
        return sorted(f"{each['kind']}/{each['metadata']['name']} {each['metadata']['resourceVersion']}" for each in self.get(kinds)["items"])

    def kinds(self, name: str = "chat") -> set[str]:
        """Return the kinds of which there is an object of this name."""
        return {line.split()[0].partition("/")[0] for line in self.everything() if line.split()[0].partition("/")[2] == name}

    def image(self, name: str = "chat") -> str:
        image: str = self.get("deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"]
        return image

    def ready(self, name: str = "chat") -> int:
        return int(self.get("deployment", name)["status"].get("readyReplicas", 0))


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    name = f"lepton-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    made = Namespace(cluster, name)
    eventually(lambda: made.find("serviceaccount", "default"))
    yield made
    cluster.kubectl("delete", "namespace", name, "--wait=false")
