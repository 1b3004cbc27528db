#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: locate
short_description: Find the one host that has a node, a container or a deployment
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Looks in what every host of the play answered to M(lepton.cloud.virtual_node_info), M(lepton.cloud.container_host_info) or
    M(lepton.cloud.model_deployment_info).
  - That no host has it, or that several do, is an error.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
options:
  name:
    description:
      - The name of the node, container or deployment.
    type: str
    required: true
  kind:
    description:
      - What is looked for.
    type: str
    choices: [node, container, deployment]
    default: node
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
  host:
    description:
      - Only this host is meant.
    type: str
  sole:
    description:
      - It is an error that another host did not answer, unless O(host) is given, since that other one may have it too.
    type: bool
    default: false
  new:
    description:
      - It may be that no host has it yet. Then the answer is O(host), or the only host of the group.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Find the one host that has it
  lepton.cloud.locate:
    name: web-1
    group: hypervisors
    answers: found
  run_once: true
  register: located
"""

RETURN = r"""
host:
  description: Inventory name of the host.
  type: str
  returned: success
  sample: host1
"""
