# SPDX-License-Identifier: Apache-2.0
"""Run pages: only by a link that was made here, for this run, and has not ended; foreign text is text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from tests.conftest import write_playbook

from lepton_ai.access.matching import Caller
from lepton_ai.intake import Intake
from lepton_ai.runs.model import Run
from lepton_ai.runs.service import Runs
from lepton_ai.settings import Settings
from lepton_ai.web.pages import LINK_SECONDS, Links, run_route

FOREIGN = "<script>alert(1)</script> {{ 7*7 }}"


@pytest.fixture
def run(site: Settings, make_runs: Callable[[], Runs]) -> Run:
    write_playbook(site.playbooks, "x", "y", "- name: Say it\n  ansible.builtin.debug:\n    msg: x", options="{word: {type: str}}")
    runs = make_runs()
    asked, _ = Intake(runs, "os:0@here").submit_values(Caller("os:0@here"), runs.catalog.operations["x.y"], {"word": FOREIGN}, key="k", why=FOREIGN)
    return runs.execute(asked.id)


Get = Callable[[str], httpx.Response]


@pytest.fixture
def get(site: Settings, make_runs: Callable[[], Runs]) -> Get:
    app = Starlette(routes=[run_route(make_runs().store, Links(site.state_dir, ""))])

    async def answer(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://lepton") as client:
            return await client.get(path)

    return lambda path: asyncio.run(answer(path))


@pytest.mark.slow
def test_a_page_shows_the_run_and_foreign_text_as_text(run: Run, get: Get, site: Settings) -> None:
    answer = get(Links(site.state_dir, "").to(run.id))
    assert answer.status_code == 200
    for part in (run.id, "Say it", "localhost", "requested", "&lt;script&gt;alert(1)", "{{ 7*7 }}"):
        assert part in answer.text
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.slow
def test_no_link_no_page(run: Run, get: Get, site: Settings) -> None:
    links = Links(site.state_dir, "")
    good = links.to(run.id)
    for address in (
        f"/runs/{run.id}", good.replace(run.id, "0" * 8), good[:-1] + ("0" if good[-1] != "0" else "1"), good + "x", f"{good}ü",
        links.to(run.id, now=time.time() - LINK_SECONDS - 1), good.replace("until=", "until=9"), good.replace("until=", "until=x"),
    ):  # fmt: skip
        assert get(address).status_code == 403, address
    assert get(links.to("nothing")).status_code == 404


def test_the_key_is_this_accounts_alone_and_stays(tmp_path: Path) -> None:
    first = Links(tmp_path, "https://lepton.example/")
    assert (tmp_path / "link.key").stat().st_mode & 0o777 == 0o600
    assert first.to("a", now=1.0) == Links(tmp_path, "https://lepton.example").to("a", now=1.0)
    assert first.to("a", now=1.0).startswith("https://lepton.example/runs/a?until=")
