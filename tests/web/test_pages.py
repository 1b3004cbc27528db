# SPDX-License-Identifier: Apache-2.0
"""Pages: only for who has a session, only of runs that they may see; foreign text is text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from tests.conftest import write_playbook

from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Rules
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.runs.model import Run
from lepton_ai.runs.service import Runs
from lepton_ai.settings import Settings
from lepton_ai.web import sessions as sessions_module
from lepton_ai.web.pages import page_routes
from lepton_ai.web.sessions import COOKIE, SESSION_SECONDS, TICKET_SECONDS, Sessions

FOREIGN = "<script>alert(1)</script> {{ 7*7 }}"
OWNER, READER, CHANNEL_ONLY, STRANGER, GONE = "os:0@here", "slack:T/READER", "slack:T/CHANNEL", "slack:T/STRANGER", "slack:T/GONE"


@dataclass
class Site:
    intake: Intake
    sessions: Sessions
    run: Run

    def get(self, path: str, who: str | None = None, method: str = "GET", cookie: str = "", **body: str) -> httpx.Response:
        """Open a page, as somebody who has just come in where a name is given."""
        if who is not None:
            entered = self.sessions.enter(ticket(self.sessions.entrance(who)))
            assert entered is not None
            cookie = entered[1]
        app = Starlette(routes=page_routes(self.intake, self.sessions, "/lepton"))

        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://lepton", cookies={COOKIE: cookie} if cookie else None) as client:
                return await client.request(method, path, data=body or None)

        return asyncio.run(answer())


def ticket(address: str) -> str:
    return parse_qs(urlsplit(address).query)["ticket"][0]


@pytest.fixture
def pages(site: Settings, make_runs: Callable[[], Runs]) -> Site:
    write_playbook(site.playbooks, "x", "y", "- name: Say it\n  ansible.builtin.debug:\n    msg: x", options="{word: {type: str}}")
    runs = make_runs()
    grants = [
        {"role": "all", "principals": [READER, GONE]},
        {"role": "all", "principals": [CHANNEL_ONLY], "channels": ["C1"]},
    ]
    runs.settings = site.model_copy(update={"access": Rules.model_validate({"roles": {"all": {"operations": ["*"]}}, "grants": grants})})
    intake = Intake(runs, OWNER, gone=lambda principal: principal == GONE)
    asked, _ = intake.submit_values(Caller(OWNER), runs.catalog.operations["x.y"], {"word": FOREIGN}, key="k", why=FOREIGN)
    return Site(intake, Sessions(site.state_dir, "https://lepton.example/"), runs.execute(asked.id))


@pytest.mark.slow
def test_a_page_shows_the_run_and_foreign_text_as_text(pages: Site) -> None:
    answer = pages.get(f"/runs/{pages.run.id}", READER)
    assert answer.status_code == 200
    for part in (pages.run.id, "Say it", "localhost", "requested", "&lt;script&gt;alert(1)", "{{ 7*7 }}"):
        assert part in answer.text
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert pages.get("/runs/nothing", READER).status_code == 404
    listed = pages.get("/runs", READER)
    assert pages.run.id in listed.text
    assert "<script" not in listed.text


@pytest.mark.slow
def test_who_may_not_see_a_run_does_not(pages: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/runs/{pages.run.id}"
    for cookie in ("", "x", "ü", ticket(pages.sessions.entrance(READER))):  # a ticket is no session
        refused = pages.get(path, cookie=cookie.encode("ascii", "ignore").decode())
        assert refused.status_code == 401
        assert "/lepton login" in refused.text
        assert pages.run.id not in refused.text
    for who, rule in ((STRANGER, "no grant names"), (CHANNEL_ONLY, "holds only in the channels C1"), (GONE, "deactivated")):
        refused = pages.get(path, who)
        assert refused.status_code == 403
        assert rule in refused.text
    assert pages.run.id not in pages.get("/runs", STRANGER).text
    entered = pages.sessions.enter(ticket(pages.sessions.entrance(READER)))
    assert entered is not None
    assert pages.get(path, cookie=entered[1]).status_code == 200
    monkeypatch.setattr(sessions_module, "SESSION_SECONDS", -1)
    assert pages.get(path, cookie=entered[1]).status_code == 401, "a session ends"


@pytest.mark.slow
def test_a_way_in_is_good_once_and_looking_at_it_uses_nothing_up(pages: Site) -> None:
    address = pages.sessions.entrance(READER)
    assert address.startswith("https://lepton.example/enter?ticket=")
    path = f"/enter?ticket={ticket(address)}"
    for _ in range(3):  # programs look at links in messages
        assert READER in pages.get(path).text
    came_in = pages.get("/enter", method="POST", ticket=ticket(address))
    assert (came_in.status_code, came_in.headers["location"]) == (303, "/runs")
    cookie = came_in.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Secure", f"Max-Age={SESSION_SECONDS}"))
    assert pages.get(path).status_code == 403
    assert pages.get("/enter", method="POST", ticket=ticket(address)).status_code == 403
    assert pages.get("/enter", method="POST", ticket="x").status_code == 403
    assert [entry["principal"] for entry in pages.intake.runs.store.audit() if entry["what"] == "signed in"] == [READER]


def test_a_ticket_is_of_its_process_and_a_session_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Sessions(tmp_path, "https://lepton.example")
    assert (tmp_path / "session.key").stat().st_mode & 0o777 == 0o600
    later, entered = ticket(first.entrance(READER)), first.enter(ticket(first.entrance(READER)))
    assert entered is not None
    second = Sessions(tmp_path, "https://lepton.example")
    assert second.enter(later) is None
    assert second.principal(entered[1]) == READER
    later_on = time.time() + TICKET_SECONDS + 2
    monkeypatch.setattr(time, "time", lambda: later_on)
    assert first.enter(later) is None, "a ticket ends"


def test_a_key_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "session.key").touch()
    with pytest.raises(LeptonError, match=r"session\.key is not a key of 32 bytes"):
        Sessions(tmp_path, "")
    assert not [file for file in tmp_path.iterdir() if file.name != "session.key"]


@pytest.mark.slow
def test_when_slack_does_not_say_who_is_there_nobody_comes_in(pages: Site) -> None:
    pages.intake = replace(pages.intake, gone=lambda _principal: None)
    assert pages.get(f"/runs/{pages.run.id}", READER).status_code == 503
