# SPDX-License-Identifier: Apache-2.0
"""What alerts have said and what is known of them, durably: taken means not lost, and worked off in order, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

from lepton_ai.alerts.groups import FIRING
from lepton_ai.runs.store import Store
from lepton_ai.runs.tables import ALERT_ACTIONS, ALERT_GROUPS, NOTIFICATIONS

Document = dict[str, Any]


class Taken(NamedTuple):
    """A notification that waits to be worked off."""

    number: int
    sender: str
    body: Document


def take(store: Store, sender: str, body: Document, most: int) -> bool:
    """Write a notification down, and return whether there was room among those that wait."""
    with store.transaction() as connection:
        if connection.execute(sa.select(sa.func.count()).select_from(NOTIFICATIONS)).scalar_one() >= most:
            return False
        connection.execute(NOTIFICATIONS.insert().values(sender=sender, at=time.time(), body=body))
        return True


def waiting(store: Store, limit: int) -> list[Taken]:
    """Return the oldest notifications that wait."""
    query = sa.select(NOTIFICATIONS).order_by(NOTIFICATIONS.c.number).limit(limit)
    with store.engine.connect() as connection:
        return [Taken(row.number, row.sender, row.body) for row in connection.execute(query)]


def work_off(store: Store, number: int, key: str, change: Callable[[Document | None], Document]) -> Document | None:
    """Change the group that a notification is about and forget the notification, in one; None where another process was faster."""
    with store.transaction() as connection:
        if not connection.execute(NOTIFICATIONS.delete().where(NOTIFICATIONS.c.number == number)).rowcount:
            return None
        return _change(connection, key, change)


def drop(store: Store, number: int) -> None:
    """Forget a notification that cannot be understood."""
    with store.transaction() as connection:
        connection.execute(NOTIFICATIONS.delete().where(NOTIFICATIONS.c.number == number))


def change(store: Store, key: str, changed: Callable[[Document | None], Document]) -> Document:
    """Change what is known of a group."""
    with store.transaction() as connection:
        return _change(connection, key, changed)


def _change(connection: sa.Connection, key: str, changed: Callable[[Document | None], Document]) -> Document:
    before = connection.execute(sa.select(ALERT_GROUPS.c.document).where(ALERT_GROUPS.c.key == key)).scalar_one_or_none()
    document = changed(before)
    episodes = document["episodes"].values()
    standing = {"pending": any(each["pending"] for each in episodes), "firing": any(each["status"] == FIRING for each in episodes)}
    values = {"document": document, "changed": time.time(), "shown": False, **standing}
    if before is None:
        connection.execute(ALERT_GROUPS.insert().values(key=key, message={}, **values))
    elif document != before:
        connection.execute(ALERT_GROUPS.update().where(ALERT_GROUPS.c.key == key).values(**values))
    return document


def group(store: Store, key: str) -> Document | None:
    """Return what is known of a group."""
    with store.engine.connect() as connection:
        found: Document | None = connection.execute(sa.select(ALERT_GROUPS.c.document).where(ALERT_GROUPS.c.key == key)).scalar_one_or_none()
        return found


def forget(store: Store, before: float) -> None:
    """Forget groups of which nothing has fired or changed since a moment, and what rules asked for before it."""
    with store.transaction() as connection:
        connection.execute(ALERT_GROUPS.delete().where(~ALERT_GROUPS.c.firing, ALERT_GROUPS.c.changed < before))
        connection.execute(ALERT_ACTIONS.delete().where(ALERT_ACTIONS.c.at < before))


def firing(store: Store) -> list[Document]:
    """Return the groups of which something fires."""
    with store.engine.connect() as connection:
        return list(connection.execute(sa.select(ALERT_GROUPS.c.document).where(ALERT_GROUPS.c.firing)).scalars())


def count(store: Store) -> int:
    """Return how many notifications wait."""
    with store.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(NOTIFICATIONS)).scalar_one())


def pending(store: Store) -> list[Document]:
    """Return the groups of which something has not been asked for yet."""
    with store.engine.connect() as connection:
        return list(connection.execute(sa.select(ALERT_GROUPS.c.document).where(ALERT_GROUPS.c.pending).order_by(ALERT_GROUPS.c.changed)).scalars())


def touch(store: Store, key: str) -> None:
    """Have a group shown again, since something that it caused has changed."""
    with store.transaction() as connection:
        connection.execute(ALERT_GROUPS.update().where(ALERT_GROUPS.c.key == key).values(changed=time.time(), shown=False))


def unshown(store: Store, limit: int) -> list[tuple[str, Document, Document, float]]:
    """Return (key, document, message, when it changed) of groups whose message does not say how they stand, the oldest first."""
    query = sa.select(ALERT_GROUPS).where(~ALERT_GROUPS.c.shown).order_by(ALERT_GROUPS.c.changed).limit(limit)
    with store.engine.connect() as connection:
        return [(row.key, row.document, row.message, row.changed) for row in connection.execute(query)]


def set_shown(store: Store, key: str, message: Document, changed: float) -> None:
    """Note where a group's message is, and that it says how the group stood when it had changed last."""
    with store.transaction() as connection:
        connection.execute(ALERT_GROUPS.update().where(ALERT_GROUPS.c.key == key).values(message=message))
        connection.execute(ALERT_GROUPS.update().where(ALERT_GROUPS.c.key == key, ALERT_GROUPS.c.changed == changed).values(shown=True))


def last_action(store: Store, rule: str, digest: str) -> float:
    """Return when a rule last asked for the same thing, 0 for never."""
    query = sa.select(ALERT_ACTIONS.c.at).where(ALERT_ACTIONS.c.rule == rule, ALERT_ACTIONS.c.digest == digest)
    with store.engine.connect() as connection:
        return float(connection.execute(query).scalar_one_or_none() or 0.0)


def set_action(store: Store, rule: str, digest: str, at: float) -> None:
    """Note that a rule asked for something."""
    with store.transaction() as connection:
        connection.execute(ALERT_ACTIONS.delete().where(ALERT_ACTIONS.c.rule == rule, ALERT_ACTIONS.c.digest == digest))
        connection.execute(ALERT_ACTIONS.insert().values(rule=rule, digest=digest, at=at))
