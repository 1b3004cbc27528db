# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What every module shares that talks to a load balancer: its options, its connection, and what a service looks like in a result. PRIVATE."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule

from ._balancer import Entry
from ._haproxy import Balancer
from ._module import end_with_controller

BALANCER_OPTIONS: dict[str, dict[str, Any]] = {
    "socket_address": {"type": "str", "default": "/run/haproxy/admin.sock"},
    "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
    "config": {"type": "path", "default": "/etc/haproxy/haproxy.cfg"},
    "services_dir": {"type": "path", "default": "/etc/haproxy/lepton.d"},
    "state_file": {"type": "path", "default": "/var/lib/haproxy/lepton-server-state"},
    "listen_address": {"type": "str", "default": "127.0.0.1"},
}


@contextmanager
def balancer_of(module: AnsibleModule) -> Iterator[Balancer]:
    """Yield the host's HAProxy; whatever goes wrong ends the module with a sentence, never with a traceback."""
    end_with_controller()
    try:
        yield Balancer(**{option: module.params[option] for option in BALANCER_OPTIONS})
    except ValueError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="the load balancer of this host: %s" % error)


def entry_result(entry: Entry) -> dict[str, Any]:
    """Return a service as every module reports it."""
    return {"name": entry.name, "replicas": entry.replicas, "version": entry.version, "declaration": entry.service.to_fields()}
