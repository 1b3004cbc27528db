# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What every hypervisor module shares: its options and its connection. PRIVATE."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Iterator, Mapping

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from . import _libvirt
from ._node import NodeError
from ._units import parse_size

HOST_OPTIONS: dict[str, dict[str, Any]] = {
    "uri": {"type": "str", "default": "qemu:///system"},
    "image_dir": {"type": "path", "default": "/var/lib/lepton/images"},
    "disk_dir": {"type": "path", "default": "/var/lib/lepton/disks"},
    "cpu_overcommit": {"type": "float", "default": 4},
    "memory_reserve": {"type": "str", "default": "1GiB"},
    "address": {"type": "str", "default": "127.0.0.1"},
    "port_range": {"type": "str", "default": "21000-21999"},
    "migration_uri": {"type": "str"},
}


def end_with_controller() -> None:
    """End this process and what it started as soon as nobody reads its output any more.

    Over ssh a module outlives its controller, which closes the connection and no more (a cancel, a crash, a cable).
    """

    def watch() -> None:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always reported
        waiting.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="controller", daemon=True).start()


@contextmanager
def connected(module: AnsibleModule) -> Iterator[_libvirt.Host]:
    """Yield the module's host; whatever goes wrong ends the module with a sentence, never with a traceback."""
    end_with_controller()
    if _libvirt.libvirt is None:
        module.fail_json(msg=missing_required_lib("libvirt (Debian package python3-libvirt)"))
    for option in ("image_dir", "disk_dir"):
        if not os.path.isabs(module.params[option]):
            module.fail_json(msg="%s must be an absolute path, not %r" % (option, module.params[option]))
    try:
        with opened(module, module.params) as host:
            yield host
    except (NodeError, ValueError) as error:
        module.fail_json(msg=str(error))
    except _libvirt.libvirt.libvirtError as error:
        module.fail_json(msg="libvirt at %s: %s" % (module.params["uri"], error))
    except OSError as error:
        module.fail_json(msg="%s: %s" % (module.params["uri"], error))


@contextmanager
def opened(module: AnsibleModule, options: Mapping[str, Any]) -> Iterator[_libvirt.Host]:
    """Yield a connection to the host that options speak of; raise NodeError where it does not answer."""
    host = _libvirt.Host(
        options["uri"],
        image_dir=options["image_dir"],
        disk_dir=options["disk_dir"],
        cpu_overcommit=options["cpu_overcommit"],
        memory_reserve=parse_size(options["memory_reserve"]),
        run=lambda command: module.run_command(command, handle_exceptions=False),
    )
    try:
        yield host
    finally:
        host.close()
