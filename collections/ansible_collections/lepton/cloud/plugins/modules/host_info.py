#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a host's capacity."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read what a host has, has given, and has left
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Reports CPUs and memory of a host that carries nodes, what its nodes were given, and what is free.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
  - lepton.cloud.host
options:
  image:
    description:
      - Also say how large a disk from this image is.
    type: str
"""

EXAMPLES = r"""
- name: What is free here
  lepton.cloud.host_info:
  register: capacity
"""

RETURN = r"""
host:
  description: The hardware, with its NUMA nodes where there are several, and what each has left for nodes that are bound to it. Memory in bytes.
  type: dict
  returned: success
  sample: {hostname: host1, cpus: 64, memory: 549755813888, numa: []}
capacity:
  description: What nodes may have (after CPU overcommit and the memory reserve), have, and may still get. Memory in bytes.
  type: dict
  returned: success
  sample: {vcpus: 256, vcpus_used: 12, vcpus_free: 244, memory: 548682072064, memory_used: 0, memory_free: 548682072064}
huge_pages:
  description: What is reserved as huge pages on the host, of which RV(capacity) has nothing, and what nodes have of it. In bytes.
  type: dict
  returned: success
  sample: {memory: 68719476736, memory_used: 0, memory_free: 68719476736}
nodes:
  description: The nodes of this host, by name.
  type: list
  elements: dict
  returned: success
  sample: [{name: web-1, state: running, vcpus: 2, memory: 4GiB}]
images:
  description: The names of the images in the host's folder for them.
  type: list
  elements: str
  returned: success
  sample: [debian-12]
image_size:
  description: How many bytes a disk from O(image) has at least. Null for an image that is no disk, or that the host does not have.
  type: int
  returned: success
  sample: 3221225472
ports_free:
  description: The lowest ports of O(port_range) that nobody listens on and no node would take.
  type: list
  elements: int
  returned: success
  sample: [21000, 21001]
address:
  description: The address under which load balancers reach forwarded ports.
  type: str
  returned: success
  sample: 10.0.0.7
closed:
  description: Why nothing new may be placed on the host. Null where it may, see M(lepton.cloud.host_placement).
  type: str
  returned: success
  sample: null
gpus:
  description: The host's GPUs, and which node has them. C(why) says why a new node cannot have one, and is empty for those that are free.
  type: list
  elements: dict
  returned: success
  sample: [{address: "0000:3b:00.0", kind: nvidia-gpu, numa: 0, node: web-1, why: it is of node web-1}]
migration:
  description: How nodes come to this host from others while they run, with its folders and limits. V(uri) is null where none do.
  type: dict
  returned: success
  sample: {uri: "qemu+tls://kvm1/system", image_dir: /var/lib/lepton/images, disk_dir: /var/lib/lepton/disks}
disk_free:
  description: How many bytes are free for disks. Null where that cannot be told.
  type: int
  returned: success
  sample: 214748364800
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._host_lock import closed_host
from ..module_utils._libvirt import Host, owned
from ..module_utils._local_files import LocalFiles
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import FORWARD, Node
from ..module_utils._pci import devices_taken, read_devices, unusable
from ..module_utils._ports import free_ports, listening_ports
from ..module_utils._results import capacity_result, memory_result, node_result

MIGRATION = ("uri", "image_dir", "disk_dir", "cpu_overcommit", "memory_reserve")


def gpus(host: Host, domains: list[Node]) -> list[dict]:
    """Return the GPUs of a host that is this machine."""
    devices = read_devices() if isinstance(host.files, LocalFiles) else []
    taken = devices_taken(domains)
    return [
        {"address": device.address, "kind": device.gpu, "numa": device.numa, "node": taken.get(device.address), "why": unusable(device, devices, taken)}
        for device in devices
        if device.gpu
    ]


def main() -> None:
    module = AnsibleModule(argument_spec=dict(HOST_OPTIONS, image={"type": "str"}), supports_check_mode=True)
    params = module.params
    with connected(module) as host:
        domains = host.domains()
        nodes = owned(domains)
        forwards = [found for node in nodes for pair in (node.boot.forward_ports if node.boot else ()) if (found := FORWARD.fullmatch(pair))]
        module.exit_json(
            changed=False,
            host=host.facts(domains),
            capacity=capacity_result(host.capacity(domains)),
            huge_pages=memory_result(host.capacity(domains, huge=True)),
            nodes=[node_result(node) for node in nodes],
            address=params["address"],
            ports_free=free_ports(params["port_range"], {*listening_ports(), *(int(found.group(2)) for found in forwards)}),
            images=host.images(),
            image_size=None if module.params["image"] is None else host.image_size(module.params["image"]),
            disk_free=host.disk_free(),
            closed=closed_host(host.lock_dir),
            gpus=gpus(host, domains),
            migration={option: params["migration_uri" if option == "uri" else option] for option in MIGRATION},
        )


if __name__ == "__main__":
    main()
