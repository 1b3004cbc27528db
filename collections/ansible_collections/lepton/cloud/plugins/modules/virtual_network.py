#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network for nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_network
short_description: A network of libvirt's for nodes
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Has a network defined, running, and started with the host. Nodes join it with O(lepton.cloud.virtual_node#module:network=network:NAME).
  - One that is there and is otherwise stays as it is, and is an error, since nodes may use it.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.host
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
      - The network's name.
    type: str
    required: true
  mode:
    description:
      - V(nat) reaches outside through the host, V(isolated) only the host and each other, V(bridge) is the host's own network.
    type: str
    choices: [nat, isolated, bridge]
    default: nat
  host_address:
    description:
      - The host's own address in it with its prefix, such as V(192.168.150.1/24). Nodes get leases of the rest. Not with O(mode=bridge).
    type: str
  bridge:
    description:
      - The bridge of the host, with O(mode=bridge).
    type: str
"""

EXAMPLES = r"""
- name: A network behind the host
  lepton.cloud.virtual_network:
    name: models
    host_address: 192.168.150.1/24

- name: The host's own network
  lepton.cloud.virtual_network:
    name: office
    mode: bridge
    bridge: br0
"""

RETURN = r"""
changes:
  description: What differs.
  type: list
  elements: dict
  returned: success
  sample: [{field: state, before: absent, after: active, effective: now}]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import diff_of
from ..module_utils._libvirt import Host
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._network import MODES, Found, Network, check_network, plan_network, read_network, render_network


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            HOST_OPTIONS,
            name={"type": "str", "required": True},
            mode={"type": "str", "choices": list(MODES), "default": "nat"},
            host_address={"type": "str"},
            bridge={"type": "str"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    with connected(module) as host:
        name, others = params["name"], observe(host)
        found = others.pop(name, None)
        taken = [(other, there.network.address) for other, there in others.items() if there.network.address]
        wanted = check_network(name, Network(params["mode"], params["host_address"], params["bridge"]), taken)
        changes = plan_network(name, wanted, found)
        if changes and not module.check_mode:
            apply(host, name, wanted, found)
        module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes])


def observe(host: Host) -> dict[str, Found]:
    networks = host.connection.listAllNetworks()
    return {network.name(): Found(read_network(network.XMLDesc()), bool(network.isActive()), bool(network.autostart())) for network in networks}


def apply(host: Host, name: str, wanted: Network, found: Found | None) -> None:
    """Bring a network about. One that cannot be started is not left behind, where it is new."""
    network = host.connection.networkLookupByName(name) if found else host.connection.networkDefineXML(render_network(name, wanted))
    try:
        if not network.isActive():
            network.create()
        network.setAutostart(1)
    except Exception:
        if found is None:
            network.undefine()
        raise


if __name__ == "__main__":
    main()
