# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Locks on the managed host: they hold between two controllers that know nothing of each other. PRIVATE to the collection."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator

from ._node import NodeError


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
