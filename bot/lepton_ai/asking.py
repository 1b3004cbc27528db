# SPDX-License-Identifier: Apache-2.0
"""Asking for an operation from this machine: through the service where one runs, else here, under the same locks."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.logs import configure_logs
from lepton_ai.operations.catalog import Operation
from lepton_ai.operations.parsing import Command, typed_arguments
from lepton_ai.runs.model import Run
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.settings import Settings
from lepton_ai.web.api import os_principal, run_json
from lepton_ai.web.client import ServiceClient, service

Watch = Callable[[dict[str, Any]], None]


def unwatched(_run: dict[str, Any]) -> None:
    """Watch nothing."""


def ask(settings: Settings, operation: Operation, values: Mapping[str, Any], *, due: float = 0.0, watch: Watch = unwatched, **how: Any) -> dict[str, Any]:
    """Do an operation and return its run when it has ended, as JSON-like data; `watch` is called at every event.

    `how`: check, why, canary. What is due later (seconds since the epoch) is only written, and needs a service. Raises LeptonError for arguments that are
    wrong and for what is not allowed. Ctrl-C cancels the run and waits for it.
    """
    configure_logs()
    arguments = typed_arguments(operation, dict(values))
    client = service(settings.socket)
    if client is None:
        if due:
            raise LeptonError("no service runs here, and what is to be done later needs one", hint="lepton serve")
        return _here(settings, operation, arguments, watch=watch, **how)
    try:
        return _there(client, operation, arguments, watch=watch, due=due, **how)
    finally:
        client.close()


def _there(client: ServiceClient, operation: Operation, arguments: Mapping[str, Any], *, watch: Watch, due: float, **how: Any) -> dict[str, Any]:
    given = {name: value for name, value in arguments.items() if value is not None}
    run = client.submit(operation.name, given, key=uuid.uuid4().hex, due=due, **how)
    if due and not run["check"]:
        return run
    while True:
        try:
            for state in client.follow(run["id"]):
                watch(state)
            return client.run(run["id"])
        except KeyboardInterrupt:
            client.cancel(run["id"])


def _here(settings: Settings, operation: Operation, arguments: dict[str, Any], *, watch: Watch, **how: Any) -> dict[str, Any]:
    store = Store(settings.state_dir, settings.database_url)
    try:
        runs = Runs(settings, settings.catalog(), store)
        principal = os_principal(os.getuid())
        runs.clear_dead_leases()

        def listener(run: Run, progress: Progress) -> None:
            watch(run_json(run, progress))

        runs.listeners.append(listener)
        intake = Intake(runs, owner=principal)
        run, _new = intake.submit(Caller(principal), Command(operation, arguments), key=f"{principal}:{uuid.uuid4().hex}", **how)
        # Beside the main thread, which stays free for Ctrl-C; ansible-runner would take its signal handlers.
        worker = threading.Thread(target=runs.execute, args=(run.id,), name=f"run-{run.id}")
        worker.start()
        ended = threading.Event()
        threading.Thread(target=runs.keep, args=(ended,), name="leases", daemon=True).start()
        while worker.is_alive():
            try:
                worker.join()
            except KeyboardInterrupt:
                runs.cancel(run.id, principal)
        for released in intake.tend() if store.run(run.id).origin.get("approval", {}).get("count") == 0 else ():
            runs.execute(released.id)
            run = released
        ended.set()
        return run_json(store.run(run.id))
    finally:
        store.close()


def stored_runs(settings: Settings, limit: int) -> list[dict[str, Any]]:
    """Return the newest runs, from the service or, without one, from the database."""
    client = service(settings.socket)
    if client is not None:
        return client.runs(limit)
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        return [run_json(run) for run in store.runs(limit)]


def stored_run(settings: Settings, run_id: str) -> dict[str, Any]:
    """Return one run with its audit trail."""
    client = service(settings.socket)
    if client is not None:
        return client.run(run_id)
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        return {**run_json(store.run(run_id)), "audit": store.audit(run_id)}
