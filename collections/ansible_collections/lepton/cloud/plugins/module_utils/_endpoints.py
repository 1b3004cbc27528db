# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Which servers a load balancer should have for the EndpointSlices of a service. Pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple

from ._balancer import SERVER_NAME, Server
from ._pods import is_pod

SERVICE_LABEL = "kubernetes.io/service-name"
PORT = "http"  # as M(lepton.cloud.model_deployment) calls it


class Endpoint(NamedTuple):
    """A pod as EndpointSlices tell of it; see https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions."""

    name: str
    address: str
    port: int
    ready: bool
    serving: bool


class Move(NamedTuple):
    """What is to be done to one server, as `plan_server` takes it, and why."""

    name: str
    state: str
    address: str | None
    port: int | None
    why: str


def endpoints(slices: Iterable[Mapping[str, Any]]) -> dict[str, Endpoint]:
    """Return the pods that a service's slices have, by name. While a pod moves between slices it is in two, and the better one counts."""
    found: dict[str, Endpoint] = {}
    for each in slices:
        port = next((item.get("port") for item in each.get("ports") or () if item.get("name") == PORT), None)
        if port is None or each.get("addressType") not in ("IPv4", "IPv6"):
            continue
        for item in each.get("endpoints") or ():
            reference, addresses = item.get("targetRef") or {}, item.get("addresses") or ()
            if reference.get("kind") != "Pod" or not addresses or not SERVER_NAME.fullmatch(str(reference.get("name"))):
                continue
            conditions = item.get("conditions") or {}
            ready = conditions.get("ready") is not False  # not known is ready
            serving = conditions.get("serving")
            endpoint = Endpoint(reference["name"], addresses[0], int(port), ready, ready if serving is None else bool(serving))
            other = found.get(endpoint.name)
            if other is None or (endpoint.ready, endpoint.serving) > (other.ready, other.serving):
                found[endpoint.name] = endpoint
    return found


def moves(service: str, wanted: Mapping[str, Endpoint], running: Mapping[str, Server]) -> list[Move]:
    """Return what brings the servers that a load balancer runs to the pods that there are: who comes first, who goes last.

    A pod that ends or is not ready gets no new sessions, and is taken out when it is gone. Where none is ready, those that still serve
    while they end get requests, as within the cluster (https://kubernetes.io/docs/concepts/services-networking/service/#traffic-policies).
    Servers that are no pods of this service are left alone.
    """
    last_resort = not any(endpoint.ready for endpoint in wanted.values())
    coming, going = [], []
    for name, endpoint in sorted(wanted.items()):
        takes = endpoint.ready or (last_resort and endpoint.serving)
        now = running.get(name)
        if takes and (now is None or now.state != "ready" or (now.address.strip("[]"), now.port) != (endpoint.address, endpoint.port)):
            address = "[%s]" % endpoint.address if ":" in endpoint.address else endpoint.address
            coming.append(Move(name, "ready", address, endpoint.port, "its pod is ready" if endpoint.ready else "no pod is ready, and this one still serves"))
        elif not takes and now is not None and now.state == "ready":
            going.append(Move(name, "drain", None, None, "its pod ends" if endpoint.serving else "its pod is not ready"))
    gone = [name for name in sorted(running) if name not in wanted and is_pod(service, name)]
    return [*coming, *going, *(Move(name, "absent", None, None, "its pod is gone") for name in gone)]
