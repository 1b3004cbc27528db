# SPDX-License-Identifier: Apache-2.0
"""Runs, attempts, leases and the audit trail in one database: SQLite by default, PostgreSQL when several machines share it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lepton_ai.access.freezes import Freeze
from lepton_ai.errors import LeptonError
from lepton_ai.masking import service_mask
from lepton_ai.runs import audit
from lepton_ai.runs.model import Decision, Request, Result, Run, State, shown_origin
from lepton_ai.runs.progress import bounded
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.runs.tables import ATTEMPTS, AUDIT, DECISIONS, FREEZES, LEASES, PINS, RUNS, SCALING, metadata

LOOKING = "look-"  # begins the token of an attempt in check mode
SERIALIZER_LOCK = 0x1E9704  # any number that only we use: PostgreSQL's advisory lock of the whole store


class Store:
    """The database. Every method is one transaction; `transaction()` makes one of several statements."""

    def __init__(self, state_dir: Path, url: str | None = None) -> None:
        # Others may pass through to the service's socket, which knows who they are; the files are this account's alone.
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        path = state_dir / "lepton.sqlite"
        if not url:
            path.touch(mode=0o600)
        self.engine = sa.create_engine(url or f"sqlite:///{path}", connect_args={} if url else {"timeout": 30}, pool_pre_ping=True)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        try:
            with self.transaction() as connection:
                metadata.create_all(connection)
                self._refuse_other_schema(connection)
        except sa.exc.OperationalError as error:
            raise LeptonError(f"the database {self.engine.url.render_as_string()} cannot be used: {error.orig}") from error

    def _refuse_other_schema(self, connection: sa.Connection) -> None:
        inspector = sa.inspect(connection)
        for table in metadata.tables.values():
            missing = set(table.columns.keys()) - {column["name"] for column in inspector.get_columns(table.name)}
            if missing:
                where = self.engine.url.render_as_string()
                raise LeptonError(f"the database {where} is of another version of Lepton: {table.name} lacks {', '.join(sorted(missing))}", hint="move it away")

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Yield a connection inside a transaction that sees and blocks every other writer of this store."""
        with self.engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SERIALIZER_LOCK)))
            yield connection

    @property
    def shared(self) -> bool:
        """Whether other machines may use this database too."""
        return self.engine.dialect.name != "sqlite"

    def close(self) -> None:
        self.engine.dispose()

    # -- runs ----------------------------------------------------------------------------------------------------

    def add_run(self, run_id: str, request: Request, *, risk: str, shown_arguments: Mapping[str, Any]) -> tuple[Run, bool]:
        """Write a request as a queued run and return (run, True), or (the run of the same key, False)."""
        with self.transaction() as connection:
            existing = connection.execute(sa.select(RUNS).where(RUNS.c.key == request.key)).one_or_none()
            if existing is not None:
                return _run(existing), False
            connection.execute(
                RUNS.insert().values(
                    id=run_id,
                    key=request.key,
                    operation=request.operation,
                    arguments=dict(shown_arguments),
                    principal=request.principal,
                    check_mode=request.check,
                    state=State.QUEUED.value,
                    risk=risk,
                    why=service_mask(request.why),
                    origin=dict(request.origin),
                    created=time.time(),
                    result={},
                    error="",
                    command="",
                    message={},
                    delivered=not request.origin,
                    approved_plan=request.approved_plan,
                    hosts=list(request.hosts),
                    canary=request.canary,
                    closed=not request.origin.get("approval"),
                )
            )
            asked = {"operation": request.operation, "arguments": dict(shown_arguments), "check": request.check, "why": request.why}
            asked |= {"hosts": list(request.hosts), "canary": request.canary} if request.hosts or request.canary else {}
            audit.append(connection, run_id, request.principal, "requested", {**asked, "origin": shown_origin(request.origin)})
            return _run(connection.execute(sa.select(RUNS).where(RUNS.c.id == run_id)).one()), True

    def run(self, run_id: str) -> Run:
        """Return a run; raise LeptonError when there is none."""
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(RUNS).where(RUNS.c.id == run_id)).one_or_none()
        if found is None:
            raise LeptonError(f"there is no run {ascii(run_id[:40])[1:-1]}", hint="see: lepton runs")
        return _run(found)

    def run_of_key(self, key: str) -> Run | None:
        """Return the run of a key, None where there is none."""
        with self.engine.connect() as connection:
            found = connection.execute(sa.select(RUNS).where(RUNS.c.key == key)).one_or_none()
        return None if found is None else _run(found)

    def runs(self, limit: int = 20) -> list[Run]:
        """Return the newest runs first."""
        with self.engine.connect() as connection:
            return [_run(row) for row in connection.execute(sa.select(RUNS).order_by(RUNS.c.created.desc()).limit(limit))]

    def unfinished(self) -> list[Run]:
        """Return every run that is not final, oldest first."""
        query = sa.select(RUNS).where(RUNS.c.state.in_([State.QUEUED.value, State.RUNNING.value])).order_by(RUNS.c.created)
        with self.engine.connect() as connection:
            return [_run(row) for row in connection.execute(query)]

    def undelivered(self) -> list[Run]:
        """Return every run whose end has not reached the place it was asked from, oldest first."""
        with self.engine.connect() as connection:
            return [_run(row) for row in connection.execute(sa.select(RUNS).where(~RUNS.c.delivered).order_by(RUNS.c.created))]

    def ask_cancel(self, run_id: str, principal: str) -> bool:
        """Note that a run is to end, for whichever process is at it; False when it has ended already."""
        with self.transaction() as connection:
            changed = connection.execute(
                RUNS.update().where(RUNS.c.id == run_id, RUNS.c.state.in_([State.QUEUED.value, State.RUNNING.value])).values(cancel_asked=True)
            )
            if changed.rowcount:
                audit.append(connection, run_id, principal, "cancel", {})
            return bool(changed.rowcount)

    def cancel_asked(self, run_ids: Collection[str]) -> list[str]:
        """Return those of these runs that somebody has asked to end."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(RUNS.c.id).where(RUNS.c.id.in_(run_ids), RUNS.c.cancel_asked)).scalars())

    def set_revision(self, run_id: str, revision: str) -> None:
        """Note of which state of the playbook a run is."""
        with self.transaction() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(revision=revision))

    def set_running(self, run_id: str, command: str, claim: str | None = None) -> bool:
        """Mark a run as running; False when it is final already, or when `claim` no longer holds it."""
        with self.transaction() as connection:
            if not _holds(connection, run_id, claim):
                return False
            changed = connection.execute(
                RUNS.update()
                .where(RUNS.c.id == run_id, RUNS.c.state.in_([State.QUEUED.value, State.RUNNING.value]))
                .values(state=State.RUNNING.value, started=sa.func.coalesce(RUNS.c.started, time.time()), command=command)
            )
            return bool(changed.rowcount)

    def finish(self, run_id: str, state: State, result: Result, error: str = "", claim: str | None = None) -> bool:
        """Write a run's end, once; False when it had ended already, or when `claim` no longer holds it.

        A claim is unique to one execution, so it is the fencing token: a server that was paused until its lease ran out
        cannot write over what its successor does.
        """
        data, error = service_mask(bounded(asdict(result))), service_mask(bounded(error))
        with self.transaction() as connection:
            if not _holds(connection, run_id, claim):
                return False
            changed = connection.execute(
                RUNS.update()
                .where(RUNS.c.id == run_id, RUNS.c.state.in_([State.QUEUED.value, State.RUNNING.value]))
                .values(state=state.value, finished=time.time(), result=data, error=error)
            )
            if changed.rowcount:
                audit.append(connection, run_id, "", state.value, {"result": data, "error": error})
            return bool(changed.rowcount)

    def set_message(self, run_id: str, message: Mapping[str, Any]) -> None:
        """Remember where a run's message stands, so that a restart goes on with it."""
        with self.transaction() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(message=dict(message)))

    def set_delivered(self, run_id: str) -> None:
        """Note that the end of a run has reached the place it was asked from."""
        with self.transaction() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(delivered=True))

    # -- decisions -----------------------------------------------------------------------------------------------

    def decide(self, plan_id: str, principal: str, *, approved: bool, always: bool = False) -> Standing:
        """Write one person's decision on a plan and return how it then stands, all in one transaction.

        Only what waits can be decided, so of two who press at once one comes too late; then nothing is written. A no takes
        the place of one's own earlier yes. With `always` it is Lepton itself that ends a plan whatever it waits for.
        """
        with self.transaction() as connection:
            plan = _run(connection.execute(sa.select(RUNS).where(RUNS.c.id == plan_id)).one())
            decisions = _decisions(connection, plan_id)
            mine = [decision for decision in decisions if decision.principal == principal]
            if (always or standing(plan, decisions) is Standing.WAITING) and not any(decision.approved == approved for decision in mine):
                connection.execute(DECISIONS.delete().where(DECISIONS.c.plan == plan_id, DECISIONS.c.principal == principal))
                connection.execute(DECISIONS.insert().values(plan=plan_id, principal=principal, approved=approved, at=time.time()))
                audit.append(connection, plan_id, principal, "approved" if approved else "rejected", {})
            return standing(plan, _decisions(connection, plan_id))

    def set_approval(self, plan_id: str, approval: Mapping[str, Any]) -> None:
        """Write what a plan waits for, once it is known what it would change."""
        with self.transaction() as connection:
            origin = dict(connection.execute(sa.select(RUNS.c.origin).where(RUNS.c.id == plan_id)).scalar_one())
            connection.execute(RUNS.update().where(RUNS.c.id == plan_id).values(origin={**origin, "approval": dict(approval)}))
            audit.append(connection, plan_id, "", "approval", dict(approval))

    def open_plans(self) -> list[Run]:
        """Return the plans that asked for approval and have not been closed, oldest first."""
        query = sa.select(RUNS).where(RUNS.c.check_mode, ~RUNS.c.closed, RUNS.c.finished.is_not(None)).order_by(RUNS.c.created)
        with self.engine.connect() as connection:
            return [run for run in map(_run, connection.execute(query)) if run.origin.get("approval")]

    def close_plan(self, plan_id: str) -> None:
        """Note that nothing more will come of a plan."""
        with self.transaction() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == plan_id).values(closed=True))

    def decisions(self, plan_id: str) -> list[Decision]:
        with self.engine.connect() as connection:
            return _decisions(connection, plan_id)

    # -- scaling -------------------------------------------------------------------------------------------------

    def keep_decision(self, record: Mapping[str, Any], keep_seconds: float) -> None:
        """Keep what was decided of a service, and forget what is older than `keep_seconds`."""
        service, at = record["service"], record["when"]
        with self.transaction() as connection:
            connection.execute(SCALING.delete().where(SCALING.c.service == service, (SCALING.c.at < at - keep_seconds) | (SCALING.c.at == at)))
            connection.execute(SCALING.insert().values(service=service, at=at, outcome=record["outcome"], record=dict(record)))

    def scaling_records(self, service: str, *, until: float, limit: int, outcomes: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return what was decided of a service until a moment, the newest first; only these outcomes where any are named."""
        query = sa.select(SCALING.c.record).where(SCALING.c.service == service, SCALING.c.at <= until).order_by(SCALING.c.at.desc()).limit(limit)
        if outcomes:
            query = query.where(SCALING.c.outcome.in_(outcomes))
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def pin(self, service: str, replicas: int, until: float, principal: str, why: str) -> None:
        """Keep a number that a person has set; an earlier one of the same service is replaced."""
        with self.transaction() as connection:
            connection.execute(PINS.delete().where(PINS.c.service == service))
            connection.execute(PINS.insert().values(service=service, replicas=replicas, until=until, principal=principal, why=why))
            audit.append(connection, "", principal, "pinned", {"service": service, "replicas": replicas, "until": until, "why": why})

    def unpin(self, service: str, principal: str) -> bool:
        """Forget a number that a person has set, and return whether there was one."""
        with self.transaction() as connection:
            gone = connection.execute(PINS.delete().where(PINS.c.service == service)).rowcount
            if gone:
                audit.append(connection, "", principal, "unpinned", {"service": service})
            return bool(gone)

    def pinned(self, service: str, now: float) -> sa.Row[Any] | None:
        """Return (service, replicas, until, principal, why) of the number that a person has set, None where none holds now."""
        with self.engine.connect() as connection:
            return connection.execute(sa.select(PINS).where(PINS.c.service == service, PINS.c.until > now)).one_or_none()

    # -- freezes -------------------------------------------------------------------------------------------------

    def freeze(self, freeze: Freeze) -> None:
        """Freeze a target; an earlier freeze of the same target is replaced."""
        with self.transaction() as connection:
            connection.execute(FREEZES.delete().where(FREEZES.c.target == freeze.target))
            connection.execute(FREEZES.insert().values(**asdict(freeze)))
            audit.append(connection, "", freeze.principal, "frozen", {"target": freeze.target, "until": freeze.until, "why": freeze.why})

    def unfreeze(self, target: str, principal: str) -> bool:
        """Lift a freeze, and return whether there was one."""
        with self.transaction() as connection:
            gone = connection.execute(FREEZES.delete().where(FREEZES.c.target == target)).rowcount
            if gone:
                audit.append(connection, "", principal, "unfrozen", {"target": target})
            return bool(gone)

    def freezes(self) -> list[Freeze]:
        """Return the freezes that hold now."""
        with self.engine.connect() as connection:
            found = [Freeze(**row._mapping) for row in connection.execute(sa.select(FREEZES).order_by(FREEZES.c.target))]
        return [freeze for freeze in found if freeze.until is None or time.time() < freeze.until]

    # -- attempts ------------------------------------------------------------------------------------------------

    def add_attempt(self, token: str, run_id: str, owner: str, boot_id: str) -> None:
        """Record an attempt before its process exists, so that no process can be left that nobody knows of.

        `owner` is the claim under which it runs.
        """
        with self.transaction() as connection:
            connection.execute(ATTEMPTS.insert().values(token=token, run=run_id, owner=owner, boot_id=boot_id, started=time.time(), outcome=""))
            audit.append(connection, run_id, "", "attempt", {"token": token})

    def end_attempt(self, token: str, outcome: str) -> None:
        with self.transaction() as connection:
            connection.execute(ATTEMPTS.update().where(ATTEMPTS.c.token == token).values(ended=time.time(), outcome=outcome))

    def open_attempts(self, run_id: str, owner: str | None = None) -> list[tuple[str, str]]:
        """Return (token, boot id) of a run's attempts that nobody has ended, of one owner where it is given."""
        query = sa.select(ATTEMPTS.c.token, ATTEMPTS.c.boot_id).where(ATTEMPTS.c.run == run_id, ATTEMPTS.c.ended.is_(None))
        if owner is not None:
            query = query.where(ATTEMPTS.c.owner == owner)
        with self.engine.connect() as connection:
            return [(row.token, row.boot_id) for row in connection.execute(query)]

    def was_attempted(self, run_id: str) -> bool:
        """Return whether any process was ever started for this run that did more than look."""
        query = sa.select(ATTEMPTS.c.token).where(ATTEMPTS.c.run == run_id, ~ATTEMPTS.c.token.startswith(LOOKING)).limit(1)
        with self.engine.connect() as connection:
            return connection.execute(query).first() is not None

    # -- audit ---------------------------------------------------------------------------------------------------

    def record(self, run_id: str, principal: str, what: str, data: Mapping[str, Any]) -> None:
        """Append to the audit trail; `run_id` is empty for what belongs to no run, such as a refusal."""
        with self.transaction() as connection:
            audit.append(connection, run_id, principal, what, data)

    def audit(self, run_id: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Return the trail of one run, or the newest entries of all, in order of time."""
        query = sa.select(AUDIT).order_by(AUDIT.c.seq.desc()).limit(limit)
        if run_id is not None:
            query = query.where(AUDIT.c.run == run_id)
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in reversed(connection.execute(query).all())]

    def refusals(self, principal: str, limit: int) -> list[dict[str, Any]]:
        """Return what was refused to somebody last, newest first."""
        query = sa.select(AUDIT.c.data).where(AUDIT.c.what == "refused", AUDIT.c.principal == principal).order_by(AUDIT.c.seq.desc()).limit(limit)
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())


def _decisions(connection: sa.Connection, plan_id: str) -> list[Decision]:
    rows = connection.execute(sa.select(DECISIONS).where(DECISIONS.c.plan == plan_id).order_by(DECISIONS.c.at))
    return [Decision(row.principal, row.approved, row.at) for row in rows]


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is off, so that BEGIN IMMEDIATE above is the one that counts.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # acknowledged means not lost, a power cut included


def _begin_sqlite(connection: sa.Connection) -> None:
    # Writers wait at the beginning, where nothing is lost by waiting; readers never wait.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def now(connection: sa.Connection) -> float:
    """Return the time by which leases expire: the database's own where several machines share it."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
    return time.time()


def _holds(connection: sa.Connection, run_id: str, claim: str | None) -> bool:
    return claim is None or connection.execute(sa.select(LEASES.c.lock).where(LEASES.c.lock == f"run/{run_id}", LEASES.c.owner == claim)).first() is not None


def _run(row: Any) -> Run:
    return Run(
        id=row.id,
        operation=row.operation,
        arguments=row.arguments,
        principal=row.principal,
        check=row.check_mode,
        state=State(row.state),
        risk=row.risk,
        why=row.why,
        origin=row.origin,
        created=row.created,
        started=row.started,
        finished=row.finished,
        result=row.result,
        error=row.error,
        command=row.command,
        message=row.message,
        delivered=row.delivered,
        revision=row.revision,
        approved_plan=row.approved_plan,
        hosts=tuple(row.hosts),
        canary=row.canary,
    )
