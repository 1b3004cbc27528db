#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a domain is, and what it is called."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_identity
short_description: Adopt a domain that was made elsewhere, or give a node another name
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Adopting puts Lepton's mark on a domain, whether it runs or not, and changes nothing else of it. Its disks are never deleted.
  - A node that is stopped can be given another name, and its files with it.
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
  name:
    description:
      - The node's name.
    type: str
    required: true
  new_name:
    description:
      - Another name. The node must be stopped, and have no snapshots.
    type: str
  labels:
    description:
      - Labels of a domain that is adopted.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: A guest that was made with virt-install is a node from now on
  lepton.cloud.virtual_node_identity:
    name: db01

- name: Another name
  lepton.cloud.virtual_node_identity:
    name: web-1
    new_name: web-old
"""

RETURN = r"""
changes:
  description: The fields that differ, from what to what.
  type: list
  elements: dict
  returned: success
  sample: [{field: owner, before: null, after: lepton, effective: now}]
node:
  description: The node after the change, or as it is in check mode. Null when there is none of that name.
  type: dict
  returned: success
  sample: {name: web-1, state: stopped}
"""

from contextlib import nullcontext

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import diff_of
from ..module_utils._host_lock import host_lock
from ..module_utils._identity import adopt, adoption, rename, renaming
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import check_name
from ..module_utils._results import node_result

LOCK_SECONDS = 20


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(HOST_OPTIONS, name={"type": "str", "required": True}, new_name={"type": "str"}, labels={"type": "dict", "default": {}}),
        supports_check_mode=True,
    )
    params = module.params
    labels = {str(label): str(value) for label, value in params["labels"].items()}
    with connected(module) as host:
        name, new_name = check_name(params["name"]), params["new_name"]
        with nullcontext() if module.check_mode else host_lock(host.lock_dir, "node." + name, LOCK_SECONDS):
            changes = adoption(host.node(name), name, labels) if new_name is None else renaming(host, name, new_name)
            if changes and not module.check_mode:
                if new_name is None:
                    adopt(host, name, labels)
                else:
                    rename(host, name, new_name)
        node = host.node(name if new_name is None or module.check_mode else new_name)
        module.exit_json(
            changed=bool(changes),
            diff=diff_of(changes),
            changes=[change._asdict() for change in changes],
            node=None if node is None else node_result(node),
        )


if __name__ == "__main__":
    main()
