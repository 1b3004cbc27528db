#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_fence
short_description: Have a fence agent turn a machine off
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Turns a machine off by its BMC, its power strip or its hypervisor, and asks whether it is off. Where that is not said in the end, this fails.
  - The agents are those of Pacemaker, of the package C(fence-agents). One runs on the controller, since the machine itself does not answer.
extends_documentation_fragment:
  - lepton.cloud.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  agent:
    description:
      - The agent, such as V(fence_redfish) or V(fence_ipmilan), or the path of one of your own.
    type: str
    required: true
  options:
    description:
      - What the agent takes, by its own words; C(fence_redfish -o metadata) says which. They reach it by its standard input.
    type: dict
    default: {}
  wait_seconds:
    description:
      - How long the agent may take, in seconds, each time that it is asked.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Turn a host off that does not answer
  lepton.cloud.host_fence:
    agent: fence_redfish
    options:
      ip: bmc1.example.net
      username: lepton
      password: "{{ bmc_password }}"
"""

RETURN = r"""
changes:
  description: What differs.
  type: list
  elements: dict
  returned: success
  sample: [{field: power, before: 'on', after: 'off', effective: now}]
"""
