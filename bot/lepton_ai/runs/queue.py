# SPDX-License-Identifier: Apache-2.0
"""The durable queue: each run is a DBOS workflow named by its id, so it survives a crash and never exists twice.

Only a service launches DBOS. Its version is a constant of ours, because DBOS's default (a hash of the code) would leave
pending runs behind at every upgrade. Workflows start at once (2 ms) instead of waiting for a polled queue; order and
exclusion come from leases.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, SetWorkflowID

from lepton_ai.errors import LeptonError
from lepton_ai.runs.model import Run
from lepton_ai.runs.service import Runs

SCHEMA_VERSION = "1"  # of what a pending run means; raise it only with a migration
ROOM_FACTOR = 3  # begun at once for each that may work at once: those that wait for a lock leave room for others
_execute: Callable[[str], Run] | None = None


@DBOS.step(name="lepton.attempt")
def _attempt(run_id: str) -> str:
    assert _execute is not None
    return _execute(run_id).state.value


@DBOS.workflow(name="lepton.run")
def _workflow(run_id: str) -> str:
    return _attempt(run_id)


class Queue:
    """DBOS around `Runs.execute`. One per state folder: a second one is refused while the first lives."""

    def __init__(self, runs: Runs) -> None:
        global _execute
        state_dir = runs.settings.state_dir
        self._lock = _only_one(state_dir / "serve.lock")
        logging.getLogger("dbos").setLevel(logging.WARNING)
        config: DBOSConfig = {
            "name": "lepton",
            "application_version": SCHEMA_VERSION,
            "executor_id": _executor_id(state_dir),
            "log_level": "WARNING",
            "enable_otlp": False,
        }
        url = runs.settings.database_url
        if url:
            config["system_database_url"] = url
        else:
            config["system_database_engine"] = _sqlite_engine(state_dir / "dbos.sqlite")
        _execute = runs.execute
        self._runs = runs
        self._closed = threading.Event()
        self._lock_line = threading.Lock()
        self._line: deque[str] = deque()  # runs, in order
        self._begun: set[str] = set()
        self._room = runs.settings.max_runs * ROOM_FACTOR
        DBOS(config=config)
        DBOS.launch()
        # A thread of its own, up to the very end: whatever else is slow, what lives must not look dead.
        threading.Thread(target=runs.keep, args=(self._closed,), name="leases", daemon=True).start()
        self.take_up_orphans()

    def start(self, run_id: str) -> None:
        """Begin a run as soon as there is room, or do nothing when it has begun."""
        self._line_up(run_id)

    def take_up_orphans(self) -> None:
        """Begin every run that nobody is at: written just before a crash, or left by a process that is gone."""
        for run in self._runs.orphans():
            self._line_up(run.id)

    def _line_up(self, run_id: str) -> None:
        """Put a run at the end of the line. What stands there is written already: after a crash it is an orphan."""
        with self._lock_line:
            if run_id not in self._line and run_id not in self._begun:
                self._line.append(run_id)
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin what there is room for. A run that only waits has a thread, and hundreds of those would starve the doors."""
        while True:
            with self._lock_line:
                if not self._line or len(self._begun) >= self._room:
                    return
                run_id = self._line.popleft()
                self._begun.add(run_id)
            try:
                # Under a name of its own: for DBOS an earlier one may have ended. That only one runs is the claim's work.
                with SetWorkflowID(f"{run_id}-{uuid.uuid4().hex[:8]}"):
                    handle = DBOS.start_workflow(_workflow, run_id)
            except BaseException:
                with self._lock_line:
                    self._begun.discard(run_id)
                raise
            threading.Thread(target=self._at_end, args=(run_id, handle), name=f"end-{run_id}", daemon=True).start()

    def _at_end(self, run_id: str, handle: Any) -> None:
        with suppress(Exception):  # what went wrong in it stands in the run, or the next start takes it up
            handle.get_result()
        with self._lock_line:
            self._begun.discard(run_id)
        if not self._closed.is_set():
            self._begin_next()

    def close(self, drain_seconds: float) -> None:
        """Let runs end for so long, then end them; they are taken up at the next start. The lock is given up last."""
        self._runs.stop(drain_seconds)
        self._closed.set()
        DBOS.destroy()
        self._lock.close()


def _only_one(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise LeptonError(f"another lepton serve (pid {pid}) works in {path.parent}", hint="stop it first, or use another state_dir") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _executor_id(state_dir: Path) -> str:
    """Return this service's name in DBOS, the same after every restart."""
    path = state_dir / "executor-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text().strip()


def _sqlite_engine(path: Path) -> sa.Engine:
    # DBOS needs SQLite 3.42, and Debian 12's Python has 3.40.
    driver = import_module("sqlite3" if sqlite3.sqlite_version_info >= (3, 42) else "pysqlite3.dbapi2")
    engine = sa.create_engine(f"sqlite:///{path}", module=driver, connect_args={"timeout": 30})
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return engine
