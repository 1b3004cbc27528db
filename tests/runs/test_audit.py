# SPDX-License-Identifier: Apache-2.0
"""The audit trail cannot be changed unseen."""

from __future__ import annotations

import threading

import sqlalchemy as sa
from tests.runs.test_store import any_store, postgres_url

from lepton_ai.runs import audit
from lepton_ai.runs.store import Store
from lepton_ai.runs.tables import AUDIT

__all__ = ["any_store", "postgres_url"]


def fill(store: Store, entries: int = 5) -> None:
    for number in range(entries):
        store.record("r", "os:1@h", "did", {"number": number, "part": 1.5, "text": "ü <&>", "none": None})


def chain(store: Store) -> audit.Chain:
    with store.engine.connect() as connection:
        return audit.verify(connection)


def change(store: Store, statement: sa.Executable) -> None:
    with store.transaction() as connection:
        connection.execute(statement)


def test_a_trail_as_it_was_written_holds(any_store: Store) -> None:
    assert chain(any_store) == audit.Chain(0, 0, audit.BEGINNING)
    threads = [threading.Thread(target=fill, args=(any_store,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = chain(any_store)
    assert (found.entries, found.trouble) == (20, "")


def test_a_changed_a_removed_and_a_forged_entry_show(any_store: Store) -> None:
    fill(any_store)
    change(any_store, AUDIT.update().where(AUDIT.c.seq == 3).values(principal="os:0@h"))
    assert "entry 3 is not what was written" in chain(any_store).trouble
    change(any_store, AUDIT.delete().where(AUDIT.c.seq == 3))
    assert "entry 4 does not follow" in chain(any_store).trouble


def test_what_is_pruned_is_vouched_for_and_a_cut_without_it_shows(any_store: Store) -> None:
    fill(any_store)
    with any_store.engine.connect() as connection:
        third = connection.execute(sa.select(AUDIT.c.at).where(AUDIT.c.seq == 3)).scalar_one()
    with any_store.transaction() as connection:
        assert audit.prune(connection, third, "os:1@h") == 2
        assert audit.prune(connection, 0.0, "os:1@h") == 0
    fill(any_store)
    found = chain(any_store)
    assert (found.entries, found.trouble) == (9, "")
    change(any_store, AUDIT.delete().where(AUDIT.c.seq == 3))
    assert "something was removed" in chain(any_store).trouble


def test_everything_may_be_pruned(any_store: Store) -> None:
    fill(any_store)
    with any_store.transaction() as connection:
        assert audit.prune(connection, 1e12, "os:1@h") == 5
    fill(any_store)
    found = chain(any_store)
    assert (found.entries, found.trouble) == (6, "")
