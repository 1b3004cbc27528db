# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ask the Lepton service for leases over its unix socket. PRIVATE to the collection; the standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any


class LeaseRefused(Exception):
    """Somebody else holds a lock, or the caller may not do this; the text says which."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def take_leases(address: str, operation: str, arguments: dict[str, Any], *, pid: int, timeout: float = 10) -> bool:
    """Take the operation's leases for process `pid`, until it ends. Return False when no service answers there.

    Raises LeaseRefused with the service's reason.
    """
    connection = _UnixConnection(address, timeout)
    try:
        connection.connect()
    except OSError:
        return False
    try:
        body = json.dumps({"operation": operation, "arguments": arguments, "pid": pid})
        connection.request("POST", "/v1/leases", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read() or b"{}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LeaseRefused("the Lepton service at %s is there but did not give the locks: %s" % (address, error)) from error
    finally:
        connection.close()
    if response.status != 200:
        raise LeaseRefused(str(answer.get("error", "the Lepton service refused")))
    return True
