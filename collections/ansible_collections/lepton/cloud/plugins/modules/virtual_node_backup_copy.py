#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a node's backups to another host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_backup_copy
short_description: Bring the backups of a node from one host to another
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Each backup goes on its own, the oldest first, by way of the controller, over the connections that Ansible has to both hosts.
  - It is compared with its digest where it arrives, and is a backup there only then. What is cut short leaves nothing, and the next run goes on there.
extends_documentation_fragment:
  - lepton.cloud.attributes
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
      - The node's name.
    type: str
    required: true
  directory:
    description:
      - The folder of backups on this host. It must be there.
    type: path
    required: true
  state:
    description:
      - V(offered) tells what the other host lacks, V(described) tells of one backup, V(sent) brings it to the controller, V(received) has it here, and
        V(pruned) removes here what is too old.
    type: str
    choices: [offered, described, sent, received, pruned]
    required: true
  backup:
    description:
      - The id of the one that is described, sent or received.
    type: str
  manifest:
    description:
      - With O(state=received), what RV(manifest) was where it was described.
    type: str
  coming:
    description:
      - With O(state=received), the ids of what comes with it, and is not here yet in check mode.
    type: list
    elements: str
    default: []
  there:
    description:
      - With O(state=offered), the ids that the other host has already.
    type: list
    elements: str
    default: []
  keep:
    description:
      - So many of the newest backups can be restored on the host that receives them.
    type: int
    default: 14
  more:
    description:
      - With O(state=pruned), that a backup will be made and sent that is not there yet in check mode, which then says so.
    type: bool
    default: false
  way:
    description:
      - With O(state=received), the file on this host in which it has arrived. Set by the action plugin.
    type: path
seealso:
  - module: lepton.cloud.virtual_node_backup
  - module: lepton.cloud.virtual_node_backup_info
"""

EXAMPLES = r"""
- name: Tell what the other host lacks
  lepton.cloud.virtual_node_backup_copy:
    node: web-1
    directory: /srv/backups
    state: offered
    there: [20261127T021500Z]
"""

RETURN = r"""
offered:
  description: The ids of what the other host lacks, the oldest first.
  type: list
  elements: str
  returned: when O(state=offered)
  sample: [20261128T021500Z]
manifest:
  description: Its manifest.
  type: str
  returned: when O(state=described) or O(state=sent)
  sample: "{}"
size:
  description: How many bytes its disk has. Null of one without a disk.
  type: int
  returned: when O(state=described) or O(state=sent)
  sample: 3221225472
changes:
  description: What is there now.
  type: list
  elements: dict
  returned: success
  sample: [{field: backup 20261128T021500Z, before: absent, after: present, effective: now}]
"""

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._backup import DISK, Backup, lacking, read, superfluous, written
from ..module_utils._backup_store import Store
from ..module_utils._changes import Change, diff_of
from ..module_utils._host_lock import host_lock
from ..module_utils._node import NodeError
from ..module_utils._units import format_size

LOCK_SECONDS = 60


def read_sent(params: dict, store: Store, *, check: bool) -> Backup:
    """Return what was sent; raise NodeError where it is no backup of this node, or builds upon one that is not here."""
    backup = read(params["manifest"], "what was sent")
    if (backup.node, backup.id) != (params["node"], params["backup"]):
        raise NodeError("what was sent is backup %s of %s, and not %s of %s" % (backup.id, backup.node, params["backup"], params["node"]))
    if backup.parent is not None and backup.parent not in store.known() and backup.parent not in (params["coming"] if check else ()):
        raise NodeError("backup %s builds upon %s, which is not here" % (backup.id, backup.parent))
    return replace(backup, copied=True)


def check_room(store: Store, backup: Backup, way: str | None) -> None:
    """Raise NodeError where a backup has no room. What has arrived on the same file system has it already."""
    directory = os.path.dirname(store.folder)
    if way is not None and os.stat(way).st_dev == os.stat(directory).st_dev:
        return
    free = shutil.disk_usage(directory).free
    if free < backup.size:
        raise NodeError("there is no room for backup %s, which has %s: %s are free" % (backup.id, format_size(backup.size), format_size(free)))


def receive(store: Store, backup: Backup, way: str | None) -> None:
    """Have a backup here that has arrived in a file; raise NodeError where it is not as it was sent, and then nothing of it is left."""
    try:
        partial = store.begin(backup.id)
        if backup.sha256 and way is None:
            raise NodeError("it has not arrived")
        if way is not None:
            shutil.move(way, os.path.join(partial, DISK))
            os.chown(os.path.join(partial, DISK), os.getuid(), os.getgid())
        store.finish(backup)
    except (OSError, NodeError) as error:
        store.give_up(backup.id)
        raise NodeError("backup %s was not brought here, and nothing of it is left: %s" % (backup.id, error)) from error


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["offered", "described", "sent", "received", "pruned"], "required": True},
            "backup": {"type": "str"},
            "manifest": {"type": "str"},
            "there": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "int", "default": 14},
            "more": {"type": "bool", "default": False},
            "coming": {"type": "list", "elements": "str", "default": []},
            "way": {"type": "path"},
        },
        required_if=[("state", "described", ["backup"]), ("state", "sent", ["backup"]), ("state", "received", ["backup", "manifest"])],
        supports_check_mode=True,
    )
    params = module.params
    state, identity, changes = params["state"], params["backup"], []
    try:
        store = Store(params["directory"], params["node"])
        if params["keep"] < 1:
            raise NodeError("keep: expected 1 or more, not %d" % params["keep"])
        if state == "offered":
            module.exit_json(changed=False, changes=[], offered=lacking(store.known(), params["there"], params["keep"]))
        if state in ("described", "sent"):
            found = store.known().get(identity)
            if found is None:
                raise NodeError("there is no backup %s of %s here" % (identity, params["node"]))
            module.exit_json(changed=False, changes=[], manifest=written(found), size=found.size if found.sha256 else None)
        with nullcontext() if module.check_mode else host_lock(params["directory"], "copies." + params["node"], LOCK_SECONDS):
            if state == "received" and identity not in store.known():
                backup = read_sent(params, store, check=module.check_mode)
                check_room(store, backup, params["way"])
                changes.append(Change("backup " + backup.id, "absent", "present"))
                if not module.check_mode:
                    receive(store, backup, params["way"])
            for old in superfluous(store.known(), params["keep"]) if state == "pruned" else []:
                changes.append(Change("backup " + old, "present", "absent"))
                if not module.check_mode:
                    store.remove(old)
    except (NodeError, OSError) as error:
        module.fail_json(msg=str(error))
    if state == "pruned" and params["more"] and module.check_mode:
        changes.append(Change("the next backup", "absent", "present"))
    module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes])


if __name__ == "__main__":
    main()
