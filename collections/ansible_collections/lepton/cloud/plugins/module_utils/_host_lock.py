# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What the managed host itself keeps: locks, which hold between two controllers that know nothing of each other, and that it is closed. PRIVATE."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator

from ._node import NodeError

CLOSED = ".closed"


@contextmanager
def host_lock(folder: str, name: str, wait_seconds: float) -> Iterator[None]:
    """Hold the lock `name` of this host; the kernel releases it when the process ends, however it ends.

    Raises NodeError when another process still holds it after `wait_seconds`.
    """
    os.makedirs(folder, mode=0o711, exist_ok=True)
    path = os.path.join(folder, ".%s.lock" % name)
    deadline = time.monotonic() + wait_seconds
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # flock has no deadline of its own, and a signal-based one does not belong in a library.
                if time.monotonic() > deadline:
                    raise NodeError("somebody else is changing %s on this host: try again when that has ended" % name) from None
                time.sleep(0.05)
        yield


def closed_host(folder: str) -> str | None:
    """Return why nothing new may be placed on this host, None where it may."""
    try:
        with open(os.path.join(folder, CLOSED), encoding="utf-8") as file:
            return file.read(1000).strip() or None
    except FileNotFoundError:
        return None


def close_host(folder: str, why: str | None) -> None:
    """Have nothing new placed on this host, for a reason; None opens it again."""
    path = os.path.join(folder, CLOSED)
    if why is None:
        if os.path.exists(path):
            os.unlink(path)
        return
    os.makedirs(folder, mode=0o711, exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(why + "\n")
    os.replace(path + ".new", path)
