# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ports of a host: which ones may be given away, which are taken, and what answers on one. PRIVATE to the collection."""

from __future__ import annotations

import http.client
from typing import Collection, Sequence

from ._command import clean

LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
MOST = 64  # free ports that are told


def port_range(text: str) -> range:
    """Return the ports that an option such as 20000-20999 names."""
    first, _dash, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
        raise ValueError("port_range: %s is not a range of ports such as 20000-20999" % ascii(text[:40]))
    return range(int(first), int(last) + 1)


def listening_ports(tables: Sequence[str] = ("/proc/net/tcp", "/proc/net/tcp6")) -> set[int]:
    """Return the TCP ports of this host that somebody listens on."""
    found = set()
    for table in tables:
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        found |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENING}
    return found


def free_ports(range_text: str, taken: Collection[int]) -> list[int]:
    """Return the lowest ports of a range that are not taken."""
    return [port for port in port_range(range_text) if port not in set(taken)][:MOST]


def probe(address: tuple[str, int], path: str, seconds: float = 2) -> tuple[bool, str]:
    """Ask a readiness path and return whether it answered 2xx, and what it answered."""
    connection = http.client.HTTPConnection(*address, timeout=seconds)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return False, clean(str(error) or type(error).__name__)
    finally:
        connection.close()
    return 200 <= status < 300, str(status)
