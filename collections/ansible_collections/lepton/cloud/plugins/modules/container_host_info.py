#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a host's containers, images and what is free for more."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_host_info
short_description: Read the containers, images and free capacity of a host
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Reports what the container engine of a host runs, which images it has, and what may still be given to containers.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
  - lepton.cloud.engine
options:
  name:
    description:
      - Only this container.
    type: str
  log_lines:
    description:
      - Also read this many of the last lines that the container O(name) wrote.
    type: int
  images:
    description:
      - Also tell the images with their sizes, and what those of Lepton were built from.
    type: bool
    default: false
  layers:
    description:
      - Also tell which layers need not be sent to this host again.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: What runs here
  lepton.cloud.container_host_info:
  register: room
"""

RETURN = r"""
engine:
  description: The engine, and the hardware that it sees. Memory in bytes.
  type: dict
  returned: success
  sample: {kind: docker, version: 20.10.24, cpus: 8, memory: 33554432000, architecture: amd64}
containers:
  description: The containers by name. Those with C(owned) false were not made by Lepton.
  type: list
  elements: dict
  returned: success
  sample: [{name: chat-1, state: running, image: "models/chat:1", owned: true}]
room:
  description:
    - What containers may have (after CPU overcommit and the memory reserve), have, and may still get. Memory in bytes.
    - A container without a limit counts as nothing.
  type: dict
  returned: success
  sample: {cpus: 32, cpus_free: 30, memory: 32480690176, memory_free: 30333206528}
ports_free:
  description: The lowest ports of O(port_range) that nobody listens on and no container would take.
  type: list
  elements: int
  returned: success
  sample: [20000, 20001]
data_dir:
  description: Where copies of datasets stand on this host.
  type: str
  returned: success
  sample: /var/lib/lepton/data
address:
  description: The address under which load balancers reach published ports.
  type: str
  returned: success
  sample: 10.0.0.7
container_images:
  description: The engine's images, by name.
  type: dict
  returned: success
  sample: {"models/chat:1": "sha256:e61ad79fdd61d10ee7248b6a2dce8a70df712ba1c9742ef33582f99600c14244"}
model_images:
  description: The engine's images, with their sizes in bytes and what those of Lepton were built from.
  type: list
  elements: dict
  returned: when O(images=true)
  sample: [{name: "models/chat:1", id: "sha256:e61ad79f", size: 402653184, model: chat, version: "1", framework: onnx, owned: true}]
layers:
  description: The chain IDs of layers that need not be sent to this host again.
  type: list
  elements: str
  returned: when O(layers=true)
  sample: ["sha256:bd00d9a3b6cf65e6f1a26b8a92c9d0ab3ad0fb1d2bbbe9b9ee0f3b2e5a5d7a2e"]
log:
  description: The last lines that the container wrote, without escape sequences.
  type: str
  returned: when O(log_lines) is given
  sample: ready
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._container import check_name
from ..module_utils._engine import ports_in_use
from ..module_utils._engine_module import ENGINE_OPTIONS, container_result, data_dir, engine_of
from ..module_utils._image_store import images, known_chains
from ..module_utils._ports import free_ports, listening_ports
from ..module_utils._units import parse_size


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            ENGINE_OPTIONS,
            name={"type": "str"},
            log_lines={"type": "int"},
            images={"type": "bool", "default": False},
            layers={"type": "bool", "default": False},
        ),
        required_by={"log_lines": "name"},
        supports_check_mode=True,
    )
    params = module.params
    with engine_of(module) as engine:
        everything = engine.containers()
        facts = engine.info()
        shown = everything if params["name"] is None else [item for item in everything if item.name == check_name(params["name"])]
        memory = max(0, facts["memory"] - parse_size(params["memory_reserve"]))
        cpus = facts["cpus"] * params["cpu_overcommit"]
        result = {
            "engine": facts,
            "containers": [container_result(item) for item in shown],
            "room": {
                "cpus": cpus,
                "cpus_free": max(0, cpus - sum(item.limits.cpus or 0 for item in everything)),
                "memory": memory,
                "memory_free": max(0, memory - sum(item.limits.memory or 0 for item in everything)),
            },
            "ports_free": free_ports(params["port_range"], ports_in_use(everything, listening_ports())),
            "address": params["address"],
            "data_dir": data_dir(module),
            "container_images": engine.image_ids(),
        }
        if params["images"]:
            result["model_images"] = images(engine)
        if params["layers"]:
            result["layers"] = sorted(known_chains(engine))
        if params["log_lines"] and shown:
            result["log"] = engine.logs(params["name"], params["log_lines"])
        module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
