#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Add, drain, change and remove servers of a load-balanced service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_balancer_server
short_description: Manage one server of a service at a load balancer, while it runs
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Changes the running HAProxy over its Runtime API, without a reload, and writes its configuration file to agree, so that a later
    reload changes nothing. HAProxy checks the file before it takes the place of the old one.
  - A server that goes is drained first. When its sessions have not ended within O(drain_seconds), it stays as it was.
  - Every answer of HAProxy is read, and one that is no success is an error.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.balancer
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  service:
    description:
      - The service, made by M(lepton.cloud.load_balancer_service).
    type: str
    required: true
  name:
    description:
      - The server's name.
    type: str
    required: true
  state:
    description:
      - V(ready) takes sessions, V(drain) only finishes those it has, V(maint) gets neither sessions nor checks.
      - V(absent) drains and removes it.
    type: str
    choices: [ready, drain, maint, absent]
    default: ready
  address:
    description:
      - Its address. Needed to add it.
    type: str
  port:
    description:
      - Its port. Needed to add it.
    type: int
  weight:
    description:
      - Its share of the sessions, from 1 to 256. 100 for a new one.
    type: int
  drain_seconds:
    description:
      - How long its sessions may take to end. That of the service where none is given.
    type: int
  wait_seconds:
    description:
      - How long HAProxy's own check may take to find a new server up.
    type: int
    default: 20
  watch_seconds:
    description:
      - How long to watch the answers of a server that was added. One that answers with more errors than allowed is drained, and an error.
    type: int
    default: 0
  max_error_rate:
    description:
      - The share of errors, from 0 to 1, that a watched server may have above that of the other servers.
    type: float
    default: 0.05
seealso:
  - module: lepton.cloud.load_balancer_service
  - module: lepton.cloud.load_balancer_info
"""

EXAMPLES = r"""
- name: One more replica
  lepton.cloud.load_balancer_server:
    service: chat
    name: chat-2
    address: 10.0.0.7
    port: 20001

- name: Out of rotation, when its sessions have ended
  lepton.cloud.load_balancer_server:
    service: chat
    name: chat-2
    state: absent
    drain_seconds: 120
"""

RETURN = r"""
server:
  description: The server after the change, or as it is in check mode. Null when there is none.
  type: dict
  returned: success
  sample: {name: chat-2, address: 10.0.0.7, port: 20001, weight: 100, state: ready}
changes:
  description: The fields that differ, from what to what.
  type: list
  elements: dict
  returned: success
  sample: [{field: state, before: absent, after: ready, effective: now}]
"""

import socket
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._balancer import ADDRESS, BalancerError, failing, plan_server
from ..module_utils._balancer_module import BALANCER_OPTIONS, balancer_of
from ..module_utils._haproxy import Balancer
from ..module_utils._service import check_name

POLL_SECONDS = 0.05
WATCH_POLL_SECONDS = 0.2


def wait_up(balancer: Balancer, service: str, name: str, seconds: float) -> None:
    """Wait until HAProxy's own check has found the server up; raise BalancerError with what it found else."""
    deadline = time.monotonic() + seconds
    while True:
        row = next((row for row in balancer.statistics().get(service, []) if row["name"] == name), None)
        if row is not None and row["status"] == "UP" and row["check"].endswith("OK"):
            return
        if time.monotonic() > deadline:
            found = "nothing" if row is None else "%s %s" % (row["check"], row["last_check"])
            raise BalancerError("HAProxy did not find %s/%s up within %d s: its check says %s" % (service, name, seconds, found))
        time.sleep(POLL_SECONDS)


def resolved(address: str | None) -> str | None:
    """Return what HAProxy will show of an address: it looks up a host's name once, and knows it by its number from then on."""
    if address is None or not ADDRESS.fullmatch(address) or ":" in address:  # IPv6 has numbers only
        return address
    try:
        return str(socket.getaddrinfo(address, None, family=socket.AF_INET, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise BalancerError("address: %s is not known to this load balancer: %s" % (address, error)) from error


def watch(balancer: Balancer, service: str, name: str, seconds: float, allowed: float) -> None:
    """Watch what a new server answers for a while; raise BalancerError when too much of it is errors."""
    before = balancer.statistics().get(service, [])
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(WATCH_POLL_SECONDS, seconds))  # the load is real, and takes its time to show what the server does with it
        trouble = failing(name, before, balancer.statistics().get(service, []), allowed)
        if trouble:
            balancer.command("set server %s/%s state drain" % (service, name))  # at once, whatever is done about it then
            raise BalancerError("%s/%s does not serve well, and gets no more requests: %s" % (service, name, trouble))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            BALANCER_OPTIONS,
            service={"type": "str", "required": True},
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["ready", "drain", "maint", "absent"], "default": "ready"},
            address={"type": "str"},
            port={"type": "int"},
            weight={"type": "int"},
            drain_seconds={"type": "int"},
            wait_seconds={"type": "int", "default": 20},
            watch_seconds={"type": "int", "default": 0},
            max_error_rate={"type": "float", "default": 0.05},
        ),
        supports_check_mode=True,
    )
    params = module.params
    service, name = params["service"], params["name"]

    with balancer_of(module) as balancer:
        params["address"] = resolved(params["address"])

        def plan():  # noqa: ANN202
            entry = balancer.entry(check_name(service))
            if entry is None:
                if params["state"] == "absent":
                    module.exit_json(changed=False, diff={"before": {}, "after": {}}, changes=[], server=None)
                raise BalancerError("this load balancer has no service %s" % service)
            running = balancer.servers().get(service, {})
            chosen = {option: params[option] for option in ("state", "address", "port", "weight")}
            return entry, plan_server(entry, running, name, **chosen)

        if module.check_mode:
            entry, planned = plan()
        else:
            with balancer.lock():  # nobody waits in it for sessions to end
                entry, planned = plan()
                if "wait" in planned.steps:
                    before = balancer.servers()[service][name].state
                    balancer.drain(service, name)
                elif planned.changed:
                    balancer.apply_server(entry, name, planned)
            if "wait" in planned.steps:
                seconds = entry.service.drain_seconds if params["drain_seconds"] is None else params["drain_seconds"]
                try:
                    balancer.wait_drained(service, name, seconds)
                except BalancerError as error:
                    if before == "drain":
                        raise BalancerError("%s, so it drains on" % error) from error
                    balancer.command("set server %s/%s state %s" % (service, name, before))
                    raise BalancerError("%s, so it is as it was" % error) from error
                with balancer.lock():
                    entry, last = plan()
                    balancer.apply_server(entry, name, last)
            if "add" in planned.steps and params["state"] == "ready":
                wait_up(balancer, service, name, params["wait_seconds"])
                watch(balancer, service, name, params["watch_seconds"], params["max_error_rate"])
        server = balancer.servers().get(service, {}).get(name)
        module.exit_json(
            changed=planned.changed,
            diff=planned.diff(),
            changes=[change._asdict() for change in planned.changes],
            server=None if server is None else {field: getattr(server, field) for field in ("name", "address", "port", "weight", "state")},
        )


if __name__ == "__main__":
    main()
