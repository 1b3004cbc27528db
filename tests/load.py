# SPDX-License-Identifier: Apache-2.0
"""A steady load from an independent client (wrk), and what it counted."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

CONNECTIONS = 4
SECONDS = 600  # longer than anything that is watched; it is ended before


@dataclass
class Load:
    """What wrk counted until now, or in all once it has ended. Times in milliseconds."""

    requests: int = 0
    bad_status: int = 0
    socket_errors: int = 0
    p50: float = 0
    p99: float = 0
    longest: float = 0
    seconds: float = 0

    @property
    def dropped(self) -> int:
        """How many requests had no good answer."""
        return self.bad_status + self.socket_errors


def read_load(text: str) -> Load:
    """Return what wrk printed at its end."""

    def milliseconds(pattern: str) -> float:
        found = re.search(pattern, text)
        if found is None:
            return 0
        return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[found[2]]

    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    assert total is not None, text
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return Load(
        requests=int(total[1]),
        bad_status=int(bad[1]) if bad else 0,
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
        p50=milliseconds(r"50%\s+([\d.]+)(us|ms|s|m)"),
        p99=milliseconds(r"99%\s+([\d.]+)(us|ms|s|m)"),
        longest=milliseconds(r"Latency\s+\S+\s+\S+\s+([\d.]+)(us|ms|s|m)"),
        seconds=float(total[2]) * {"ms": 0.001, "s": 1, "m": 60}[total[3]],
    )


@contextmanager
def load(url: str, connections: int = CONNECTIONS, prefix: Sequence[str] = ()) -> Iterator[Load]:
    """Keep requests coming meanwhile; what is yielded holds the counts afterwards."""
    counted = Load()
    begun = time.monotonic()
    command = [*prefix, "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--timeout", "30s", "--latency", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield counted
    finally:
        process.send_signal(2)  # wrk prints what it counted, and ends
        printed, _none = process.communicate(timeout=30)
    counted.__dict__.update(read_load(printed).__dict__)
    counted.seconds = time.monotonic() - begun
