# SPDX-License-Identifier: Apache-2.0
"""Machines' door: where Alertmanager and Grafana post. What is acknowledged is written down."""

from __future__ import annotations

import asyncio
import hmac
import json

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lepton_ai.alerting import Alerting
from lepton_ai.errors import LeptonError

log = structlog.get_logger()
SENDERS = frozenset({"alertmanager", "grafana"})
MOST_BYTES = 8 << 20  # of one notification
AGAIN_SECONDS = 10  # after which a sender may try again when too many wait
SCHEME = "bearer "


def alert_routes(alerting: Alerting, token: str | None) -> list[Route]:
    """Return the routes. Without a token nobody is believed."""

    async def receive(request: Request) -> Response:
        sender = request.path_params["sender"]
        if sender not in SENDERS:
            return JSONResponse({"error": f"nobody is known as {ascii(sender)[:40]}: expected {' or '.join(sorted(SENDERS))}"}, 404)
        if not _believed(request.headers.get("authorization", ""), token):
            return JSONResponse({"error": "expected the bearer token that LEPTON_ALERT_TOKEN says"}, 401, {"WWW-Authenticate": "Bearer"})
        body = await _body(request)
        if body is None:
            return JSONResponse({"error": f"expected at most {MOST_BYTES} bytes; see max_alerts of Alertmanager's webhook_configs"}, 413)
        try:
            content = json.loads(body)
            taken = await asyncio.to_thread(alerting.take, sender, content)
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": f"expected JSON: {error}"}, 400)
        except LeptonError as error:
            return JSONResponse({"error": str(error)}, 400)
        except Exception as error:
            log.exception("alerts could not be taken")
            return JSONResponse({"error": f"not taken, nothing will happen: {type(error).__name__}"}, 503, {"Retry-After": str(AGAIN_SECONDS)})
        if not taken:
            return JSONResponse({"error": "too many wait to be worked off"}, 503, {"Retry-After": str(AGAIN_SECONDS)})
        return JSONResponse({"taken": True})

    return [Route("/alerts/{sender:str}", receive, methods=["POST"])]


def _believed(authorization: str, token: str | None) -> bool:
    if not token or not authorization.lower().startswith(SCHEME):
        return False
    return hmac.compare_digest(authorization[len(SCHEME) :].encode(), token.encode())


async def _body(request: Request) -> bytes | None:
    """Return a request's body, None when it is too long, which is noticed before all of it is here."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)
