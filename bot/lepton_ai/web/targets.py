# SPDX-License-Identifier: Apache-2.0
"""Where Prometheus learns which model servers there are: prometheus.io/docs/prometheus/latest/http_sd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answers = Mapping[str, Mapping[str, Any]]


def target_routes(answers: Callable[[], Answers | None]) -> list[Route]:
    """Return the routes. `answers` is what the load balancers told last of their services; while nobody knows, Prometheus keeps what it has."""

    async def replicas(_request: Request) -> Response:
        told = answers()
        return JSONResponse({"error": "the load balancers have not been asked yet"}, 503) if told is None else JSONResponse(targets(told))

    return [Route("/targets/replicas", replicas)]


def targets(answers: Answers) -> list[dict[str, Any]]:
    """Return each replica once, however many load balancers have it."""
    found = {
        f"{server['address']}:{server['port']}": {"service": str(service["name"]), "replica": str(server["name"])}
        for _balancer, answer in sorted(answers.items())
        for service in answer.get("services", ())
        for server in service["servers"]
    }
    return [{"targets": [address], "labels": labels} for address, labels in sorted(found.items())]
