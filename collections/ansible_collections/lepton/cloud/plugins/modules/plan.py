#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Plan a composite operation as a list of steps
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Makes the list of steps of an operation whose later steps need what earlier ones bring about, where check mode of a row of
    tasks would lie. Each step is one module call on one host, with the fields that it must find and the fields that it brings about.
  - With the extra variable C(lepton_plan), a plan that was made before, only that list is answered, and only while the same list
    would be planned again. This is how what was approved is what runs.
extends_documentation_fragment:
  - lepton.cloud.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: Nothing is changed.
  idempotent:
    support: full
options:
  operation:
    description:
      - The operation, noun and verb, such as V(node.rebuild).
    type: str
    required: true
  arguments:
    description:
      - Its arguments, as M(lepton.cloud.operation) answered them.
    type: dict
    required: true
  answers:
    description:
      - For each group of hosts that were asked, the name of the variable in which they registered their answers.
    type: dict
    required: true
  declared:
    description:
      - What the inventory declares that the plan needs, such as its services.
    type: dict
seealso:
  - module: lepton.cloud.step
"""

EXAMPLES = r"""
- name: Plan the steps
  lepton.cloud.plan:
    operation: node.rebuild
    arguments: "{{ request }}"
    answers: {hypervisors: room}
  run_once: true
  register: plan
"""

RETURN = r"""
steps:
  description: The steps, in order.
  type: list
  elements: dict
  returned: success
  sample:
    - title: remove web-1 with its disk
      host: host1
      module: lepton.cloud.virtual_node
      args: {name: web-1, state: absent}
      before: {state: running}
      after: {state: absent}
lepton_plan:
  description: The steps with a digest, as the extra variable C(lepton_plan) takes them.
  type: dict
  returned: when a plan was made
  sample: {steps: [], digest: 4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945}
"""
