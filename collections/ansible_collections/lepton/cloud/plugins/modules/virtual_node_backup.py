#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back a node up."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_backup
short_description: Back up a node, while it runs or stopped
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Writes all of a node's disk, or what has changed since the last backup, into a folder of its own with a manifest and digests.
  - A running node is backed up by QEMU at one moment, while it runs. Its guest agent, where one answers, holds its file systems still for that
    moment; without one the backup is as after a power failure. A stopped node is copied.
  - A backup that fails leaves nothing, and the ones before it are as they were.
extends_documentation_fragment:
  - lepton.cloud.attributes
  - lepton.cloud.host
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: none
    details:
      - Each run makes a backup.
options:
  name:
    description:
      - The node's name.
    type: str
    required: true
  directory:
    description:
      - The folder of backups on the host, such as a mounted share. It must be there.
    type: path
    required: true
  full:
    description:
      - Write all of the disk, even where what has changed would be enough.
    type: bool
    default: false
  host_name:
    description:
      - What the inventory calls this host. A host that is lost is known by it.
    type: str
    default: ""
  keep:
    description:
      - So many of the newest backups can still be restored afterwards. Older ones go, unless one of these builds upon them.
    type: int
    default: 14
  wait_seconds:
    description:
      - How long writing may take.
    type: int
    default: 3600
seealso:
  - module: lepton.cloud.virtual_node_restore
  - module: lepton.cloud.virtual_node_backup_info
"""

EXAMPLES = r"""
- name: Every night
  lepton.cloud.virtual_node_backup:
    name: web-1
    directory: /srv/backups
"""

RETURN = r"""
backup:
  description: The backup, or in check mode what it would build upon.
  type: dict
  returned: success
  sample: {id: 20261128T021500Z, parent: null, consistency: crash, size: 3221225472, sha256: 9f86d0…}
removed:
  description: The backups that went.
  type: list
  elements: str
  returned: success
  sample: [20261101T021500Z]
changes:
  description: What is there now.
  type: list
  elements: dict
  returned: success
  sample: [{field: backup, before: 20261127T021500Z, after: 20261128T021500Z, effective: now}]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._backup import superfluous
from ..module_utils._backup_job import back_up, node_of, planned, prune
from ..module_utils._backup_store import Store
from ..module_utils._host_lock import host_lock
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import NodeError, check_name
from ..module_utils._results import backup_result

LOCK_SECONDS = 20


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            HOST_OPTIONS,
            name={"type": "str", "required": True},
            directory={"type": "path", "required": True},
            full={"type": "bool", "default": False},
            host_name={"type": "str", "default": ""},
            keep={"type": "int", "default": 14},
            wait_seconds={"type": "int", "default": 3600},
        ),
        supports_check_mode=True,
    )
    params = module.params
    name, keep = params["name"], params["keep"]
    with connected(module) as host:
        if keep < 1:
            raise NodeError("keep: expected 1 or more, not %d: backup is not the word for removing all" % keep)
        store = Store(params["directory"], check_name(name))
        before = max(store.known(), default=None)
        if module.check_mode:
            node = node_of(host, name)
            base = planned(host, node, store, full=params["full"])
            after, made = "an incremental one" if base else "a full one", {"parent": base.id if base else None}
            removed = superfluous(store.known(), keep)
        else:
            with host_lock(host.lock_dir, "node." + name, LOCK_SECONDS):
                done = back_up(host, node_of(host, name), store, full=params["full"], wait_seconds=params["wait_seconds"], host_name=params["host_name"])
                removed = prune(store, keep)
            after, made = done.id, backup_result(done)
        module.exit_json(
            changed=True,
            backup=made,
            removed=removed,
            changes=[{"field": "backup", "before": before, "after": after, "effective": "now"}],
            diff={"before": {"backup": before}, "after": {"backup": after}},
        )


if __name__ == "__main__":
    main()
