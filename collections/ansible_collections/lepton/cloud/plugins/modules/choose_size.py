#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The size that fits what a node has used."""

from __future__ import annotations

DOCUMENTATION = r"""
module: choose_size
short_description: Choose a size for a node by what it has used
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Runs on the controller, and changes nothing. CPUs are chosen so that 95 of 100 moments keep at most 70% of them busy, memory a quarter above the
    most that was used. A node keeps what it has while that is nearly right, so that it does not go to and fro.
  - Where a Prometheus is named, what it knows of the CPUs counts, over a longer time. Memory is always what the guest itself said.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
options:
  usage:
    description:
      - What M(lepton.cloud.virtual_node_usage) answered.
    type: dict
    required: true
  prometheus:
    description:
      - The address of a Prometheus that watches the host with its exporter of libvirt, such as V(http://10.0.0.9:9090).
    type: str
  window_minutes:
    description:
      - How far back Prometheus is asked.
    type: int
    default: 60
  min_vcpus:
    description:
      - Not fewer.
    type: int
    default: 1
  max_vcpus:
    description:
      - Not more. What the node can have without a restart where not given.
    type: int
  min_memory:
    description:
      - Not less.
    type: str
    default: 128MiB
  max_memory:
    description:
      - Not more. What the node can have without a restart where not given.
    type: str
"""

EXAMPLES = r"""
- name: Choose
  lepton.cloud.choose_size:
    usage: "{{ usage }}"
    max_vcpus: 8
  register: chosen
"""

RETURN = r"""
vcpus:
  description: How many vCPUs fit.
  type: int
  returned: success
  sample: 2
memory:
  description: How much memory fits.
  type: str
  returned: success
  sample: 1280MiB
size_reasons:
  description: Why.
  type: list
  elements: str
  returned: success
  sample: ["in 95 of 100 moments it used at most 1.30 vCPUs, which are 70% of 2"]
"""
