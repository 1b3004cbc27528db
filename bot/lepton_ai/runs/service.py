# SPDX-License-Identifier: Apache-2.0
"""The life of a run, from its request to its end: leases, attempts, recovery, cancel. One object per process."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._operation import secret_names

from lepton_ai.errors import LeptonError
from lepton_ai.operations.catalog import Catalog, Operation
from lepton_ai.paths import collections_path
from lepton_ai.runs import leases, processes
from lepton_ai.runs.executor import MASK, Job, command_line, execute
from lepton_ai.runs.model import FieldChange, Request, Result, Run, RunEvent, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.store import Store
from lepton_ai.settings import Settings

log = structlog.get_logger()
WAIT_SECONDS = 1.0  # between looks at leases that another process holds; those of this process wake us
Listener = Callable[[Run, Progress], None]


class Runs:
    """Submits, runs, cancels and recovers. `listeners` are called on the run's thread at every event and state."""

    def __init__(self, settings: Settings, catalog: Catalog, store: Store) -> None:
        self.settings = settings
        self.catalog = catalog
        self.store = store
        self.listeners: list[Listener] = []
        self._cancels: dict[str, threading.Event] = {}
        self._progress: dict[str, Progress] = {}
        self._released = threading.Condition()
        self._slots = threading.BoundedSemaphore(settings.max_runs)

    # -- asking --------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> tuple[Run, bool]:
        """Write a request and return (run, True), or (the earlier run of the same key, False). It does not run yet."""
        operation = self.catalog.operations[request.operation]
        hidden = secret_names(operation.spec)
        shown = {name: MASK if name in hidden and value is not None else value for name, value in request.arguments.items()}
        run, new = self.store.add_run(request, risk=operation.spec.risk, shown_arguments=shown)
        secret = {name: request.arguments[name] for name in hidden if request.arguments.get(name) is not None}
        if new and secret:
            path = self._secret_path(run.id)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(secret, file)
        return run, new

    def cancel(self, run_id: str, principal: str) -> bool:
        """Ask a run of this process to end, and return whether it was there to be asked."""
        run = self.store.run(run_id)
        if run.state.final:
            return False
        self.store.record(run_id, principal, "cancel", {})
        with self._released:
            cancel = self._cancels.setdefault(run_id, threading.Event())
            cancel.set()
            self._released.notify_all()
        return True

    def progress(self, run_id: str) -> Progress:
        return self._progress.get(run_id, Progress())

    # -- doing ---------------------------------------------------------------------------------------------------

    def execute(self, run_id: str) -> Run:
        """Bring a run to its end, whatever happened to it before, and return it. Blocks; safe to call again."""
        run = self.store.run(run_id)
        if run.state.final:
            return run
        with self._released:
            cancel = self._cancels.setdefault(run_id, threading.Event())
        progress = self._progress.setdefault(run_id, Progress())
        try:
            state, error = self._attempt(run, cancel, progress)
        except LeptonError as problem:
            state, error = State.FAILED, str(problem)
        except Exception as problem:
            log.exception("a run failed in an unforeseen way", run=run_id)
            state, error = State.FAILED, f"Lepton itself failed: {type(problem).__name__}: {problem}"
        self.store.finish(run_id, state, progress.result, error)
        self._let_go(run_id)
        self._tell(run_id)
        with self._released:
            self._cancels.pop(run_id, None)
            self._progress.pop(run_id, None)
        return self.store.run(run_id)

    def _attempt(self, run: Run, cancel: threading.Event, progress: Progress) -> tuple[State, str]:
        operation = self.catalog.operations.get(run.operation)
        if operation is None:
            return State.FAILED, f"the operation {run.operation} no longer exists"
        had_attempt = self._end_open_attempts(run.id)
        if had_attempt and operation.spec.rerun != "safe" and not run.check:
            return State.INTERRUPTED, "Lepton was stopped in the middle of this run, and its operation is not marked safe to run again: look at what was done"
        arguments = {**run.arguments, **self._secrets(run.id)}
        locks = () if run.check else operation.locks(arguments)
        holder = leases.process_holder(run.id)
        with self._slots:
            if not leases.acquire(self.store, holder, locks, wait=lambda owners: self._wait_for(run.id, owners, cancel)):
                return State.CANCELED, "canceled before it began"
            return self._run(run, operation, arguments, cancel, progress)

    def _run(self, run: Run, operation: Operation, arguments: Mapping[str, Any], cancel: threading.Event, progress: Progress) -> tuple[State, str]:
        token = uuid.uuid4().hex
        shown = command_line(operation.playbook, self.settings.inventory, run.arguments, check=run.check)
        if cancel.is_set():
            return State.CANCELED, "canceled before it began"
        if not self.store.set_running(run.id, shown):
            return self.store.run(run.id).state, ""
        self.store.add_attempt(token, run.id, processes.boot_id())
        self._tell(run.id)
        config = self.settings.site / "ansible.cfg"
        job = Job(
            run_id=run.id,
            token=token,
            playbook=operation.playbook,
            inventory=self.settings.inventory,
            arguments=arguments,
            check=run.check,
            timeout=operation.spec.timeout,
            private_dir=self.settings.state_dir / "private" / token,
            output=self.output_path(run.id),
            collections=collections_path(),
            ansible_config=config if config.is_file() else None,
            secrets=[str(value) for value in self._secrets(run.id).values()],
            extra_environment=self.settings.environment,
            socket=self.settings.socket,
        )

        def on_event(event: RunEvent) -> None:
            progress.add(event)
            self._tell(run.id)

        state, error = execute(job, on_event, cancel)
        self.store.end_attempt(token, state.value)
        if state is State.FAILED and progress.result.failures:
            error = "; ".join(f"{host}: {why}" for host, why in progress.result.failures.items())
        return state, error

    def output_path(self, run_id: str) -> Path:
        """Return where Ansible's own output of a run is kept."""
        return self.settings.state_dir / "output" / f"{run_id}.txt"

    # -- after a crash -------------------------------------------------------------------------------------------

    def recover(self) -> list[Run]:
        """End what dead processes of this machine left running, and return the runs that have to go on.

        Call it once at start, before anything is executed. Leases of dead owners are given back; the private folders
        that they left are removed.
        """
        unfinished = self.store.unfinished()
        for run in unfinished:
            for token, boot in self.store.open_attempts(run.id):
                if boot == processes.boot_id():
                    processes.end_attempt(token)
        self.clear_dead_leases()
        shutil.rmtree(self.settings.state_dir / "private", ignore_errors=True)
        return unfinished

    def clear_dead_leases(self) -> None:
        """Give back the leases of owners that are gone, after ending what they had started and saying so."""
        for owner in leases.dead_owners(self.store):
            try:
                self.store.run(owner)
            except LeptonError:
                pass  # a plain ansible-playbook, not a run of ours
            else:
                self._end_open_attempts(owner)
            leases.release(self.store, owner)

    def _end_open_attempts(self, run_id: str) -> bool:
        """End every attempt that an earlier process left, and return whether this run was ever attempted."""
        for token, boot in self.store.open_attempts(run_id):
            if boot == processes.boot_id():
                processes.end_attempt(token)
            self.store.end_attempt(token, State.INTERRUPTED.value)
        return self.store.was_attempted(run_id)

    # -- helpers -------------------------------------------------------------------------------------------------

    def _wait_for(self, run_id: str, owners: list[str], cancel: threading.Event) -> bool:
        progress = self._progress.setdefault(run_id, Progress())
        waiting = f"waiting for {', '.join(owners)}"
        if progress.task != waiting:
            progress.task = waiting
            self._tell(run_id)
        with self._released:
            if not cancel.is_set():
                self._released.wait(WAIT_SECONDS)
        self.clear_dead_leases()
        return not cancel.is_set()

    def _let_go(self, run_id: str) -> None:
        leases.release(self.store, run_id)
        self._secret_path(run_id).unlink(missing_ok=True)
        with self._released:
            self._released.notify_all()

    def _tell(self, run_id: str) -> None:
        if not self.listeners:
            return
        run, progress = self.store.run(run_id), self.progress(run_id)
        for listener in self.listeners:
            try:
                listener(run, progress)
            except Exception:
                log.exception("a listener failed", run=run_id)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call `listener` at every event of every run of this process meanwhile."""
        self.listeners.append(listener)
        try:
            yield
        finally:
            self.listeners.remove(listener)

    def _secret_path(self, run_id: str) -> Path:
        return self.settings.state_dir / "secrets" / f"{run_id}.json"

    def _secrets(self, run_id: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads(self._secret_path(run_id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return loaded


def result_of(run: Run) -> Result:
    """Return a run's stored result as the value it was."""
    data = dict(run.result)
    data["changes"] = [FieldChange(**change) for change in data.get("changes", [])]
    return Result(**data)
