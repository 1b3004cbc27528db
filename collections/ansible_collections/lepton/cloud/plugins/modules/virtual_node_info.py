#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read virtual nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_info
short_description: Read the virtual nodes of a host
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Lists the nodes of a host that were made by M(lepton.cloud.virtual_node), or one of them.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
  - lepton.cloud.host
options:
  name:
    description:
      - Only the node of this name. No node of this name is an empty list, not an error.
    type: str
  console_bytes:
    description:
      - Also return this many of the last bytes that the node printed on its console. Needs O(name).
    type: int
"""

EXAMPLES = r"""
- name: All nodes of this host
  lepton.cloud.virtual_node_info:
  register: all_nodes
"""

RETURN = r"""
nodes:
  description: The nodes, by name.
  type: list
  elements: dict
  returned: success
  sample: [{name: web-1, state: running, vcpus: 2, max_vcpus: 8, memory: 4GiB, max_memory: 8GiB}]
addresses:
  description: The addresses of a running node that was asked for by its name, as far as its agent, a lease or the host's ARP table tells.
  type: list
  elements: str
  returned: with O(name), where it runs
  sample: [192.168.150.23]
console:
  description: The end of the node's console output.
  type: str
  returned: when O(console_bytes) is given and the node exists
  sample: "lepton guest: ready"
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import check_name
from ..module_utils._results import node_result


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(HOST_OPTIONS, name={"type": "str"}, console_bytes={"type": "int"}),
        required_by={"console_bytes": "name"},
        supports_check_mode=True,
    )
    name = module.params["name"]
    with connected(module) as host:
        if name is None:
            nodes = host.nodes()
        else:
            found = host.node(check_name(name))
            nodes = [found] if found is not None and found.boot is not None else []
        result = {"nodes": [node_result(node) for node in nodes]}
        if name is not None and nodes and nodes[0].live is not None:
            result["addresses"] = host.addresses(name)
        if nodes and module.params["console_bytes"]:
            result["console"] = host.console(name, module.params["console_bytes"])
        module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
