# SPDX-License-Identifier: Apache-2.0
"""Which model servers Prometheus is told of."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from starlette.applications import Starlette

from lepton_ai.web.targets import target_routes, targets


def server(name: str, port: int) -> dict[str, Any]:
    return {"name": name, "address": "10.0.0.1", "port": port}


def test_each_replica_once_however_many_load_balancers_have_it() -> None:
    chat = {"name": "chat", "servers": [server("chat-2", 2), server("chat-1", 1)]}
    told = {"lb1": {"services": [chat]}, "lb2": {"services": [chat, {"name": "other", "servers": [server("other-1", 3)]}]}, "lb3": {"msg": "not reached"}}
    assert targets(told) == [
        {"targets": ["10.0.0.1:1"], "labels": {"service": "chat", "replica": "chat-1"}},
        {"targets": ["10.0.0.1:2"], "labels": {"service": "chat", "replica": "chat-2"}},
        {"targets": ["10.0.0.1:3"], "labels": {"service": "other", "replica": "other-1"}},
    ]
    assert targets({}) == []


def test_while_nobody_knows_prometheus_keeps_what_it_has() -> None:
    async def answer(told: Any) -> int:
        transport = httpx.ASGITransport(app=Starlette(routes=target_routes(lambda: told)))
        async with httpx.AsyncClient(transport=transport, base_url="http://lepton") as client:
            return (await client.get("/targets/replicas")).status_code

    assert [asyncio.run(answer(told)) for told in (None, {})] == [503, 200]
