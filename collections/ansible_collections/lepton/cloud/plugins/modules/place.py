#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: place
short_description: Choose the host for a new node
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Chooses among the hosts of the play, from what each answered to M(lepton.cloud.host_info). The host that already has a
    node of this name is chosen again.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
options:
  node:
    description:
      - The node's name.
    type: str
    required: true
  vcpus:
    description:
      - Number of vCPUs that it needs.
    type: int
    required: true
  memory:
    description:
      - Memory that it needs, with its unit.
    type: str
    required: true
  host:
    description:
      - Only this host will do.
    type: str
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
