# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Tell of the nodes of one host: a program of its own, since a connection to a host that hangs can only be ended from outside.

Run as C(python3 -m ansible_collections.lepton.cloud.plugins.module_utils._listing URI) by the interpreter that has libvirt's bindings.
It prints JSON, C(nodes) with the addresses that libvirt knows of each. PRIVATE to the collection.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from . import _libvirt
from ._node import NodeError
from ._results import node_result


def listing(uri: str) -> list[dict[str, Any]]:
    """Return the nodes of a host, with their addresses; raise NodeError where it cannot be asked."""
    if _libvirt.libvirt is None:
        raise NodeError("%s has no libvirt bindings (Debian package python3-libvirt)" % sys.executable)
    host = _libvirt.Host(uri, image_dir="/", disk_dir="/", cpu_overcommit=1, memory_reserve=0, run=lambda _command: (1, "", ""))
    try:
        return [dict(node_result(node), addresses=host.addresses(node.name) if node.live else []) for node in host.nodes()]
    except _libvirt.libvirt.libvirtError as error:
        raise NodeError(str(error)) from error
    finally:
        host.close()


if __name__ == "__main__":
    try:
        answer: dict[str, Any] = {"nodes": listing(sys.argv[1])}
    except NodeError as error:
        answer = {"msg": str(error)}
    sys.stdout.write(json.dumps(answer))
