#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: place
short_description: Choose the host for a new node or container
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Chooses among the hosts of a group, from what each answered to M(lepton.cloud.host_info), or for a container to
    M(lepton.cloud.container_host_info). The host that already has one of this name is chosen again.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
options:
  node:
    description:
      - The node's name. Either this or O(container).
    type: str
  container:
    description:
      - The container's name.
    type: str
  image:
    description:
      - The container's image. A host that has it is preferred.
    type: str
  vcpus:
    description:
      - Number of vCPUs that a node needs.
    type: int
  cpus:
    description:
      - Number of CPUs that a container needs.
    type: float
  memory:
    description:
      - Memory that it needs, with its unit.
    type: str
  host:
    description:
      - Only this host will do.
    type: str
  devices:
    description:
      - What of its host a node has to itself, as for M(lepton.cloud.virtual_node). The GPUs among that are counted, whatever their make.
    type: list
    elements: str
  host_labels:
    description:
      - Labels that a node's host must have, each as NAME=VALUE. Hosts have theirs in the variable C(lepton_labels).
    type: list
    elements: str
  near:
    description:
      - Labels of nodes, each as NAME=VALUE. Only a host that has such a node will do.
    type: list
    elements: str
  apart:
    description:
      - Labels of nodes, each as NAME=VALUE. Only a host that has no such node will do.
    type: list
    elements: str
  policy:
    description:
      - Which of the hosts that could have it is best. V(spread) leaves most on the host, in proportion to its size, and V(pack) leaves least.
      - V(best_fit) leaves least, by the largest host's size. V(usable) and V(fragmentation) keep GPUs usable for what else may come.
    type: str
    choices: [usable, fragmentation, best_fit, pack, spread]
    default: spread
  group:
    description:
      - The group of all hosts that may have it, whatever the run is limited to.
    type: str
    required: true
  answers:
    description:
      - Name of the variable in which every host registered its answer.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Choose a host
  lepton.cloud.place:
    node: web-1
    vcpus: 2
    memory: 4GiB
    group: hypervisors
    answers: capacity
  run_once: true
  register: placed
"""

RETURN = r"""
host:
  description: Inventory name of the host.
  type: str
  returned: success
  sample: host1
why:
  description: What decided.
  type: str
  returned: success
  sample: "most free memory: 62GiB of 3 hosts with room"
"""
