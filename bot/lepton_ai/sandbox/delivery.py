# SPDX-License-Identifier: Apache-2.0
"""How Slack brings a request to an app: an envelope over Socket Mode, or a signed POST. Both wait three seconds for the answer."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import httpx
from slack_sdk.signature import SignatureVerifier
from starlette.websockets import WebSocket, WebSocketDisconnect

ACK_SECONDS = 3.0


class NotAnsweredError(Exception):
    """The app did not acknowledge in time, or was not there; the text is what Slack shows the person."""


class SocketMode:
    """The app's WebSocket connections. Each envelope goes to one of them, in turn."""

    def __init__(self) -> None:
        self._connections: list[WebSocket] = []
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._turn = 0
        self.connected = asyncio.Event()

    async def connection(self, websocket: WebSocket) -> None:
        """Serve one connection of the app until it closes."""
        await websocket.accept()
        await websocket.send_json({"type": "hello", "num_connections": len(self._connections) + 1, "connection_info": {"app_id": "A0LEPTON"}})
        self._connections.append(websocket)
        self.connected.set()
        try:
            while True:
                answer = json.loads(await websocket.receive_text())
                waiting = self._waiting.pop(answer.get("envelope_id", ""), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer.get("payload") or {})
        except (WebSocketDisconnect, ValueError):
            pass
        finally:
            self._connections.remove(websocket)
            if not self._connections:
                self.connected.clear()

    async def deliver(self, kind: str, payload: Mapping[str, Any], copies: int = 1) -> dict[str, Any]:
        """Send one envelope and return what the app answered; `copies` delivers it again, as Slack does when unsure."""
        envelope_id = str(uuid.uuid4())
        envelope = {"type": kind, "envelope_id": envelope_id, "payload": dict(payload), "accepts_response_payload": kind in ("slash_commands", "interactive")}
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[envelope_id] = waiting
        for copy in range(copies):
            if not self._connections:
                raise NotAnsweredError("dispatch_failed")
            connection = self._connections[self._turn % len(self._connections)]
            self._turn += 1
            await connection.send_json({**envelope, **({"retry_attempt": copy, "retry_reason": "timeout"} if copy else {})})
        try:
            return await asyncio.wait_for(waiting, ACK_SECONDS)
        except TimeoutError:
            raise NotAnsweredError("operation_timeout") from None

    async def disconnect(self, *, announced: bool = True) -> None:
        """Ask every connection to come again, as Slack does every few hours; or close it without a word, as networks do."""
        for connection in list(self._connections):
            if announced:
                await connection.send_json({"type": "disconnect", "reason": "refresh_requested"})
            await connection.close(code=1000 if announced else 1011)


class SignedHttp:
    """Requests to the app's own address, signed with the signing secret."""

    def __init__(self, request_url: str, signing_secret: str) -> None:
        self._url = request_url
        self._verifier = SignatureVerifier(signing_secret)

    async def deliver(self, kind: str, payload: Mapping[str, Any], copies: int = 1) -> dict[str, Any]:
        """Post one request and return what the app answered; `copies` sends it again with Slack's retry headers."""
        if kind == "events_api":
            body, content_type = json.dumps(payload), "application/json"
        else:
            fields = payload if kind == "slash_commands" else {"payload": json.dumps(payload)}
            body, content_type = urlencode(fields), "application/x-www-form-urlencoded"
        answer: dict[str, Any] = {}
        async with httpx.AsyncClient(timeout=ACK_SECONDS) as client:
            for copy in range(copies):
                timestamp = str(int(time.time()))
                headers = {
                    "Content-Type": content_type,
                    "X-Slack-Request-Timestamp": timestamp,
                    "X-Slack-Signature": str(self._verifier.generate_signature(timestamp=timestamp, body=body)),
                }
                if copy:
                    headers |= {"X-Slack-Retry-Num": str(copy), "X-Slack-Retry-Reason": "http_timeout"}
                try:
                    response = await client.post(self._url, content=body, headers=headers)
                except httpx.TimeoutException:
                    raise NotAnsweredError("operation_timeout") from None
                except httpx.HTTPError:
                    raise NotAnsweredError("dispatch_failed") from None
                if response.status_code != 200:
                    raise NotAnsweredError(f"http_error {response.status_code}")
                answer = _parsed(response.text)
        return answer


def _parsed(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except ValueError:
        return {"text": text}
    return parsed if isinstance(parsed, dict) else {"text": text}
