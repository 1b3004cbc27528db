#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder as a storage pool."""

from __future__ import annotations

DOCUMENTATION = r"""
module: storage_pool
short_description: A folder of a host as a storage pool of libvirt's
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Has a folder known to libvirt, now and after a restart of the host, so that other machines and other hosts reach the volumes in it.
  - A pool of that folder under another name will do, and stays as it is. One of that name with another folder is an error.
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
      - The pool's name.
    type: str
    required: true
  path:
    description:
      - The folder. It is made where it is missing.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Disks of nodes
  lepton.cloud.storage_pool:
    name: lepton-disks
    path: /var/lib/lepton/disks
"""

RETURN = r"""
changes:
  description: What differs.
  type: list
  elements: dict
  returned: success
  sample: [{field: state, before: absent, after: active, effective: now}]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._changes import Change, diff_of
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import NodeError
from ..module_utils._volume_files import have_pool, pool_paths


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(HOST_OPTIONS, name={"type": "str", "required": True}, path={"type": "path", "required": True}), supports_check_mode=True
    )
    name, path = module.params["name"], os.path.normpath(module.params["path"])
    with connected(module) as host:
        pools = pool_paths(host.connection)
        if name in pools and pools[name].path != path:
            raise NodeError("pool %s exists with the folder %s, not %s: it is left alone" % (name, pools[name].path, path))
        found = pools.get(name) or next((pool for pool in pools.values() if pool.path == path and pool.persistent), None)
        changes = []
        if found is None or not found.persistent or not found.active:
            changes.append(Change("state", "absent" if found is None or not found.persistent else "inactive", "active"))
        if found is None or not found.autostart:
            changes.append(Change("autostart", False, True))
        if changes and not module.check_mode:
            have_pool(host.connection, found.name if found else name, path)
        module.exit_json(changed=bool(changes), diff=diff_of(changes), changes=[change._asdict() for change in changes])


if __name__ == "__main__":
    main()
