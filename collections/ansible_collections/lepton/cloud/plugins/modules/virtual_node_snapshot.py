#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_snapshot
short_description: Take, remove or go back to a snapshot of a node
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - A snapshot has the node's disk at one moment, and of a node that runs its memory too. It stands in the node's own disk, so it is no backup.
  - libvirt has either snapshots of a domain or the checkpoints that incremental backups build upon. While a node has snapshots its backups
    are full ones.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.host
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - Going back to a snapshot is a change each time
options:
  name:
    description:
      - The node's name.
    type: str
    required: true
  snapshot:
    description:
      - The snapshot's name.
    type: str
    required: true
  state:
    description:
      - V(reverted) goes back to it. What has happened since then is lost.
    type: str
    choices: [present, absent, reverted]
    default: present
"""

EXAMPLES = r"""
- name: Before an upgrade
  lepton.cloud.virtual_node_snapshot:
    name: web-1
    snapshot: before-upgrade
"""

RETURN = r"""
changes:
  description: The fields that differ, from what to what.
  type: list
  elements: dict
  returned: success
  sample: [{field: snapshot, before: null, after: before-upgrade, effective: now}]
node:
  description: The node after the change, or as it is in check mode. Null when there is none of that name.
  type: dict
  returned: success
  sample: {name: web-1, state: stopped}
snapshots:
  description: The node's snapshots, the oldest first.
  type: list
  elements: dict
  returned: success
  sample: [{name: before-upgrade, ours: true}]
"""

from contextlib import nullcontext

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import diff_of
from ..module_utils._host_lock import host_lock
from ..module_utils._identity import change_snapshot, snapshot_changes, snapshots_of
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import check_name
from ..module_utils._results import node_result

LOCK_SECONDS = 20


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            HOST_OPTIONS,
            name={"type": "str", "required": True},
            snapshot={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    with connected(module) as host:
        name = check_name(params["name"])
        with nullcontext() if module.check_mode else host_lock(host.lock_dir, "node." + name, LOCK_SECONDS):
            changes = snapshot_changes(host, host.node(name), name, params["snapshot"], params["state"])
            if changes and not module.check_mode:
                change_snapshot(host, name, params["snapshot"], params["state"])
        node = host.node(name)
        module.exit_json(
            changed=bool(changes),
            diff=diff_of(changes),
            changes=[change._asdict() for change in changes],
            node=None if node is None else node_result(node),
            snapshots=snapshots_of(host, name),
        )


if __name__ == "__main__":
    main()
