# SPDX-License-Identifier: Apache-2.0
"""The life of a run, from its request to its end: leases, attempts, recovery, cancel. One object per process."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._operation import secret_names

from lepton_ai.access.freezes import Freeze, freeze_on
from lepton_ai.errors import LeptonError
from lepton_ai.masking import MASK, service_mask
from lepton_ai.operations.catalog import Catalog, Operation
from lepton_ai.paths import collections_path
from lepton_ai.runs import leases, processes
from lepton_ai.runs.attempt import Attempt
from lepton_ai.runs.executor import Cancel, Job, execute
from lepton_ai.runs.frozen import revision
from lepton_ai.runs.model import Request, Result, Run, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.runs.store import Store
from lepton_ai.settings import Settings

log = structlog.get_logger()
FINISH_PAUSES = (0.5, 2.0, 5.0)  # seconds between tries to write a run's end
STOP_SECONDS = 15.0  # for what was ended to have ended
WAIT_SECONDS = 1.0  # between looks at leases that another process holds; those of this process wake us
LOOK_SECONDS = 1.0  # between looks at cancels that another process took
RENEW_LOOKS = round(leases.RENEW_SECONDS / LOOK_SECONDS)
FRESH_SECONDS = 5.0
CANCELED_EARLY = "canceled before it began"
CANCELED_AGAIN = "canceled before it went on; it had begun before Lepton was restarted: look at what was done"
SECRETS_SECONDS = 60.0
# Returns why a run must not begin after all, None when it may.
Gate = Callable[[Run, Operation, Mapping[str, Any]], str | None]
# Takes note of what a plan would change, before anybody can decide on it.
Settle = Callable[[Run, Result], None]
Listener = Callable[[Run, Progress], None]


class Runs:
    """Submits, runs, cancels and recovers. `listeners` are called on the run's thread at every event and state."""

    def __init__(self, settings: Settings, catalog: Catalog, store: Store) -> None:
        self.settings = settings
        self.catalog = catalog
        self.store = store
        self.listeners: list[Listener] = []
        self._cancels: dict[str, Cancel] = {}
        self._progress: dict[str, Progress] = {}
        self._released = threading.Condition()
        self._slots = threading.BoundedSemaphore(settings.max_runs)
        self._stopping = False
        self._cut_short: set[str] = set()
        self._claims: set[str] = set()
        self._held: dict[str, str] = {}  # the claim under which each run is executed
        self._renewed = time.monotonic()
        self.gate: Gate = self._frozen_gate
        self.settle: Settle = lambda _plan, _result: None

    # -- asking --------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> tuple[Run, bool]:
        """Write a request and return (run, True), or (the earlier run of the same key, False). It does not run yet."""
        operation = self.catalog.operations[request.operation]
        # Declared as secret, or recognised as one: kept apart, so that it can be used and still shows nowhere.
        hidden = secret_names(operation.spec) | {name for name, value in request.arguments.items() if service_mask(value) != value}
        shown = {name: MASK if name in hidden and value is not None else value for name, value in request.arguments.items()}
        secret = {name: request.arguments[name] for name in hidden if request.arguments.get(name) is not None}
        run_id = secrets.token_hex(4)
        # Secrets first: a run that is written can always be run.
        if secret:
            self._write_secrets(run_id, secret)
        try:
            run, new = self.store.add_run(run_id, request, risk=operation.spec.risk, shown_arguments=shown)
        except BaseException:
            self.forget_secrets(run_id)
            raise
        if not new:
            self.forget_secrets(run_id)
        return run, new

    def cancel(self, run_id: str, principal: str) -> bool:
        """Ask a run to end, and return whether it had not ended already. Whichever process is at it hears of it."""
        asked = self.store.ask_cancel(self.store.run(run_id).id, principal)
        if asked:
            self._end(run_id)
        return asked

    def _end(self, run_id: str) -> None:
        with self._released:
            cancel = self._cancels.get(run_id)
            if cancel is not None:
                cancel.set()
            self._released.notify_all()

    def progress(self, run_id: str) -> Progress:
        return self._progress.get(run_id, Progress())

    def arguments(self, run: Run) -> dict[str, Any]:
        """Return a run's arguments with its secrets; raise LeptonError when those are no longer here."""
        arguments = {**run.arguments, **self._secrets(run.id)}
        if any(value == MASK for value in arguments.values()):
            raise LeptonError("the secret arguments of this run are not on this machine any more: ask again")
        return arguments

    # -- doing ---------------------------------------------------------------------------------------------------

    def execute(self, run_id: str) -> Run:
        """Bring a run to its end, whatever happened to it before, and return it. Blocks; safe to call again.

        A run that another living process or thread is already at is left to that one and returned as it is. So is a
        run that `stop()` cut short; the next start takes it up.
        """
        claim = leases.process_holder(f"{run_id}/{uuid.uuid4().hex[:8]}")
        run = self.store.run(run_id)
        if run.due > time.time() and not self.store.cancel_asked([run_id]):
            return run  # its time will come
        with self._released:
            if self._stopping:
                return run
            self._claims.add(claim.owner)
        try:
            if self._claimed(run_id, claim):
                self._execute_claimed(run_id, claim)
        finally:
            # Out of the set first: what cannot be released now is released by keep_leases().
            with self._released:
                self._claims.discard(claim.owner)
                self._released.notify_all()
            leases.release(self.store, claim.owner)
        return self.store.run(run_id)

    def _claimed(self, run_id: str, claim: leases.Holder) -> bool:
        """Return whether this execution may have the run; a dead claimant's attempts are ended first."""
        while blocking := leases.try_acquire(self.store, claim, [f"run/{run_id}"]):
            if not set(leases.dead_owners(self.store)).intersection(blocking):
                return False
            self.clear_dead_leases()
        return True

    def _execute_claimed(self, run_id: str, claim: leases.Holder) -> None:
        with self._released:
            cancel = self._cancels.setdefault(run_id, Cancel())
            progress = self._progress[run_id] = Progress()
            self._held[run_id] = claim.owner
            self._cut_short.discard(run_id)
            if self._stopping:
                self._cut_short.add(run_id)
                cancel.set()
        try:
            run = self.store.run(run_id)
            if self.store.cancel_asked([run_id]):
                cancel.set()
            if not run.state.final:
                self._bring_to_end(run, claim, cancel, progress)
        finally:
            with self._released:
                self._cancels.pop(run_id, None)
                self._progress.pop(run_id, None)
                self._held.pop(run_id, None)

    def _bring_to_end(self, run: Run, claim: leases.Holder, cancel: Cancel, progress: Progress) -> None:
        try:
            state, error = self._attempt(run, claim, cancel, progress)
        except LeptonError as problem:
            state, error = State.FAILED, str(problem)
        except Exception as problem:
            log.exception("a run failed in an unforeseen way", run=run.id)
            state, error = State.FAILED, f"Lepton itself failed: {type(problem).__name__}: {problem}"
        if run.id in self._cut_short and state is State.CANCELED:
            return
        if run.check and state is State.SUCCEEDED and run.origin.get("approval"):
            try:
                self.settle(run, progress.result)
            except LeptonError as problem:
                state, error = State.FAILED, str(problem)
        self._finish(run.id, state, progress.result, error, claim.owner)
        if standing(self.store.run(run.id), ()) not in (Standing.WAITING, Standing.APPROVED):
            self.forget_secrets(run.id)
        self.tell(run.id)

    def _finish(self, run_id: str, state: State, result: Result, error: str, claim: str) -> None:
        """Write the end; a database that stumbles is asked again before the run is left to the next start."""
        for pause in FINISH_PAUSES:
            try:
                self.store.finish(run_id, state, result, error, claim)
                return
            except sa.exc.OperationalError as trouble:
                log.warning("a run's end could not be written yet", run=run_id, error=str(trouble.orig))
                time.sleep(pause)
        self.store.finish(run_id, state, result, error, claim)

    def _attempt(self, run: Run, claim: leases.Holder, cancel: Cancel, progress: Progress) -> tuple[State, str]:
        operation = self.catalog.operations.get(run.operation)
        if operation is None:
            return State.FAILED, f"the operation {run.operation} no longer exists"
        arguments = self.arguments(run)
        if run.origin.get("approval"):  # what is approved is this revision; the digest reads many files, and nothing else needs it
            self.store.set_revision(run.id, self.revision(operation))
        if run.check and operation.spec.risk != "read" and operation.spec.plan == "none":
            what = ", ".join(operation.targets(arguments)) or operation.name
            progress.result.warnings.append(f"what it would change cannot be shown beforehand; it is about {what}")
            return State.SUCCEEDED, ""
        begun = self._end_open_attempts(run.id)
        if begun and operation.spec.rerun != "safe" and not run.check and not cancel.is_set():
            return State.INTERRUPTED, "Lepton was stopped in the middle of this run, and its operation is not marked safe to run again: look at what was done"
        locks = [] if run.check else [*operation.locks(arguments), f"run/{run.id}"]
        if not leases.acquire(self.store, claim, locks, wait=lambda owners: self._wait(run.id, self._queue_text(owners), cancel)):
            return State.CANCELED, CANCELED_AGAIN if begun else CANCELED_EARLY
        while not self._slots.acquire(blocking=False):
            if not self._wait(run.id, f"waiting: {self.settings.max_runs} runs are under way", cancel, others=False):
                return State.CANCELED, CANCELED_AGAIN if begun else CANCELED_EARLY
        try:
            return Attempt(self, run, operation, arguments, claim.owner, cancel, progress).do()
        finally:
            self._slots.release()
            with self._released:
                self._released.notify_all()

    def revision(self, operation: Operation) -> str:
        """Return a digest of all that decides what an operation does."""
        return revision(operation, self.settings.inventory, collections_path())

    def _frozen_gate(self, _run: Run, operation: Operation, arguments: Mapping[str, Any]) -> str | None:
        frozen = self.frozen(operation, arguments)
        return None if frozen is None else str(frozen)

    def frozen(self, operation: Operation, arguments: Mapping[str, Any]) -> Freeze | None:
        """Return the freeze that stops a change by these arguments, None when there is none. Reads are never stopped."""
        if operation.spec.risk == "read":
            return None
        return freeze_on(self.store.freezes(), operation.targets(arguments), time.time())

    def job(self, operation: Operation, arguments: Mapping[str, Any], *, run_id: str, token: str, check: bool) -> Job:
        """Return one attempt at an operation in this site."""
        config = self.settings.site / "ansible.cfg"
        return Job(
            run_id=run_id,
            token=token,
            playbook=operation.playbook,
            inventory=self.settings.inventory,
            arguments=arguments,
            check=check,
            timeout=operation.spec.timeout,
            private_dir=self._private_dir(token),
            output=self.output_path(run_id),
            collections=collections_path(),
            ansible_config=config if config.is_file() else None,
            secrets=list(self._secrets(run_id).values()),
            extra_environment=self.settings.environment,
            socket=self.settings.socket,
        )

    def look(self, name: str) -> Result:
        """Do a read without arguments that nobody asked for and nobody is told of, and return what it answered. Blocks."""
        operation = self.catalog.operations[name]
        assert operation.spec.risk == "read"
        progress = Progress()
        job = self.job(operation, {}, run_id=f"look-{name}", token=uuid.uuid4().hex, check=True)
        execute(job, progress.add, Cancel())
        return progress.result

    def is_cut_short(self, run_id: str) -> bool:
        """Return whether a run was ended here without its end: somebody else goes on with it."""
        return run_id in self._cut_short

    def output_path(self, run_id: str) -> Path:
        """Return where Ansible's own output of a run is kept."""
        return self.settings.state_dir / "output" / f"{run_id}.txt"

    def stop(self, seconds: float) -> None:
        """Let runs end for so long, then end what still runs; the next start takes it up. Blocks until none is left."""
        with self._released:
            self._stopping = True
            self._released.wait_for(lambda: not self._claims, timeout=seconds)
            for run_id, cancel in self._cancels.items():
                if not cancel.is_set():
                    self._cut_short.add(run_id)
                    cancel.set()
            self._released.notify_all()
            self._released.wait_for(lambda: not self._claims, timeout=STOP_SECONDS)

    def keep(self, until: threading.Event) -> None:
        """Keep what this machine is at until `until`: renew leases, and hear of cancels that another process took."""
        looks = itertools.count(1)
        while not until.wait(LOOK_SECONDS):
            try:
                self._hear_cancels()
                if next(looks) % RENEW_LOOKS == 0:
                    self.keep_leases()
            except Exception:
                log.exception("leases could not be kept; trying again")
                if self.store.shared and time.monotonic() - self._renewed > leases.LEASE_SECONDS - leases.RENEW_SECONDS:
                    self._cut_short_runs(list(self._held))  # others may take them for dead by now

    def _hear_cancels(self) -> None:
        with self._released:
            here = [run_id for run_id, cancel in self._cancels.items() if not cancel.is_set()]
        for run_id in self.store.cancel_asked(here) if here else ():
            self._end(run_id)

    def keep_leases(self) -> None:
        """Renew what lives on this machine, give back what this process holds without being at it, end what it has lost."""
        me = leases.process_holder("")
        living = set()
        with self._released:
            held = dict(self._held)
        for holder in leases.holders(self.store):
            if (holder.boot_id, holder.pid, holder.pid_started) == (me.boot_id, me.pid, me.pid_started) and holder.owner not in self._claims:
                leases.release(self.store, holder.owner)
            elif holder.alive:
                living.add(holder.owner)
        kept = leases.renew(self.store, living)
        self._renewed = time.monotonic()
        self._cut_short_runs([run_id for run_id, owner in held.items() if owner not in kept])

    def _cut_short_runs(self, run_ids: Sequence[str]) -> None:
        """End what this process is at without writing its end: somebody else goes on with it."""
        with self._released:
            for run_id in run_ids:
                if run_id in self._cancels:
                    log.warning("the lease of a run was lost; its attempt is ended here", run=run_id)
                    self._cut_short.add(run_id)
                    self._cancels[run_id].set()
            self._released.notify_all()

    # -- after a crash -------------------------------------------------------------------------------------------

    def orphans(self) -> list[Run]:
        """Return the runs that nobody is at and whose time has come."""
        self.clear_dead_leases()
        claimed = {holder.owner.partition("/")[0] for holder in leases.holders(self.store)}
        # Another server that has only just written a run is about to begin it, and has its secrets.
        youngest = time.time() - (FRESH_SECONDS if self.store.shared else 0)
        waiting = [run for run in self.store.unfinished() if run.id not in claimed and run.id not in self._progress and run.created <= youngest]
        return [run for run in waiting if run.due <= time.time() and not self.lacks_secrets(run)]

    def lacks_secrets(self, run: Run) -> bool:
        """Return whether another server has the secrets of a run: it is left to that one for a minute after its time has come."""
        if not self.store.shared or MASK not in run.arguments.values() or self._secret_path(run.id).exists():
            return False
        return time.time() < max(run.created, run.due, run.finished or 0.0) + SECRETS_SECONDS

    def clear_dead_leases(self) -> None:
        """Give back the leases of owners that are gone, after ending what they had started."""
        for owner in leases.dead_owners(self.store):
            # Of this owner only: the run may have a new claimant by now, whose attempt is none of ours.
            self._end_open_attempts(owner.partition("/")[0], owner)
            leases.release_dead(self.store, owner)

    def _end_open_attempts(self, run_id: str, owner: str | None = None) -> bool:
        """End the attempts that an earlier process left, and return whether this run was ever attempted.

        Without `owner` for whoever holds the run's claim: then every attempt that is open is of somebody dead.
        """
        for token, boot in self.store.open_attempts(run_id, owner):
            if boot == processes.boot_id():
                processes.end_attempt(token)
            shutil.rmtree(self._private_dir(token), ignore_errors=True)
            self.store.end_attempt(token, State.INTERRUPTED.value)
        return self.store.was_attempted(run_id)

    # -- helpers -------------------------------------------------------------------------------------------------

    def _queue_text(self, owners: Sequence[str]) -> str:
        """Return the place in the queue and who holds the lock."""
        first = owners[0].partition("/")[0]
        try:
            run = self.store.run(first)
            holder = f"run {run.id}, {run.operation} by {run.principal}"
        except LeptonError:
            holder = f"run {first}"
        return f"waiting for {holder}" + (f" (number {len(owners)} in the queue)" if len(owners) > 1 else "")

    # -- helpers -------------------------------------------------------------------------------------------------

    def _wait(self, run_id: str, why: str, cancel: Cancel, *, others: bool = True) -> bool:
        """Wait for something to be given back, and return whether to go on. With `others`, other processes may have it."""
        progress = self.progress(run_id)
        if progress.task != why:
            progress.task = why
            self.tell(run_id)
        with self._released:
            if not cancel.is_set():
                self._released.wait(WAIT_SECONDS)
        if others:
            with suppress(sa.exc.OperationalError):  # waiting goes on while a database does not answer
                self.clear_dead_leases()
        return not cancel.is_set()

    def tell(self, run_id: str) -> None:
        """Tell all listeners how a run stands."""
        if not self.listeners:
            return
        try:
            run, progress = self.store.run(run_id), self.progress(run_id)
        except sa.exc.OperationalError:
            return  # the next event tells more
        for listener in tuple(self.listeners):
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

    def _private_dir(self, token: str) -> Path:
        return self.settings.state_dir / "private" / token

    def _secret_path(self, run_id: str) -> Path:
        return self.settings.state_dir / "secrets" / f"{run_id}.json"

    def _write_secrets(self, run_id: str, secret: Mapping[str, Any]) -> None:
        path = self._secret_path(run_id)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(secret, file)
            file.flush()
            os.fsync(file.fileno())

    def forget_secrets(self, run_id: str) -> None:
        """Remove a run's secrets for good."""
        self._secret_path(run_id).unlink(missing_ok=True)

    def _secrets(self, run_id: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads(self._secret_path(run_id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return loaded
