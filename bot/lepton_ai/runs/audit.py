# SPDX-License-Identifier: Apache-2.0
"""The audit trail: append-only, each entry with a hash over itself and the one before, so that a change of the past shows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lepton_ai.masking import service_mask
from lepton_ai.runs.tables import AUDIT

BEGINNING = "0" * 64
CHECKPOINT = "checkpoint"
PAGE = 1000


@dataclass(frozen=True)
class Chain:
    """What a check of the trail found: how many entries hold, the newest one's number and hash, what is wrong."""

    entries: int
    head: int
    hash: str
    trouble: str = ""


def append(connection: sa.Connection, run_id: str, principal: str, what: str, data: Mapping[str, Any]) -> None:
    """Append an entry, inside a transaction that holds the store's write lock."""
    newest = connection.execute(sa.select(AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)).scalar()
    entry = {"at": time.time(), "run": run_id, "principal": principal, "what": what, "data": _plain(data), "previous": newest or BEGINNING}
    connection.execute(AUDIT.insert().values(**entry, hash=_digest(entry)))


def entries(connection: sa.Connection, since: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yield the entries from a point of time on, oldest first."""
    last = 0
    while page := connection.execute(sa.select(AUDIT).where(AUDIT.c.seq > last, AUDIT.c.at >= since).order_by(AUDIT.c.seq).limit(PAGE)).all():
        for row in page:
            yield dict(row._mapping)
        last = page[-1].seq


def verify(connection: sa.Connection) -> Chain:
    """Check every entry against its hash and the one before it. What was pruned is vouched for by the newest checkpoint."""
    checkpoint = connection.execute(sa.select(AUDIT.c.data).where(AUDIT.c.what == CHECKPOINT).order_by(AUDIT.c.seq.desc()).limit(1)).scalar()
    previous = checkpoint["hash"] if checkpoint else BEGINNING
    count = head = 0
    for entry in entries(connection):
        seq, found = entry.pop("seq"), entry.pop("hash")
        if entry["previous"] != previous:
            return Chain(count, head, previous, f"entry {seq} does not follow the one before it: something was removed or put in there")
        if _digest(entry) != found:
            return Chain(count, head, previous, f"entry {seq} is not what was written: it was changed afterwards")
        previous, count, head = found, count + 1, seq
    return Chain(count, head, previous)


def prune(connection: sa.Connection, before: float, principal: str) -> int:
    """Remove what is older than a point of time, leave a checkpoint that vouches for it, and return how many went."""
    last = connection.execute(sa.select(AUDIT.c.seq, AUDIT.c.hash).where(AUDIT.c.at < before).order_by(AUDIT.c.seq.desc()).limit(1)).first()
    if last is None:
        return 0
    gone = connection.execute(sa.select(sa.func.count()).select_from(AUDIT).where(AUDIT.c.seq <= last.seq)).scalar_one()
    # First, so that it follows the newest entry even where that one goes too.
    append(connection, "", principal, CHECKPOINT, {"through": last.seq, "hash": last.hash, "entries": gone})
    connection.execute(AUDIT.delete().where(AUDIT.c.seq <= last.seq))
    return int(gone)


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data as it will be read back."""
    plain: dict[str, Any] = json.loads(json.dumps(service_mask(data), default=str))
    return plain
