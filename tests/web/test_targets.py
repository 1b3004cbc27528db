# SPDX-License-Identifier: Apache-2.0
"""Which model servers Prometheus is told of."""

from __future__ import annotations

from typing import Any

from lepton_ai.web.targets import targets


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
