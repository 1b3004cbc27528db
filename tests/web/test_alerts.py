# SPDX-License-Identifier: Apache-2.0
"""The machines' door: who is believed, what is taken, and what a sender hears when it is not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from tests.alerts.test_groups import alert
from tests.alerts.test_groups import said as told

from lepton_ai.alerting import read_notification
from lepton_ai.web import alerts as alerts_module
from lepton_ai.web.alerts import alert_routes

TOKEN = {"Authorization": "Bearer right"}
BODY = told(alert()).model_dump_json(by_alias=True)


class Taker:
    """What takes notifications, in place of one with a database."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.room = True
        self.fails = False

    def take(self, sender: str, body: dict[str, Any]) -> bool:
        if self.fails:
            raise OSError("no space left on device")
        read_notification(body)
        if self.room:
            self.taken.append((sender, body))
        return self.room


def post(taker: Any, body: str | bytes = BODY, *, sender: str = "alertmanager", token: str | None = "right", headers: dict[str, str] | None = None) -> Any:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app=Starlette(routes=alert_routes(taker, token)))
        async with httpx.AsyncClient(transport=transport, base_url="http://lepton") as client:
            return await client.post(f"/alerts/{sender}", content=body, headers=TOKEN if headers is None else headers)

    return asyncio.run(answer())


def test_what_is_acknowledged_was_taken() -> None:
    taker = Taker()
    for sender in ("alertmanager", "grafana"):
        assert post(taker, sender=sender).status_code == 200
    assert [sender for sender, _body in taker.taken] == ["alertmanager", "grafana"]
    assert taker.taken[0][1] == json.loads(BODY)


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}, {"Authorization": "right"}, {"Authorization": ""}]
)
def test_nobody_else_is_believed(headers: dict[str, str]) -> None:
    taker = Taker()
    answer = post(taker, headers=headers)
    assert (answer.status_code, taker.taken) == (401, [])
    assert "LEPTON_ALERT_TOKEN" in answer.text


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nobody_is(token: str | None) -> None:
    for headers in (TOKEN, {"Authorization": "Bearer "}, {}):
        assert post(Taker(), token=token, headers=headers).status_code == 401


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"alerts": [{"labels": {"a": 1}}]}'])
def test_what_is_no_notification_is_refused_for_good(body: bytes) -> None:
    taker = Taker()
    answer = post(taker, body)
    assert (answer.status_code, taker.taken) == (400, [])
    assert "Traceback" not in answer.text


def test_a_sender_tries_again_when_there_is_no_room_or_no_disk() -> None:
    taker = Taker()
    taker.room = False
    full = post(taker)
    assert (full.status_code, full.headers["Retry-After"]) == (503, "10")
    taker.fails = True
    broken = post(taker)
    assert (broken.status_code, broken.headers["Retry-After"]) == (503, "10")
    assert "OSError" in broken.text


def test_what_is_too_long_is_noticed_before_all_of_it_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts_module, "MOST_BYTES", 100)
    assert post(Taker(), b"x" * 101).status_code == 413


def test_a_stranger_is_not_known() -> None:
    assert post(Taker(), sender="zabbix").status_code == 404
