#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: step
short_description: Do one step of a plan
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Calls the module of a step on the host it is for. First in check mode, and where what it would change is not what the step
    says, nothing is done.
  - In check mode it says what is left to do of the step.
  - The options that all modules of its kind share come from the host's own variable, C(lepton_host), C(lepton_engine) or
    C(lepton_balancer). Secrets of containers are named in a step, and come from the host's C(lepton_secrets).
extends_documentation_fragment:
  - lepton.cloud.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: none
    details: A step that is done already is not as it was planned, and is an error.
options:
  step:
    description:
      - The step, as M(lepton.cloud.plan) made it.
    type: dict
    required: true
  outcomes:
    description:
      - What came of the steps before this one, as the last of them answered it. It decides whether this one is still to be done.
    type: dict
    default: {}
seealso:
  - module: lepton.cloud.plan
"""

EXAMPLES = r"""
- name: "Do a step: {{ step.title }}"
  lepton.cloud.step:
    step: "{{ step }}"
    outcomes: "{{ lepton_outcomes | default({}) }}"
  delegate_to: "{{ step.host }}"
"""

RETURN = r"""
changes:
  description: What the module of the step has changed, or would change.
  type: list
  elements: dict
  returned: success
  sample: [{field: state, before: running, after: absent, effective: now}]
"""
