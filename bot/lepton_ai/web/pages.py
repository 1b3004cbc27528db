# SPDX-License-Identifier: Apache-2.0
"""Runs as pages: what changed, when which task ran on which host, and the audit trail. For whoever may see the run."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from jinja2 import Environment, PackageLoader
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.runs.model import result_of
from lepton_ai.web.sessions import COOKIE, SESSION_SECONDS, Sessions

MOST_RUNS = 100
LOOKED_AT = 500  # of the newest runs, for those that a person may see
NOWHERE = ""  # the channel of somebody who comes by a page: roles that hold only in some channels do not hold here
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TEMPLATES = Environment(loader=PackageLoader("lepton_ai.web"), autoescape=True)
_TEMPLATES.filters["moment"] = lambda at: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at)) if at else ""
Page = Callable[[Request, Caller], Awaitable[Response]]


def page_routes(intake: Intake, sessions: Sessions, command: str) -> list[Route]:
    """Return the routes of all pages. `command` is the slash command, which gives people their way in."""

    def known(page: Page) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            principal = sessions.principal(request.cookies.get(COOKIE, ""))
            if principal is None:
                return _told(f"Who are you? Type {command} login in Slack: the answer, which only you see, has your way in. Then open this page again.", 401)
            gone = await run_in_threadpool(intake.gone, principal)
            if gone is None:
                return _told("Whether this account is still there cannot be told now: Slack does not answer. Try again in a moment.", 503)
            if gone:
                return _told("This account has been deactivated.", 403)
            return await page(request, Caller(principal, intake.groups_of(principal) or (), NOWHERE))

        return answer

    async def run_page(request: Request, caller: Caller) -> Response:
        try:
            run = await run_in_threadpool(intake.runs.store.run, request.path_params["run"])
        except LeptonError as error:
            return _told(str(error), 404)
        verdict = intake.may_see(caller, run)
        if not verdict.allowed:
            return _told(f"{caller.principal} may not see this run: {verdict.rule}", 403)
        trail = await run_in_threadpool(intake.runs.store.audit, run.id)
        return _shown("run.html", run=run, result=result_of(run), trail=[_entry(entry) for entry in trail])

    async def runs_page(_request: Request, caller: Caller) -> Response:
        found = await run_in_threadpool(intake.runs.store.runs, LOOKED_AT)
        return _shown("runs.html", runs=[run for run in found if intake.may_see(caller, run).allowed][:MOST_RUNS], who=caller.principal)

    async def entrance(request: Request) -> Response:
        """The door: looking at it uses nothing up, since programs look at links too."""
        ticket = request.query_params.get("ticket", "")
        principal = sessions.ticket_of(ticket)
        if principal is None:
            return _told(f"This way in is over, or was used. Type {command} login in Slack for another.", 403)
        return _shown("enter.html", who=principal, ticket=ticket)

    async def enter(request: Request) -> Response:
        form = await request.form()
        found = sessions.enter(str(form.get("ticket", "")))
        if found is None:
            return _told(f"This way in is over, or was used. Type {command} login in Slack for another.", 403)
        principal, session = found
        await run_in_threadpool(intake.runs.store.record, "", principal, "signed in", {"address": request.client.host if request.client else ""})
        answer = RedirectResponse("/runs", 303, headers=HEADERS)
        secure = sessions.public_url.startswith("https:")
        answer.set_cookie(COOKIE, session, max_age=SESSION_SECONDS, httponly=True, samesite="lax", secure=secure)
        return answer

    return [
        Route("/runs", known(runs_page)),
        Route("/runs/{run}", known(run_page)),
        Route("/enter", entrance, methods=["GET"]),
        Route("/enter", enter, methods=["POST"]),
    ]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "data": json.dumps(entry["data"], indent=1, default=str)}


def _shown(template: str, **values: Any) -> Response:
    """Return a page. Everything foreign is escaped by the template."""
    return HTMLResponse(_TEMPLATES.get_template(template).render(**values), headers=HEADERS)


def _told(text: str, status: int) -> Response:
    return HTMLResponse(_TEMPLATES.get_template("told.html").render(text=text), status, headers=HEADERS)
