# SPDX-License-Identifier: Apache-2.0
"""Whether a daemon of the sandbox is there already."""

from __future__ import annotations

import socket
from pathlib import Path


def socket_answers(path: Path) -> bool:
    """Return whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
