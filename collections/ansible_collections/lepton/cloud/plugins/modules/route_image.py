#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name, which does the work where C(ansible-playbook) runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: route_image
short_description: Choose where an image is taken from and brought to
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Looks in what every host of the play answered to M(lepton.cloud.container_host_info).
  - That no host has the image, that several have different ones under its name, or that a host it goes to did not answer, is an error.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
options:
  image:
    description:
      - The image.
    type: str
    required: true
  from_host:
    description:
      - The host to take it from. The first that has it where none is given.
    type: str
  to_hosts:
    description:
      - The hosts to bring it to. All of them where none are given.
    type: list
    elements: str
  group:
    description:
      - The group of all hosts that may have it.
    type: str
    required: true
  answers:
    description:
      - Name of the variable in which every host registered its answer.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Choose where it comes from and where it goes
  lepton.cloud.route_image:
    image: models/sentiment:3
    group: container_hosts
    answers: room
  run_once: true
  register: route
"""

RETURN = r"""
from_host:
  description: Inventory name of the host that has it.
  type: str
  returned: success
  sample: host1
to_hosts:
  description: The hosts that lack it.
  type: list
  elements: str
  returned: success
  sample: [host2, host3]
id:
  description: The image's identity.
  type: str
  returned: success
  sample: sha256:5d20c808ce198565ff70b3ed23a991dd49afac45dece63474b27ce6ed036adc6
without:
  description: Layers, by chain ID, that all of these hosts have already.
  type: list
  elements: str
  returned: success
  sample: []
"""
