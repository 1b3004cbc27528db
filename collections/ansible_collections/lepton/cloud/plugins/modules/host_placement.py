#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether anything new may be placed on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_placement
short_description: Close a host to new nodes, or open it again
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - What runs on the host goes on. That it is closed, and why, stands on the host itself and is told by M(lepton.cloud.host_info).
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.host
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  closed:
    description:
      - Why nothing new may be placed here. The host is open where nothing is given.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Nothing new here
  lepton.cloud.host_placement:
    closed: its memory is replaced on Friday
"""

RETURN = r"""
closed:
  description: Why nothing new may be placed here. Null for a host that is open.
  type: str
  returned: success
  sample: its memory is replaced on Friday
changes:
  description: What differs.
  type: list
  elements: dict
  returned: success
  sample: [{field: closed, before: null, after: its memory is replaced on Friday, effective: now}]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import Change, diff_of
from ..module_utils._command import clean
from ..module_utils._host_lock import close_host, closed_host
from ..module_utils._module import HOST_OPTIONS, connected

LONGEST = 200


def main() -> None:
    module = AnsibleModule(argument_spec=dict(HOST_OPTIONS, closed={"type": "str", "default": ""}), supports_check_mode=True)
    wanted = clean(module.params["closed"]).strip()[:LONGEST] or None
    with connected(module) as host:
        now = closed_host(host.lock_dir)
        changes = [] if now == wanted else [Change("closed", now, wanted)]
        if changes and not module.check_mode:
            close_host(host.lock_dir, wanted)
        module.exit_json(changed=bool(changes), closed=wanted, diff=diff_of(changes), changes=[change._asdict() for change in changes])


if __name__ == "__main__":
    main()
