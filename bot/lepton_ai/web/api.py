# SPDX-License-Identifier: Apache-2.0
"""The service's own door: its unix socket, for the CLI, the Python API and plain ansible-playbook. Peers are known by uid."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.operations.catalog import Operation
from lepton_ai.operations.parsing import Command, typed_arguments
from lepton_ai.runs import leases, processes
from lepton_ai.runs.model import Run
from lepton_ai.runs.progress import Progress

log = structlog.get_logger()
LOOK_SECONDS = 2.0  # a run of another process tells us nothing, so it is looked at
PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class PeerProtocol(H11Protocol):
    """uvicorn's protocol, with the peer's uid and pid (SO_PEERCRED) as the client of the request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
        pid, uid, _gid = PEER.unpack(peer)
        self.client = (str(uid), pid)


def os_principal(uid: int) -> str:
    """Return the principal of a local account."""
    return f"os:{uid}@{socket.gethostname()}"


def run_json(run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Return a run as the socket speaks of it; `progress` has task and hosts while it runs."""
    shown = asdict(run)
    if progress is not None:
        shown["progress"] = {"play": progress.play, "task": progress.task, "hosts": progress.hosts, "tasks_done": progress.tasks_done}
    return shown


def socket_app(intake: Intake, start: Callable[[str], None]) -> Starlette:
    """Return the ASGI app of the unix socket. `start` begins a written run."""
    api = _Api(intake, start)
    routes = [
        Route("/v1/runs", _answered(api.submit), methods=["POST"]),
        Route("/v1/runs", _answered(api.runs), methods=["GET"]),
        Route("/v1/runs/{run}", _answered(api.run), methods=["GET"]),
        Route("/v1/runs/{run}/events", _answered(api.events), methods=["GET"]),
        Route("/v1/runs/{run}/cancel", _answered(api.cancel), methods=["POST"]),
        Route("/v1/runs/{run}/again", _answered(api.again), methods=["POST"]),
        Route("/v1/runs/{run}/{decision:str}", _answered(api.decide), methods=["POST"]),
        Route("/v1/freezes", _answered(api.freezes), methods=["GET"]),
        Route("/v1/freezes", _answered(api.freeze), methods=["POST"]),
        Route("/v1/pins", _answered(api.pin), methods=["POST"]),
        Route("/v1/locks", _answered(api.locks), methods=["GET"]),
        Route("/v1/locks", _answered(api.steal), methods=["POST"]),
        Route("/v1/leases", _answered(api.take_leases), methods=["POST"]),
    ]
    return Starlette(routes=routes)


Handler = Callable[[Request], Awaitable[Response]]


def _answered(handler: Handler) -> Handler:
    """Turn what a person can act on into a status and a sentence."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except RefusedError as error:
            return JSONResponse({"error": str(error)}, 403)
        except LeptonError as error:
            return JSONResponse({"error": error.message, "hint": error.hint}, 400)
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": f"the request is not of the expected form: {error}"}, 400)
        except Exception as error:
            log.exception("a request failed", path=request.url.path)
            return JSONResponse({"error": f"the service failed: {type(error).__name__}"}, 500)

    return endpoint


class _Api:
    def __init__(self, intake: Intake, start: Callable[[str], None]) -> None:
        self._intake = intake
        self._runs = intake.runs
        self._start = start

    def _caller(self, request: Request) -> Caller:
        assert request.client is not None
        return Caller(os_principal(int(request.client.host)))

    def _operation(self, name: str) -> Operation:
        noun, _, verb = name.partition(".")
        return self._runs.catalog.find(noun, verb)

    def _readable(self, request: Request, run: Run) -> Run:
        """Return the run if the caller asked for it or may do what it does."""
        caller = self._caller(request)
        verdict = self._intake.may_see(caller, run)
        if not verdict.allowed:
            raise RefusedError(caller, f"see run {run.id}", verdict.rule)
        return run

    async def submit(self, request: Request) -> Response:
        body = await request.json()
        run, new = await asyncio.to_thread(
            self._intake.submit_values,
            self._caller(request),
            self._operation(body["operation"]),
            body["arguments"],
            key=f"{self._caller(request).principal}:{body['key']}",
            check=bool(body.get("check")),
            why=str(body.get("why", "")),
            canary=bool(body.get("canary")),
            origin={"due": float(body["due"])} if body.get("due") else None,
        )
        if new and run.due <= time.time():
            await asyncio.to_thread(self._start, run.id)
        return JSONResponse(run_json(run), 201 if new else 200)

    async def runs(self, request: Request) -> Response:
        found = await asyncio.to_thread(self._runs.store.runs, int(request.query_params.get("limit", 20)))
        shown = []
        for run in found:
            try:
                shown.append(run_json(self._readable(request, run)))
            except LeptonError:
                continue
        return JSONResponse(shown)

    async def run(self, request: Request) -> Response:
        run = self._readable(request, await asyncio.to_thread(self._runs.store.run, request.path_params["run"]))
        trail = await asyncio.to_thread(self._runs.store.audit, run.id)
        return JSONResponse({**run_json(run, self._runs.progress(run.id)), "audit": trail})

    async def cancel(self, request: Request) -> Response:
        run = self._readable(request, await asyncio.to_thread(self._runs.store.run, request.path_params["run"]))
        asked = await asyncio.to_thread(self._runs.cancel, run.id, self._caller(request).principal)
        if asked and run.due:
            await asyncio.to_thread(self._start, run.id)  # so that it ends now, and not when its time comes
        return JSONResponse({"canceled": asked})

    async def again(self, request: Request) -> Response:
        """The same once more, with `failed_hosts` only where it went wrong."""
        body = await request.json()
        failed_hosts = bool(body.get("failed_hosts"))
        run = await asyncio.to_thread(self._intake.again, self._caller(request), request.path_params["run"], failed_hosts=failed_hosts)
        if run.due <= time.time():
            await asyncio.to_thread(self._start, run.id)
        return JSONResponse(run_json(run), 201)

    async def decide(self, request: Request) -> Response:
        """Approve or reject a plan."""
        decision = request.path_params["decision"]
        if decision not in ("approve", "reject"):
            return JSONResponse({"error": f"there is no {decision}"}, 404)
        released = await asyncio.to_thread(self._intake.answer, self._caller(request), request.path_params["run"], approved=decision == "approve")
        if released is not None:
            await asyncio.to_thread(self._start, released.id)
        return JSONResponse(None if released is None else run_json(released))

    async def freezes(self, _request: Request) -> Response:
        return JSONResponse([asdict(freeze) for freeze in await asyncio.to_thread(self._runs.store.freezes)])

    async def freeze(self, request: Request) -> Response:
        """Freeze or, with `lift`, unfreeze a target."""
        body = await request.json()
        caller, target = self._caller(request), str(body["target"])
        if body.get("lift"):
            return JSONResponse({"lifted": await asyncio.to_thread(self._intake.unfreeze, caller, target)})
        until = None if body.get("until") is None else float(body["until"])
        return JSONResponse(asdict(await asyncio.to_thread(self._intake.freeze, caller, target, until, str(body.get("why", "")))))

    async def pin(self, request: Request) -> Response:
        """Pin or, with `lift`, unpin a service."""
        body = await request.json()
        caller, service = self._caller(request), str(body["service"])
        if body.get("lift"):
            return JSONResponse({"lifted": await asyncio.to_thread(self._intake.unpin, caller, service)})
        await asyncio.to_thread(self._intake.pin, caller, service, int(body["replicas"]), float(body["until"]), str(body.get("why", "")))
        return JSONResponse({"pinned": True})

    async def locks(self, _request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(leases.locks, self._runs.store))

    async def steal(self, request: Request) -> Response:
        body = await request.json()
        holder = await asyncio.to_thread(self._intake.steal, self._caller(request), str(body["lock"]), str(body.get("why", "")))
        return JSONResponse({"holder": holder})

    async def events(self, request: Request) -> Response:
        run = self._readable(request, await asyncio.to_thread(self._runs.store.run, request.path_params["run"]))
        return StreamingResponse(self._stream(run), media_type="application/x-ndjson")

    async def _stream(self, run: Run) -> AsyncIterator[str]:
        """Yield the run as it is at every event, until it is final. A slow reader gets the newest state, not all of them."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def listener(told: Run, _progress: Progress) -> None:
            if told.id == run.id:
                loop.call_soon_threadsafe(changed.set)

        with self._runs.listening(listener):
            while True:
                now = await asyncio.to_thread(self._runs.store.run, run.id)
                yield json.dumps(run_json(now, self._runs.progress(run.id)), default=str) + "\n"
                if now.state.final:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_SECONDS)
                changed.clear()

    async def take_leases(self, request: Request) -> Response:
        """Hold an operation's locks for a plain ansible-playbook until its process ends."""
        body = await request.json()
        pid = int(body["pid"])
        assert request.client is not None
        if processes.parent(request.client.port) != pid:
            raise LeptonError("leases can only be taken for the caller's own playbook")
        operation = self._operation(body["operation"])
        arguments = typed_arguments(operation, {name: value for name, value in body["arguments"].items() if value is not None})
        caller = self._caller(request)
        verdict, rule, frozen = self._intake.judge(caller, Command(operation, arguments))
        if not verdict.allowed:
            raise RefusedError(caller, operation.name, verdict.rule)
        if frozen is not None:
            raise RefusedError(caller, operation.name, str(frozen))
        if rule is not None:
            raise RefusedError(caller, f"{operation.name} by a plain playbook", f"the rule {rule.name} asks for an approval; use lepton run")
        locks = operation.locks(arguments)
        holder = leases.process_holder(f"{leases.PLAIN}{pid}", pid)
        await asyncio.to_thread(self._runs.clear_dead_leases)
        blocking = await asyncio.to_thread(leases.try_acquire, self._runs.store, holder, locks)
        if blocking:
            await asyncio.to_thread(leases.release, self._runs.store, holder.owner)
            raise LeptonError(f"{', '.join(locks)} is locked by {', '.join(blocking)}: try again when that has ended")
        await asyncio.to_thread(self._runs.store.record, "", caller.principal, "leases", {"operation": operation.name, "locks": list(locks), "pid": pid})
        await self._release_at_end(holder)
        return JSONResponse({"locks": list(locks)})

    async def _release_at_end(self, holder: leases.Holder) -> None:
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(holder.pid)
        except ProcessLookupError:
            await asyncio.to_thread(leases.release, self._runs.store, holder.owner)
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            loop.run_in_executor(None, leases.release, self._runs.store, holder.owner)

        loop.add_reader(descriptor, ended)
