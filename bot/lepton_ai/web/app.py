# SPDX-License-Identifier: Apache-2.0
"""The ASGI app of the loopback port: health, metrics, and Slack's requests in HTTP mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from slack_bolt.adapter.starlette.async_handler import AsyncSlackRequestHandler
from slack_bolt.app.async_app import AsyncApp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def web_app(registry: CollectorRegistry, health: Callable[[], dict[str, str]], slack: AsyncApp | None, pages: Sequence[Route]) -> Starlette:
    """Return the app. `health` maps each part to 'ok' or to what is wrong; `slack` is given in HTTP mode; `pages` are further routes."""

    async def healthz(_request: Request) -> Response:
        parts = health()
        return JSONResponse(parts, 200 if all(state == "ok" for state in parts.values()) else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    routes = [Route("/healthz", healthz), Route("/metrics", metrics), *pages]
    if slack is not None:
        handler = AsyncSlackRequestHandler(slack)

        async def events(request: Request) -> Response:
            answer: Response = await handler.handle(request)
            return answer

        routes.append(Route("/slack/events", events, methods=["POST"]))
    return Starlette(routes=routes)
