# SPDX-License-Identifier: Apache-2.0
"""A run as a page: what changed, when which task ran on which host, and its audit trail. Behind a signed link that ends."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from pathlib import Path

from jinja2 import Environment, PackageLoader
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lepton_ai.errors import LeptonError
from lepton_ai.runs.model import Run, result_of
from lepton_ai.runs.store import Store

KEY_BYTES = 32
LINK_SECONDS = 30 * 86400
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TEMPLATES = Environment(loader=PackageLoader("lepton_ai.web"), autoescape=True)
_TEMPLATES.filters["moment"] = lambda at: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at)) if at else ""


class Links:
    """Makes and checks links to run pages. Who has one may read that one run until it ends: it stands in the run's own message."""

    def __init__(self, state_dir: Path, public_url: str) -> None:
        self._public_url = public_url.rstrip("/")
        self._key = _key(state_dir / "link.key")

    def to(self, run_id: str, now: float | None = None) -> str:
        """Return the address of a run's page, good for thirty days."""
        until = int((time.time() if now is None else now) + LINK_SECONDS)
        return f"{self._public_url}/runs/{run_id}?until={until}&key={self._signature(run_id, until)}"

    def allows(self, run_id: str, until: str, key: str) -> bool:
        """Return whether a link was made here, for this run, and has not ended. Compared in constant time."""
        if not until.isdecimal() or len(until) > len("9999999999") or int(until) < time.time():
            return False
        return hmac.compare_digest(self._signature(run_id, int(until)).encode(), key.encode("utf-8", "replace"))

    def _signature(self, run_id: str, until: int) -> str:
        return hmac.new(self._key, f"{run_id}:{until}".encode(), hashlib.sha256).hexdigest()


def run_route(store: Store, links: Links) -> Route:
    """Return the route of run pages."""

    async def page(request: Request) -> Response:
        run_id = request.path_params["run"]
        if not links.allows(run_id, request.query_params.get("until", ""), request.query_params.get("key", "")):
            return HTMLResponse("This link has ended, or was never one. The run's message in Slack has its link.", 403, headers=HEADERS)
        try:
            run, trail = await run_in_threadpool(lambda: (store.run(run_id), store.audit(run_id)))
        except LeptonError as error:
            return HTMLResponse(_TEMPLATES.from_string("{{ text }}").render(text=str(error)), 404, headers=HEADERS)
        return HTMLResponse(run_page(run, trail), headers=HEADERS)

    return Route("/runs/{run}", page)


def run_page(run: Run, trail: list[dict[str, object]]) -> str:
    """Return the page's HTML. Everything foreign is escaped by the template."""
    entries = [{**entry, "data": json.dumps(entry["data"], indent=1, default=str)} for entry in trail]
    return _TEMPLATES.get_template("run.html").render(run=run, result=result_of(run), trail=entries)


def _key(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
    except FileExistsError:
        pass
    return path.read_bytes()
