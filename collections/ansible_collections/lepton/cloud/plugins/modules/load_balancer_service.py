#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage services at a load balancer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_balancer_service
short_description: Manage a service at a load balancer, the address that clients reach, and keep what is wanted of it
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Writes a service's frontend and backend into a configuration file of its own, lets HAProxy check it, and reloads HAProxy without
    losing a connection where a reload is needed.
  - What is wanted of the service, its declaration and its number of replicas, is kept in the same file. So a replica that has died is
    a difference to mend, and not a smaller wish.
  - Its servers are M(lepton.cloud.load_balancer_server)'s, and stay as they are.
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
  name:
    description:
      - The service's name.
    type: str
    required: true
  state:
    description:
      - V(absent) removes it. One that still has servers is left alone, unless all of them are down.
      - V(given_back) removes it, and what it had replaced is served as before.
    type: str
    choices: [present, absent, given_back]
    default: present
  declaration:
    description:
      - What the service is, as C(lepton_services) of the inventory declares it. Needed to create.
    type: dict
  replicas:
    description:
      - How many replicas are wanted.
    type: int
  version:
    description:
      - Which version of what is wanted this is, to bring a load balancer that was away to where the others are. One more than before
        where none is given.
    type: int
  replaces:
    description:
      - Proxies of HAProxy's own configuration that this service takes the place of, in the same reload. Their servers become its own, and
        their sections are kept as comments.
    type: list
    elements: str
seealso:
  - module: lepton.cloud.load_balancer_server
"""

EXAMPLES = r"""
- name: An address for the chat model
  lepton.cloud.load_balancer_service:
    name: chat
    replicas: 2
    declaration:
      image: models/chat:1
      port: 8080
      listen_port: 8000
"""

RETURN = r"""
service:
  description: What is wanted of the service after the change, or as it is in check mode. Null when there is none.
  type: dict
  returned: success
  sample: {name: chat, replicas: 2, version: 1, declaration: {image: "models/chat:1", port: 8080, listen_port: 8000}}
changes:
  description: The fields that differ, from what to what.
  type: list
  elements: dict
  returned: success
  sample: [{field: replicas, before: 1, after: 2, effective: now}]
reloaded:
  description: Whether HAProxy was reloaded, or would be in check mode.
  type: bool
  returned: success
  sample: false
"""

from dataclasses import replace as dataclass_replace
from typing import Sequence

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._balancer import BalancerError, Entry, is_down, plan_entry, render
from ..module_utils._balancer_module import BALANCER_OPTIONS, balancer_of, entry_result
from ..module_utils._changes import Change, diff_of
from ..module_utils._foreign import carried, given_back, read_proxies, without
from ..module_utils._haproxy import Balancer, proxies
from ..module_utils._service import check_name, read_service


def remove(balancer: Balancer, entry: Entry, *, check: bool) -> list:
    """Remove a service that nobody serves any more, and return what that changes."""
    rows = balancer.statistics().get(entry.name, [])
    serving = sorted(row["name"] for row in rows if row["name"] not in ("FRONTEND", "BACKEND") and not is_down(row))
    if serving:
        raise BalancerError("%s still has servers, so it is not removed: %s" % (entry.name, ", ".join(serving)))
    if not check:
        balancer.remove(entry.name)
        balancer.reload()
    return [Change("service", "present", "absent"), Change("replicas", entry.replicas, None)]


def still_there(balancer: Balancer, names: Sequence[str]) -> list:
    """Return those of these proxies that HAProxy's own configuration still has."""
    known = {proxy.name for proxy in read_proxies(balancer.own_config())}
    return [name for name in names if name in known]


def replace_proxies(balancer: Balancer, entry: Entry | None, wanted: Entry, changes: list, names: list, *, check: bool) -> tuple:
    """Let a service take the place of proxies of somebody else, with their servers, in one reload."""
    before = balancer.own_config()
    servers = carried(read_proxies(before), names)
    wanted = dataclass_replace(wanted, servers=(*servers, *(server for server in wanted.servers if server.name not in {item.name for item in servers})))
    changes = [*changes, Change("proxies", names, [])]
    if not check:
        balancer.exchange(wanted.name, wanted, without(before, wanted.name, names))
        try:
            balancer.reload()
        except BalancerError:
            balancer.exchange(wanted.name, entry, before)
            raise
    return changes, True, entry if check else wanted


def give_back(balancer: Balancer, name: str, *, check: bool) -> tuple:
    """Remove a service, and have what it had replaced served as before."""
    entry, before = balancer.entry(name), balancer.own_config()
    after = given_back(before, name)
    if entry is None and after == before:
        left = balancer.runs(name) and not balancer.is_foreign(name)  # cut short before its reload
        if left and not check:
            balancer.reload()
        return [Change("service", "present", "given back")] if left else [], left, None
    if not check:
        balancer.exchange(name, None, after)
        balancer.reload()
    return [Change("service", "present", "given back")], True, entry if check else None


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            BALANCER_OPTIONS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "absent", "given_back"], "default": "present"},
            declaration={"type": "dict"},
            replicas={"type": "int"},
            version={"type": "int"},
            replaces={"type": "list", "elements": "str"},
        ),
        supports_check_mode=True,
    )
    params, check = module.params, module.check_mode
    with balancer_of(module) as balancer:
        name = check_name(params["name"])
        service = None if params["declaration"] is None else read_service(name, params["declaration"])

        def work() -> tuple:
            entry = balancer.entry(name)
            if params["state"] == "absent" and entry is not None:
                return remove(balancer, entry, check=check), True, entry if check else None
            if params["state"] == "absent":
                left = balancer.runs(name) and not balancer.is_foreign(name)  # a removal that was cut short before its reload
                if left and not check:
                    balancer.reload()
                return [Change("service", "present", "absent")] if left else [], left, None
            if params["state"] == "given_back":
                return give_back(balancer, name, check=check)
            replaced = still_there(balancer, params["replaces"] or ())
            if entry is None and name not in replaced and balancer.is_foreign(name):
                raise BalancerError(
                    "this load balancer has a backend %s that was not made by Lepton, so it is left alone: adopt it, or choose another name" % name
                )
            wanted, changes = plan_entry(entry, name, service=service, replicas=params["replicas"], version=params["version"])
            if replaced:
                return replace_proxies(balancer, entry, wanted, changes, replaced, check=check)
            text = render(wanted, balancer.listen_address)
            cut_short = entry is not None and not balancer.runs(name)  # written, and never read by HAProxy
            reload = entry is None or cut_short or proxies(render(entry, balancer.listen_address)) != proxies(text)
            if cut_short and not changes:
                changes = [Change("service", "not read", "present")]
            if check:
                return changes, bool(changes) and reload, entry
            if changes and (balancer.write(wanted) or reload):
                try:
                    balancer.reload()
                except BalancerError:
                    # What does not come into effect is not kept either.
                    balancer.remove(name) if entry is None else balancer.write(entry)
                    raise
            return changes, bool(changes) and reload, wanted

        if check:
            changes, reloaded, entry = work()
        else:
            with balancer.lock():
                changes, reloaded, entry = work()
        module.exit_json(
            changed=bool(changes),
            diff=diff_of(changes),
            changes=[change._asdict() for change in changes],
            reloaded=reloaded,
            service=None if entry is None else entry_result(entry),
        )


if __name__ == "__main__":
    main()
