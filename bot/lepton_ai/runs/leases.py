# SPDX-License-Identifier: Apache-2.0
"""Leases over a list of locks: all or none, in one transaction, first come first served, across processes and machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from lepton_ai.runs import processes
from lepton_ai.runs.store import Store, now
from lepton_ai.runs.tables import LEASES, WAITING

log = structlog.get_logger()
LEASE_SECONDS = 30.0
RENEW_SECONDS = 10.0
PLAIN = "ansible-playbook:"  # and the pid: the owner of the leases of a playbook that somebody runs by hand


@dataclass(frozen=True)
class Holder:
    """Who has a lease: an owner (a run, or a process that runs a playbook by hand) and the process behind it."""

    owner: str
    boot_id: str
    pid: int
    pid_started: int

    @property
    def here(self) -> bool:
        """Whether it is of this boot of this machine."""
        return self.boot_id == processes.boot_id()

    @property
    def alive(self) -> bool:
        """Whether the process still runs; of another machine, only the lease's expiry tells."""
        return self.here and processes.start_time(self.pid) == self.pid_started


def process_holder(owner: str, pid: int | None = None) -> Holder:
    """Return the holder for a process, this one by default."""
    number = os.getpid() if pid is None else pid
    return Holder(owner, processes.boot_id(), number, processes.start_time(number) or 0)


def try_acquire(store: Store, holder: Holder, locks: Sequence[str]) -> list[str]:
    """Take all locks and return [], or take none and return the owners that stand before us.

    A lease of a dead owner is not taken here: its owner is returned, and whoever asks decides what has to be ended first.
    Having asked is remembered for 30 s, so that later ones do not overtake.
    """
    if not locks:
        return []
    with store.transaction() as connection:
        at = now(connection)
        connection.execute(WAITING.delete().where(WAITING.c.expires < at))
        holders = [row.owner for row in connection.execute(sa.select(LEASES.c.owner).where(LEASES.c.lock.in_(locks))) if row.owner != holder.owner]
        mine = connection.execute(sa.select(WAITING.c.since).where(WAITING.c.owner == holder.owner)).scalar_one_or_none()
        since = at if mine is None else mine
        earlier = [
            row.owner
            for row in connection.execute(sa.select(WAITING).where(WAITING.c.since < since).order_by(WAITING.c.since))
            if row.owner != holder.owner and set(row.locks) & set(locks)
        ]
        blocking = list(dict.fromkeys(holders + earlier))
        if blocking:
            if mine is None:
                connection.execute(WAITING.insert().values(owner=holder.owner, locks=list(locks), since=since, expires=at + LEASE_SECONDS))
            else:
                connection.execute(WAITING.update().where(WAITING.c.owner == holder.owner).values(expires=at + LEASE_SECONDS))
            return blocking
        connection.execute(WAITING.delete().where(WAITING.c.owner == holder.owner))
        connection.execute(LEASES.delete().where(LEASES.c.owner == holder.owner))
        connection.execute(
            LEASES.insert(),
            [
                {
                    "lock": lock,
                    "owner": holder.owner,
                    "boot_id": holder.boot_id,
                    "pid": holder.pid,
                    "pid_started": holder.pid_started,
                    "expires": at + LEASE_SECONDS,
                }
                for lock in sorted(set(locks))
            ],
        )
    return []


def release(store: Store, owner: str) -> None:
    """Give back all leases of an owner, and its place in the queue."""
    with store.transaction() as connection:
        connection.execute(LEASES.delete().where(LEASES.c.owner == owner))
        connection.execute(WAITING.delete().where(WAITING.c.owner == owner))


def leave_queue(store: Store, owner: str) -> None:
    """Give up waiting, and keep what is held."""
    with store.transaction() as connection:
        connection.execute(WAITING.delete().where(WAITING.c.owner == owner))


def renew(store: Store, living: Collection[str]) -> set[str]:
    """Renew the leases of these owners, and return those that still have any: the others were taken for dead."""
    if not living:
        return set()
    with store.transaction() as connection:
        connection.execute(LEASES.update().where(LEASES.c.owner.in_(living)).values(expires=now(connection) + LEASE_SECONDS))
        return set(connection.execute(sa.select(LEASES.c.owner).where(LEASES.c.owner.in_(living))).scalars())


def holders(store: Store) -> list[Holder]:
    """Return everyone who has a lease."""
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(LEASES.c.owner, LEASES.c.boot_id, LEASES.c.pid, LEASES.c.pid_started).distinct()).all()
    return [Holder(row.owner, row.boot_id, row.pid, row.pid_started) for row in rows]


def locks(store: Store) -> list[tuple[str, str]]:
    """Return (lock, owner) of every lease, by lock."""
    with store.engine.connect() as connection:
        return [(row.lock, row.owner) for row in connection.execute(sa.select(LEASES.c.lock, LEASES.c.owner).order_by(LEASES.c.lock))]


def dead_owners(store: Store) -> list[str]:
    """Return the owners whose process is gone: on this machine seen at once, on another when its leases have expired."""
    with store.engine.connect() as connection:
        expired = set(connection.execute(sa.select(LEASES.c.owner).where(LEASES.c.expires < now(connection))).scalars())
    return [holder.owner for holder in holders(store) if (not holder.alive if holder.here else holder.owner in expired)]


def release_dead(store: Store, owner: str) -> None:
    """Give back the leases of an owner that was found dead, unless it has renewed them in this very moment."""
    with store.transaction() as connection:
        gone = sa.or_(LEASES.c.boot_id == processes.boot_id(), LEASES.c.expires < now(connection))
        connection.execute(LEASES.delete().where(LEASES.c.owner == owner, gone))
        connection.execute(WAITING.delete().where(WAITING.c.owner == owner))


def acquire(store: Store, holder: Holder, locks: Sequence[str], *, wait: Callable[[list[str]], bool]) -> bool:
    """Take all locks, calling `wait(owners before us)` between tries; False when `wait` gives up, with nothing more held than before."""
    while True:
        try:
            blocking = try_acquire(store, holder, locks)
        except sa.exc.OperationalError as error:
            log.warning("the database does not answer; waiting", error=str(error.orig))
            blocking = ["database"]
        if not blocking:
            return True
        if not wait(blocking):
            leave_queue(store, holder.owner)
            return False
