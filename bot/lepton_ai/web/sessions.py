# SPDX-License-Identifier: Apache-2.0
"""Who looks at a page: people come with a link that only they were given in Slack, once and soon, and then have a session."""

from __future__ import annotations

import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer

from lepton_ai.errors import LeptonError

KEY_BYTES = 32
TICKET_SECONDS = 5 * 60
SESSION_SECONDS = 12 * 60 * 60
COOKIE = "lepton_session"


class Sessions:
    """Makes and checks tickets and sessions. The key is this account's alone; a ticket is good once, in this process only."""

    def __init__(self, state_dir: Path, public_url: str) -> None:
        key = _key(state_dir / "session.key")
        self.public_url = public_url.rstrip("/")
        self._tickets = URLSafeTimedSerializer(key, salt=f"ticket {secrets.token_hex(8)}")
        self._sessions = URLSafeTimedSerializer(key, salt="session")
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}

    def page(self, run_id: str) -> str:
        """Return the address of a run's page."""
        return f"{self.public_url}/runs/{run_id}"

    def entrance(self, principal: str) -> str:
        """Return the address through which this person, and nobody else, comes in, once and within five minutes."""
        return f"{self.public_url}/enter?ticket={self._tickets.dumps([principal, secrets.token_hex(8)])}"

    def ticket_of(self, ticket: str) -> str | None:
        """Return whose a ticket is, None for one that is over or never was one. It stays good."""
        found = _read(self._tickets, ticket, TICKET_SECONDS)
        with self._lock:
            return None if found is None or found[1] in self._used else found[0]

    def enter(self, ticket: str) -> tuple[str, str] | None:
        """Use a ticket up and return (principal, session), None for one that cannot be used."""
        found = _read(self._tickets, ticket, TICKET_SECONDS)
        if found is None:
            return None
        now = time.monotonic()
        with self._lock:
            self._used = {nonce: until for nonce, until in self._used.items() if until > now}
            if found[1] in self._used:
                return None
            self._used[found[1]] = now + TICKET_SECONDS + 1
        return found[0], self._sessions.dumps([found[0], ""])

    def principal(self, session: str) -> str | None:
        """Return whose a session is, None for one that is over or never was one."""
        found = _read(self._sessions, session, SESSION_SECONDS)
        return None if found is None else found[0]


def _read(serializer: URLSafeTimedSerializer, text: str, seconds: int) -> tuple[str, str] | None:
    try:
        principal, nonce = serializer.loads(text, max_age=seconds)
    except (BadSignature, ValueError, TypeError):
        return None
    return str(principal), str(nonce)


def _key(path: Path) -> bytes:
    """Return the key, made whole before it has its name; one of another length is none, or sessions could be forged."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise LeptonError(f"{path} is not a key of {KEY_BYTES} bytes", hint="remove it: a new one is made, and everybody comes in anew")
    return key
