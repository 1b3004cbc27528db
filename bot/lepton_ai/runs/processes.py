# SPDX-License-Identifier: Apache-2.0
"""Which processes belong to an attempt, and ending them: by a token in their environment, which children inherit.

Process groups do not do: Ansible's workers call setsid(), and after a SIGKILL of the service nobody holds their pids.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

TOKEN_VARIABLE = "LEPTON_ATTEMPT"  # noqa: S105 - a name, no secret
PROC = Path("/proc")
STUBBORN_SECONDS = 10.0  # a process in the kernel cannot be killed; it must not hold up everything else


def boot_id() -> str:
    """Return what tells this boot of this machine, and this container's numbering of processes, from every other."""
    return f"{(PROC / 'sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None for one that is gone or a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def parent(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def of_attempt(token: str) -> list[int]:
    """Return the pids that carry the token, parents before children where it can be told."""
    mark = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0") and start_time(int(entry.name)) is not None:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def end_attempt(token: str, grace: float = 1.0) -> bool:
    """End every process of an attempt and return whether there was one.

    The root of the tree gets SIGTERM, which makes ansible-playbook end its workers and modules by itself; what is
    left after `grace` seconds is killed, again and again for ten more.
    """
    pids = of_attempt(token)
    if not pids:
        return False
    for pid in pids:
        if parent(pid) not in pids:
            _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while (pids := of_attempt(token)) and time.monotonic() < deadline:
        time.sleep(0.02)
    deadline = time.monotonic() + STUBBORN_SECONDS
    while (pids := of_attempt(token)) and time.monotonic() < deadline:
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.02)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
