#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running node uses."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_usage
short_description: Measure what a running node uses
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Looks at a node again and again for some time, from its host, and tells how many of its vCPUs and how much memory it used. Memory is what the
    guest itself says by the driver of its balloon.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
  - lepton.cloud.host
options:
  name:
    description:
      - The node's name.
    type: str
    required: true
  seconds:
    description:
      - For how long.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: What does it use
  lepton.cloud.virtual_node_usage:
    name: web-1
  register: usage
"""

RETURN = r"""
vcpus_used:
  description: How many vCPUs it kept busy, at each look.
  type: list
  elements: float
  returned: success
  sample: [1.2, 1.4]
memory_used:
  description: How many bytes of memory its guest used, at each look. Empty where it does not say.
  type: list
  elements: int
  returned: success
  sample: [1288490188]
node:
  description: The node as it is.
  type: dict
  returned: success
  sample: {name: web-1, state: running, vcpus: 2, memory: 4GiB}
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._libvirt import Host
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import NodeError, check_name
from ..module_utils._results import node_result

EVERY_SECONDS = 0.5


def measure(host: Host, name: str, seconds: float) -> tuple[list[float], list[int]]:
    """Return (vCPUs used, bytes of memory used) at each look; raise NodeError where the node does not run, or ends meanwhile."""
    vcpus, memory, before = [], [], None
    deadline = time.monotonic() + seconds
    while True:
        node = host.node(name)
        if node is None or node.boot is None:
            raise NodeError("this host has no node %s" % name)
        if node.live is None:
            raise NodeError("%s is %s, and what it uses can only be measured while it runs" % (name, node.state))
        now = time.monotonic(), host.cpu_seconds(name)
        if before is not None:
            vcpus.append((now[1] - before[1]) / (now[0] - before[0]))
        if node.memory_used is not None:
            memory.append(node.memory_used)
        if now[0] > deadline:
            return vcpus, memory
        before = now
        time.sleep(EVERY_SECONDS)  # between two looks at what has no event


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(HOST_OPTIONS, name={"type": "str", "required": True}, seconds={"type": "int", "default": 30}), supports_check_mode=True
    )
    name = check_name(module.params["name"])
    with connected(module) as host:
        vcpus, memory = measure(host, name, module.params["seconds"])
        module.exit_json(changed=False, vcpus_used=[round(value, 3) for value in vcpus], memory_used=memory, node=node_result(host.node(name)))


if __name__ == "__main__":
    main()
