#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a load balancer's services, servers and counters."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_balancer_info
short_description: Read the services of a load balancer, with each server's state, sessions, rates, errors and latency
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Reports what HAProxy itself says of its servers now, and whether its files agree with that.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
  - lepton.cloud.balancer
options:
  name:
    description:
      - Only this service.
    type: str
  pods:
    description:
      - Wait until so many of the servers of the service O(name) are pods that are ready and up, no more and no fewer. For services of
        backend C(deployment), whose servers come and go with the pods.
    type: int
  wait_seconds:
    description:
      - How long that may take.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: What clients reach here
  lepton.cloud.load_balancer_info:
  register: table
"""

RETURN = r"""
version:
  description: HAProxy's version.
  type: str
  returned: success
  sample: 2.6.12
services:
  description:
    - The services by name, with what is wanted of each, its servers, and what was counted since HAProxy's last reload.
    - Times are milliseconds, averages over the last 1024 requests. C(disagreement) says where a reload would change something.
  type: list
  elements: dict
  returned: success
  sample:
    - name: chat
      replicas: 1
      version: 1
      declaration: {image: "models/chat:1", port: 8080, listen_port: 8000}
      servers: [{name: chat-1, address: 127.0.0.1, port: 20000, weight: 100, state: ready, status: UP, sessions: 3, response_ms: 12}]
      disagreement: []
proxies:
  description: The proxies of HAProxy's own configuration, which M(lepton.cloud.load_balancer_service) can take the place of.
  type: list
  elements: dict
  returned: success
  sample: [{kind: listen, name: web, ports: [80], default_backend: "", other_backends: [], servers: [{name: web1, address: 10.0.0.5, port: 8080, weight: 100}]}]
foreign:
  description: The backends of this HAProxy that were not made by Lepton, with the names of their servers.
  type: dict
  returned: success
  sample: {intranet: [wiki-1]}
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._balancer import BalancerError, Entry, agreement, is_up
from ..module_utils._balancer_module import BALANCER_OPTIONS, balancer_of, entry_result
from ..module_utils._command import clean
from ..module_utils._foreign import Proxy, read_proxies
from ..module_utils._haproxy import Balancer
from ..module_utils._pods import is_pod

POLL_SECONDS = 0.2
COUNTED = ("sessions", "queued", "rate", "requests", "http_2xx", "http_4xx", "http_5xx", "connection_errors", "response_errors", "retries")
SERVER_COUNTED = (*COUNTED, "status", "queue_ms", "connect_ms", "response_ms", "total_ms", "check", "last_check")


def service_result(entry: Entry, running: dict, rows: list) -> dict:
    """Return one service with its servers and counters."""
    counted = {row["name"]: row for row in rows}
    servers = []
    for server in running.values():
        row = counted.get(server.name, {})
        shown = {"name": server.name, "address": server.address, "port": server.port, "weight": server.weight, "state": server.state}
        servers.append(dict(shown, **{field: row[field] for field in SERVER_COUNTED if field in row}))
    total = counted.get("BACKEND", {})
    return dict(
        entry_result(entry),
        servers=servers,
        counters={field: total[field] for field in COUNTED if field in total},
        disagreement=agreement(entry, running),
    )


def proxy_result(proxy: Proxy) -> dict:
    """Return a proxy of HAProxy's own configuration."""
    servers = [{"name": server.name, "address": server.address, "port": server.port, "weight": server.weight} for server in proxy.servers]
    shown = {"kind": proxy.kind, "name": clean(proxy.name), "ports": proxy.ports, "default_backend": proxy.default_backend}
    return dict(shown, other_backends=proxy.other_backends, servers=servers, lost=[clean(word) for word in proxy.lost])


def wait_for_pods(balancer: Balancer, name: str, wanted: int, seconds: float) -> None:
    """Wait until so many pods of a service are ready and up; raise BalancerError that says how many are."""
    deadline = time.monotonic() + seconds
    while True:
        rows = {row["name"]: row for row in balancer.statistics().get(name, [])}
        ready = [server.name for server in balancer.servers().get(name, {}).values() if server.state == "ready" and is_pod(name, server.name)]
        serving = [server for server in ready if server in rows and is_up(rows[server])]
        if len(serving) == wanted == len(ready):
            return
        if time.monotonic() > deadline:
            hint = "does lepton-endpoints run on this load balancer, and reach the cluster?"
            raise BalancerError("requests for %s go to %d pods, and not to %d, after %d s: %s" % (name, len(serving), wanted, seconds, hint))
        time.sleep(POLL_SECONDS)  # HAProxy tells nobody when a server comes or goes


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(BALANCER_OPTIONS, name={"type": "str"}, pods={"type": "int"}, wait_seconds={"type": "int", "default": 60}),
        required_by={"pods": "name"},
        supports_check_mode=True,
    )
    name = module.params["name"]
    with balancer_of(module) as balancer:
        if module.params["pods"] is not None and not module.check_mode:
            wait_for_pods(balancer, name, module.params["pods"], module.params["wait_seconds"])
        entries = balancer.entries()
        running, rows = balancer.servers(), balancer.statistics()
        ours = {entry.name for entry in entries}
        module.exit_json(
            changed=False,
            version=balancer.version(),
            services=[service_result(entry, running.get(entry.name, {}), rows.get(entry.name, [])) for entry in entries if name in (None, entry.name)],
            foreign={backend: sorted(servers) for backend, servers in running.items() if backend not in ours},
            proxies=[proxy_result(proxy) for proxy in read_proxies(balancer.own_config())],
        )


if __name__ == "__main__":
    main()
