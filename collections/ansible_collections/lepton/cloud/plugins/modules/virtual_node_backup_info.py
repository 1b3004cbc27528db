#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the backups of nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_backup_info
short_description: Read the backups of nodes, and verify them
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Lists backups with what they build upon. With O(verify) their digests are computed anew.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.attributes.info_module
options:
  node:
    description:
      - Only backups of this node.
    type: str
  directory:
    description:
      - The folder of backups on the host, such as a mounted share. It must be there.
    type: path
    required: true
  verify:
    description:
      - Read every file and compare its digest.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: What there is
  lepton.cloud.virtual_node_backup_info:
    directory: /srv/backups
"""

RETURN = r"""
backups:
  description: The backups by node and moment. C(trouble) says why one cannot be restored, "" where nothing is known against it.
  type: list
  elements: dict
  returned: success
  sample: [{node: web-1, id: 20261128T021500Z, parent: null, consistency: crash, size: 3221225472, trouble: ""}]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._backup import chain_of
from ..module_utils._backup_store import Store
from ..module_utils._node import NAME, NodeError
from ..module_utils._results import backup_result


def trouble_of(store: Store, identity: str, *, verify: bool) -> str:
    """Return why a backup cannot be restored, "" where nothing is known against it."""
    try:
        if verify:
            store.whole_chain(identity)
        else:
            chain_of(identity, store.known())
    except NodeError as error:
        return str(error)
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={"node": {"type": "str"}, "directory": {"type": "path", "required": True}, "verify": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    params = module.params
    try:
        names = [params["node"]] if params["node"] else sorted(filter(NAME.fullmatch, os.listdir(params["directory"])))
        found = []
        for name in names:
            store = Store(params["directory"], name)
            for identity, backup in sorted(store.known().items()):
                found.append(dict(backup_result(backup), trouble=trouble_of(store, identity, verify=params["verify"])))
            found += [{"node": name, "id": identity, "trouble": "its manifest cannot be read"} for identity in store.unreadable()]
    except (NodeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, backups=found)


if __name__ == "__main__":
    main()
