# SPDX-License-Identifier: Apache-2.0
"""The Python API for what grows and shrinks: thin, each call is a request like any other and blocks until its result."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from lepton_ai.containers import Container
from lepton_ai.errors import LeptonError
from lepton_ai.resources import VirtualNode, perform
from lepton_ai.runs.store import Store
from lepton_ai.settings import load_settings

FRESH_SECONDS = 60.0  # of a decision
Scalable = VirtualNode | Container | str  # a service by its name, or one of its replicas


class Extension:
    """Scales and balances services, by their name or by one of their replicas. Methods raise LeptonError with the operation's own words."""

    def __init__(self, *, site: Path | None = None) -> None:
        self._settings = load_settings(site)

    def scale(self, node: Scalable) -> None:
        """Give the service as many replicas as its policy has last wanted, and one more where that is no more or there is no policy.

        A node that was released, and is of no service, is made again.
        """
        service = self._service(node)
        if service is not None:
            perform(self._settings, "service", "scale", {"service": service, "replicas": self._wanted(service)})
        elif isinstance(node, VirtualNode) and not self._exists(node):
            node.create()
        else:
            raise LeptonError(f"{_name(node)} belongs to no service, so there is nothing to scale")

    def _wanted(self, service: str) -> str:
        try:
            with closing(Store(self._settings.state_dir, self._settings.database_url)) as store:
                newest = store.scaling_records(service, until=time.time(), limit=1)
        except (OSError, LeptonError):  # not for this account to read
            newest = []
        fresh = bool(newest) and time.time() - newest[0]["when"] < FRESH_SECONDS
        return str(newest[0]["final"]) if fresh and newest[0]["final"] > newest[0]["asked"] else "+1"

    def balance(self, node: Scalable) -> None:
        """Weigh the service's replicas by what they get done, and spread them over the hosts."""
        service = self._service(node)
        if service is None:
            raise LeptonError(f"{_name(node)} belongs to no service, so there is nothing to balance")
        perform(self._settings, "service", "balance", {"service": service})

    def _service(self, node: Scalable) -> str | None:
        """Return the service that is called so, or that has a replica of this name."""
        answers = perform(self._settings, "service", "list", {})["result"]["answers"]
        services = [service for answer in answers.values() for service in answer.get("services", ())]
        name = _name(node)
        if isinstance(node, str) and name in {service["name"] for service in services}:
            return name
        return next((str(service["name"]) for service in services if name in {server["name"] for server in service["servers"]}), None)

    def _exists(self, node: VirtualNode) -> bool:
        answers = perform(self._settings, "node", "list", {})["result"]["answers"]
        return any(found["name"] == node.name for answer in answers.values() for found in answer.get("nodes", ()))


def _name(node: Scalable) -> str:
    return node if isinstance(node, str) else node.name
