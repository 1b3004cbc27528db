#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a node of a backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_restore
short_description: Make a node of a backup
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Checks the digests of a backup and of all that it builds upon, joins them to a disk, and makes a node of it, on any host that sees the folder.
  - Nothing that is there is replaced. A restore that fails leaves nothing.
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
  node:
    description:
      - The name of the node that was backed up.
    type: str
    required: true
  name:
    description:
      - What the new node is called. As O(node) where not given.
    type: str
  backup:
    description:
      - Which backup. The newest where not given.
    type: str
  written_by:
    description:
      - Only backups that this host of the inventory wrote into this very folder, and no copies of such.
    type: str
  directory:
    description:
      - The folder of backups on the host, such as a mounted share. It must be there.
    type: path
    required: true
  state:
    description:
      - Whether it is started.
    type: str
    choices: [running, stopped]
    default: running
  virtualization:
    description:
      - As for M(lepton.cloud.virtual_node).
    type: str
    choices: [auto, hardware, emulation]
    default: auto
seealso:
  - module: lepton.cloud.virtual_node_backup
"""

EXAMPLES = r"""
- name: On another host, after its own is lost
  lepton.cloud.virtual_node_restore:
    node: web-1
    directory: /srv/backups
"""

RETURN = r"""
node:
  description: The node. Null in check mode, where it is not there yet.
  type: dict
  returned: success
  sample: {name: web-1, state: running, vcpus: 2, memory: 4GiB}
backup:
  description: The backup that it was made of.
  type: dict
  returned: success
  sample: {id: 20261128T021500Z, consistency: crash}
changes:
  description: What became of it.
  type: list
  elements: dict
  returned: success
  sample: [{field: state, before: absent, after: running, effective: now}]
"""

from contextlib import nullcontext

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._backup import RESTORED
from ..module_utils._backup_job import disk_room_for, restore, room_for
from ..module_utils._backup_store import Store
from ..module_utils._host_lock import host_lock
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import NodeError, check_name
from ..module_utils._results import backup_result, node_result

LOCK_SECONDS = 20


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            HOST_OPTIONS,
            node={"type": "str", "required": True},
            name={"type": "str"},
            backup={"type": "str"},
            written_by={"type": "str"},
            directory={"type": "path", "required": True},
            state={"type": "str", "choices": ["running", "stopped"], "default": "running"},
            virtualization={"type": "str", "choices": ["auto", "hardware", "emulation"], "default": "auto"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    with connected(module) as host:
        name = check_name(params["name"] or params["node"])
        store = Store(params["directory"], params["node"])
        writer = params["written_by"]
        # A copy of an older one must not be taken for what that host has just written into a folder that this one does not see.
        known = {item.id for item in store.known().values() if writer is None or (item.host == writer and not item.copied)}
        identity = params["backup"] or max(known, default=None)
        if identity is None and writer is not None:
            raise NodeError("%s has no backup of %s that %s wrote: do both hosts see the same folder?" % (params["directory"], params["node"], writer))
        if identity is None:
            raise NodeError("there is no backup of %s in %s" % (params["node"], params["directory"]))
        chain = store.whole_chain(identity)
        mark = {RESTORED: "%s/%s" % (params["node"], identity)}
        with host_lock(host.lock_dir, "node." + name, LOCK_SECONDS) if not module.check_mode else nullcontext():
            there = host.node(name)
            if there is not None and (there.boot is None or dict(there.boot.labels).get(RESTORED) != mark[RESTORED]):
                raise NodeError("there is a node %s already, and it is left as it is: release it first, or restore under another name" % name)
            if there is None:
                room_for(host, chain, name)
                disk_room_for(host, chain)
                if not module.check_mode:
                    for warning in restore(host, store, chain, name, mark, params["virtualization"]):
                        module.warn(warning)
            before = "absent" if there is None else there.state
            starting = params["state"] == "running" and (there is None or there.live is None)
            if starting and not module.check_mode:
                host.domain(name).create()
        changed = there is None or starting
        after = params["state"] if changed else before
        node = host.node(name)
        changes = [{"field": "state", "before": before, "after": after, "effective": "now"}] if changed else []
        module.exit_json(
            changed=changed,
            node=None if node is None else node_result(node),
            backup=backup_result(chain[-1]),
            changes=changes,
            diff={"before": {"state": before} if changed else {}, "after": {"state": after} if changed else {}},
        )


if __name__ == "__main__":
    main()
