# SPDX-License-Identifier: Apache-2.0
"""The service: opens the doors, keeps them open, and closes them in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import structlog
import uvicorn
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from lepton_ai.alerting import Alerting
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.masking import service_mask
from lepton_ai.metrics import Metrics
from lepton_ai.reconcile import Reconciler
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.queue import Queue
from lepton_ai.runs.service import Listener, Runs
from lepton_ai.runs.store import Store
from lepton_ai.scaler import Scaler
from lepton_ai.scheduler import Scheduler
from lepton_ai.settings import Secrets, Settings
from lepton_ai.slack.accounts import Accounts
from lepton_ai.slack.alerts import AlertMessages
from lepton_ai.slack.app import build_app, slack_client
from lepton_ai.slack.choices import Choices, Look
from lepton_ai.slack.door import Door
from lepton_ai.slack.groups import Groups
from lepton_ai.slack.messages import LiveMessages
from lepton_ai.web.alerts import alert_routes
from lepton_ai.web.api import PeerProtocol, os_principal, socket_app
from lepton_ai.web.app import web_app
from lepton_ai.web.pages import page_routes
from lepton_ai.web.sessions import Sessions
from lepton_ai.web.targets import target_routes

log = structlog.get_logger()
RECONNECT_SECONDS = 5.0
CLOSE_SECONDS = 5
ORPHAN_SECONDS = 10.0
DOOR_THREADS = 32
DRAIN_SECONDS = 10.0  # how long runs may go on after SIGTERM


async def serve(settings: Settings, secrets: Secrets) -> None:
    """Run until SIGTERM or SIGINT. Runs that are under way may end for a while; the others go on at the next start."""
    _check(settings, secrets)
    service_mask.learn(value.get_secret_value() for value in secrets.model_dump().values() if value is not None)
    catalog = settings.catalog()
    for problem in catalog.problems:
        log.error("an operation cannot be used", problem=str(problem))
    for override in catalog.overrides:
        log.warning("an operation is overridden", override=override)
    store = Store(settings.state_dir, settings.database_url)
    runs = Runs(settings, catalog, store)
    metrics = Metrics()
    runs.listeners.append(metrics.run_changed)
    groups, accounts = Groups(), Accounts()
    # Before the queue, which begins at once what an earlier process has left.
    intake = Intake(runs, owner=os_principal(os.getuid()), groups_of=groups.of_principal, gone=accounts.gone)
    client = None if secrets.slack_bot_token is None else slack_client(secrets.slack_bot_token.get_secret_value(), settings.slack.base_url)
    if client is not None:
        accounts.connect(client)
    queue = await asyncio.to_thread(Queue, runs)
    try:
        await _open_doors(settings, secrets, intake, groups, client, queue, metrics)
    finally:
        await asyncio.to_thread(queue.close, DRAIN_SECONDS)
        store.close()


def _check(settings: Settings, secrets: Secrets) -> None:
    """Refuse what cannot work before anything is started."""
    if secrets.slack_bot_token is None:
        log.warning("no SLACK_BOT_TOKEN: only the command line and the Python API can ask for anything")
    elif settings.slack.mode == "http" and secrets.slack_signing_secret is None:
        raise LeptonError("HTTP mode needs SLACK_SIGNING_SECRET", hint="it stands in the app's Basic Information at api.slack.com")
    elif settings.slack.mode == "socket" and secrets.slack_app_token is None:
        raise LeptonError("Socket Mode needs SLACK_APP_TOKEN", hint="make one with connections:write at api.slack.com, or set slack.mode to http")


async def _open_doors(
    settings: Settings, secrets: Secrets, intake: Intake, groups: Groups, client: AsyncWebClient | None, queue: Queue, metrics: Metrics
) -> None:
    """Keep the doors open until a signal comes."""
    # The default has six threads on two cores; those who only wait for the database must not make others wait.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DOOR_THREADS, "door"))
    runs = intake.runs
    runs.listeners.append(_release_settled(intake, queue.start))
    health = {"database": "ok"}
    workers: list[Coroutine[Any, Any, None]] = [_take_up_orphans(queue, intake, health)]
    reconciler = Reconciler(intake, queue.start, settings.reconcile_seconds)
    workers += [reconciler.work(), Scheduler(intake, queue.start).work()]
    if settings.scaling.prometheus:
        workers.append(Scaler.of(intake, queue.start, settings.site / settings.scaling.policies, settings.scaling.prometheus, metrics).work())
    alerting = Alerting(intake, queue.start, metrics)
    runs.listeners.append(alerting.run_changed)
    workers.append(alerting.work())
    slack = None
    sessions = Sessions(settings.state_dir, settings.public_url)
    if client is not None:
        paced = slack_client(client.token or "", settings.slack.base_url, patient=False)
        messages = LiveMessages(runs, paced, settings.slack.update_seconds, sessions.page if settings.public_url else None)
        runs.listeners.append(messages.changed)
        signing = secrets.slack_signing_secret.get_secret_value() if secrets.slack_signing_secret else None
        choices = Choices(Look(runs.look))
        runs.listeners.append(choices.changed)
        entrance = sessions.entrance if settings.public_url else None
        door = Door(intake, queue.start, messages, groups, choices, client, settings.slack.command, alerting, entrance)
        slack = build_app(door, client=client, signing_secret=signing, command=settings.slack.command)
        workers += [messages.work(), groups.work(client), choices.work()]
        if settings.slack.alerts_channel:
            shown = AlertMessages(runs, paced, settings.slack.alerts_channel, settings.slack.update_seconds)
            alerting.changed = shown.wake
            workers.append(shown.work())
        if settings.slack.mode == "socket" and secrets.slack_app_token is not None:
            workers.append(_socket_mode(slack, secrets.slack_app_token.get_secret_value(), health))
    token = secrets.lepton_alert_token.get_secret_value() if secrets.lepton_alert_token else None
    pages = [*page_routes(intake, sessions, settings.slack.command), *alert_routes(alerting, token), *target_routes(lambda: reconciler.latest)]
    web = web_app(metrics.registry, lambda: dict(health), slack if settings.slack.mode == "http" else None, pages)
    settings.socket.unlink(missing_ok=True)
    common: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": CLOSE_SECONDS}
    local = uvicorn.Server(uvicorn.Config(socket_app(intake, queue.start), uds=str(settings.socket), http=PeerProtocol, **common))
    remote = uvicorn.Server(uvicorn.Config(web, host=settings.host, port=settings.port, **common))
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        for server in (local, remote):
            group.create_task(_until_stopped(server))
        tasks = [group.create_task(worker) for worker in workers]
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        while not (local.started and remote.started):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        log.info("lepton serves", socket=str(settings.socket), http=f"http://{settings.host}:{settings.port}", operations=len(runs.catalog.operations))
        await stop.wait()
        local.should_exit = remote.should_exit = True
        for task in tasks:
            task.cancel()
    settings.socket.unlink(missing_ok=True)


async def _until_stopped(server: uvicorn.Server) -> None:
    """Serve until told to stop; a server that cannot start ends the service."""
    try:
        await server._serve(None)
    except SystemExit as error:
        raise LeptonError(f"cannot listen on {server.config.uds or f'{server.config.host}:{server.config.port}'}", hint="is another service there?") from error


async def _socket_mode(app: AsyncApp, app_token: str, health: dict[str, str]) -> None:
    """Stay connected for ever. The client reconnects by itself once it was connected; the first time is ours to repeat."""
    handler = AsyncSocketModeHandler(app, app_token, web_client=app.client)
    health["slack"] = "connecting"
    try:
        while True:
            try:
                await handler.connect_async()  # type: ignore[no-untyped-call]
                health["slack"] = "ok"
                log.info("slack is connected", mode="socket")
                break
            except Exception as error:
                health["slack"] = f"unreachable: {error}"
                log.error("slack cannot be reached; trying again", error=str(error), again_in=RECONNECT_SECONDS)
                await asyncio.sleep(RECONNECT_SECONDS)
        await asyncio.Event().wait()
    finally:
        with suppress(Exception):
            await handler.close_async()  # type: ignore[no-untyped-call]


async def _take_up_orphans(queue: Queue, intake: Intake, health: dict[str, str]) -> None:
    """Go on with what dead processes left, what is due and what was decided, for ever. A database that stumbles ends nothing."""
    while True:
        await asyncio.sleep(ORPHAN_SECONDS)
        try:
            for released in await asyncio.to_thread(intake.tend):
                await asyncio.to_thread(queue.start, released.id)
            await asyncio.to_thread(queue.take_up_orphans)
            health["database"] = "ok"
        except Exception as error:
            health["database"] = str(error)
            log.exception("the database does not answer")


def _release_settled(intake: Intake, start: Callable[[str], None]) -> Listener:
    """Begin at once what a plan has shown to need nobody's approval."""

    def listener(run: Run, _progress: Progress) -> None:
        if run.state is State.SUCCEEDED and (run.origin.get("approval") or {}).get("count") == 0:
            for released in intake.tend():
                start(released.id)

    return listener
