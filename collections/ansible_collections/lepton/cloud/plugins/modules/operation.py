#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of an action plugin; there is no module code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: operation
short_description: Check a request and take its locks
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - The first task of every Lepton playbook. It reads the playbook's own argument specification, checks the extra variables
    against it as every other door does (types, unknown names, rules between parameters), and answers them typed and complete.
  - Where E(LEPTON_SOCKET) names the socket of a running Lepton service, the operation's locks are taken there until the
    playbook ends.
  - Extra variables that start with V(ansible_) or V(lepton_) are settings and not parameters.
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
  hosts:
    description:
      - A group that must have a host. Ansible would skip a play without hosts and call it a success.
    type: str
"""

EXAMPLES = r"""
- name: Check the arguments and take the locks
  lepton.cloud.operation:
    hosts: hypervisors
  register: operation
"""

RETURN = r"""
operation:
  description: Noun and verb.
  type: str
  returned: success
  sample: node.resize
arguments:
  description: The typed arguments with their defaults.
  type: dict
  returned: success
  sample: {node: web-1, vcpus: 3}
"""
