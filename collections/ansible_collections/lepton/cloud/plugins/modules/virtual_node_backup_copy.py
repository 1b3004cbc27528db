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
  - The host that has them sends what the other one lacks, by way of a folder of the controller, over the connections that Ansible has to both.
  - Each backup is compared with its digest where it arrives, and is one only then. What is cut short leaves nothing, and the next run goes on there.
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
      - V(sent) gives what the other host lacks, V(received) has it here.
    type: str
    choices: [sent, received]
    required: true
  way:
    description:
      - A folder of the controller in which they stand on their way. On this host, where they have arrived.
    type: path
    required: true
  there:
    description:
      - With O(state=sent), the ids that the other host has already.
    type: list
    elements: str
    default: []
  backups:
    description:
      - With O(state=received), what RV(backups) was where they were sent.
    type: list
    elements: dict
    default: []
  keep:
    description:
      - With O(state=received), so many of the newest backups can still be restored here afterwards.
    type: int
    default: 14
  more:
    description:
      - With O(state=received), that a backup will be made and sent that is not there yet in check mode, which then says so.
    type: bool
    default: false
seealso:
  - module: lepton.cloud.virtual_node_backup
  - module: lepton.cloud.virtual_node_backup_info
"""

EXAMPLES = r"""
- name: Send what the other host lacks
  lepton.cloud.virtual_node_backup_copy:
    node: web-1
    directory: /srv/backups
    state: sent
    way: /tmp/way
    there: [20261127T021500Z]
"""

RETURN = r"""
backups:
  description: What is brought, in order, each with its manifest, and with the file of its disk on this host where it has one.
  type: list
  elements: dict
  returned: when O(state=sent)
  sample: [{id: 20261128T021500Z, manifest: "{}", size: 3221225472, path: /srv/backups/web-1/20261128T021500Z/disk.qcow2}]
removed:
  description: The backups that went.
  type: list
  elements: str
  returned: when O(state=received)
  sample: [20261101T021500Z]
changes:
  description: What is there now.
  type: list
  elements: dict
  returned: success
  sample: [{field: backup, before: null, after: 20261128T021500Z, effective: now}]
"""

import os
import shutil
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._backup import DISK, Backup, chain_of, read, superfluous, written
from ..module_utils._backup_store import Store
from ..module_utils._changes import Change, diff_of
from ..module_utils._node import NodeError


def sent(store: Store, there: list[str]) -> list[dict[str, Any]]:
    """Return what another host lacks that has some of these backups, in order. What cannot be restored here is not sent."""
    known, found = store.known(), []
    for identity, backup in sorted(known.items()):
        try:
            chain_of(identity, known)
        except NodeError:
            continue
        if identity not in there:
            found.append({"id": identity, "manifest": written(backup), "size": backup.size, "path": store.path(identity, DISK) if backup.sha256 else None})
    return found


def read_sent(raw: list[dict[str, Any]], store: Store) -> list[Backup]:
    """Return those of what was sent that are not here; raise NodeError for what are no backups of this node."""
    known = store.known()
    found = [read(str(each["manifest"]), "what was sent") for each in raw]
    wrong = next((backup for backup in found if backup.node != os.path.basename(store.folder)), None)
    if wrong is not None:
        raise NodeError("backup %s is of the node %s" % (wrong.id, wrong.node))
    return [replace(backup, copied=True) for backup in found if backup.id not in known]


def receive(store: Store, backup: Backup, way: str) -> None:
    """Have a backup here that has arrived in a folder; raise NodeError where it is not as it was sent, and then nothing of it is left."""
    try:
        partial = store.begin(backup.id)
        if backup.sha256:
            shutil.move(os.path.join(way, backup.id), os.path.join(partial, DISK))
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
            "state": {"type": "str", "choices": ["sent", "received"], "required": True},
            "way": {"type": "path", "required": True},
            "there": {"type": "list", "elements": "str", "default": []},
            "backups": {"type": "list", "elements": "dict", "default": []},
            "keep": {"type": "int", "default": 14},
            "more": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        store = Store(params["directory"], params["node"])
        if params["state"] == "sent":
            module.exit_json(changed=False, changes=[], backups=sent(store, params["there"]))
        if params["keep"] < 1:
            raise NodeError("keep: expected 1 or more, not %d" % params["keep"])
        before, lacking = max(store.known(), default=None), read_sent(params["backups"], store)
        for backup in [] if module.check_mode else lacking:
            receive(store, backup, params["way"])
        removed = superfluous(store.known(), params["keep"])
        for identity in [] if module.check_mode else removed:
            store.remove(identity)
    except (NodeError, OSError) as error:
        module.fail_json(msg=str(error))
    changes = [Change("backup", before, backup.id) for backup in lacking]
    if module.check_mode and params["more"]:
        changes.append(Change("backup", before, "a copy of the next one"))
    module.exit_json(changed=bool(changes or removed), removed=removed, diff=diff_of(changes), changes=[change._asdict() for change in changes])


if __name__ == "__main__":
    main()
