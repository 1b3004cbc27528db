#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a running node to another host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node_migration
short_description: Bring a running node to another host
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - The two hypervisors bring a node from one to the other while it runs. Its disk is copied, unless both hosts see the same folder of disks.
  - What libvirt says of the end is not believed. The guest is asked on its new host, by its agent or by the driver of its memory balloon,
    and its console is read for what a broken kernel prints.
  - A migration that fails leaves the node running where it was, and nothing of it on the other host.
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
      - The node's name. One that is on the other host already, and not here, is left as it is.
    type: str
    required: true
  target_uri:
    description:
      - Where the libvirt of this host reaches the other one's.
    type: str
    required: true
  target_image_dir:
    description:
      - The folder of images on the other host. As O(image_dir) where not given.
    type: path
  target_disk_dir:
    description:
      - The folder of disks on the other host. As O(disk_dir) where not given.
    type: path
  target_cpu_overcommit:
    description:
      - How many vCPUs the other host may give for each of its CPUs. As O(cpu_overcommit) where not given.
    type: float
  target_memory_reserve:
    description:
      - Memory that is kept for the other host itself. As O(memory_reserve) where not given.
    type: str
  live:
    description:
      - Whether the node works on while its memory is copied. With V(false) it is held for that long, which a guest that writes memory all the
        time survives where V(true) may break it, and which always ends.
    type: bool
    default: true
  wait_seconds:
    description:
      - How long it may take. Then it is stopped, and the node stays where it is.
    type: int
    default: 1800
  progress_pipe:
    description:
      - A FIFO that lines of progress are written to. On this machine, the module's action plugin gives one.
    type: path
seealso:
  - module: lepton.cloud.virtual_node_backup
  - module: lepton.cloud.virtual_node_restore
"""

EXAMPLES = r"""
- name: To another host, while it runs
  lepton.cloud.virtual_node_migration:
    name: web-1
    target_uri: qemu+tls://kvm2/system
"""

RETURN = r"""
node:
  description: The node on its new host. Null in check mode, where it is not there yet.
  type: dict
  returned: success
  sample: {name: web-1, state: running, vcpus: 2, memory: 4GiB}
heard:
  description: How its guest was heard on the new host. Empty where a guest has neither an agent nor a driver of its balloon.
  type: str
  returned: success
  sample: agent
copied:
  description: The disk that is copied. Null where there is none, or where both hosts see it.
  type: str
  returned: success
  sample: /var/lib/lepton/disks/web-1.qcow2
changes:
  description: What became of it on this host.
  type: list
  elements: dict
  returned: success
  sample: [{field: state, before: running, after: absent, effective: now}]
"""

from contextlib import nullcontext

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._host_lock import host_lock
from ..module_utils._libvirt import Host
from ..module_utils._local_files import LocalFiles
from ..module_utils._migration import migrate, plan_migration
from ..module_utils._module import HOST_OPTIONS, connected, opened
from ..module_utils._node import NodeError, check_name
from ..module_utils._progress import reporting
from ..module_utils._results import node_result

LOCK_SECONDS = 20


def bring(module: AnsibleModule, host: Host, target: Host) -> dict:
    """Return the module's answer; raise NodeError where the node cannot go, or did not arrive."""
    name, state, copied, heard = check_name(module.params["name"]), "running", None, ""
    node, there = host.node(name), target.node(name)
    if node is not None and node.boot is None:
        raise NodeError("%s was not made by Lepton, so it is left alone: adopt it first" % name)
    if node is None and (there is None or there.boot is None):
        raise NodeError("this host has no node %s, and neither has %s" % (name, module.params["target_uri"]))
    if node is not None:
        journey, state = plan_migration(host, target, node), node.state
        copied = journey.disk
        if not module.check_mode:
            with reporting(module.params["progress_pipe"]) as say:
                heard = migrate(host, target, node, journey, live=module.params["live"], wait_seconds=module.params["wait_seconds"], say=say)
            if not heard:
                module.warn("%s has neither an agent nor a driver of its balloon: that its guest works on %s is libvirt's word only" % (name, target.uri))
    arrived = target.node(name)
    changes = [{"field": "state", "before": state, "after": "absent", "effective": "now"}] if node is not None else []
    return {
        "changed": node is not None,
        "node": None if arrived is None else node_result(arrived),
        "heard": heard,
        "copied": copied,
        "changes": changes,
        "diff": {side: {change["field"]: change[side] for change in changes} for side in ("before", "after")},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            HOST_OPTIONS,
            name={"type": "str", "required": True},
            target_uri={"type": "str", "required": True},
            target_image_dir={"type": "path"},
            target_disk_dir={"type": "path"},
            target_cpu_overcommit={"type": "float"},
            target_memory_reserve={"type": "str"},
            live={"type": "bool", "default": True},
            wait_seconds={"type": "int", "default": 1800},
            progress_pipe={"type": "path"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    with connected(module) as host:
        if not isinstance(host.files, LocalFiles):
            raise NodeError("a host brings its nodes elsewhere itself: reach it by ssh, and not by a libvirt URI of another machine")
        lock = nullcontext() if module.check_mode else host_lock(host.lock_dir, "node." + check_name(params["name"]), LOCK_SECONDS)
        given = {option: params["target_" + option] for option in ("uri", "image_dir", "disk_dir", "cpu_overcommit", "memory_reserve")}
        with lock, opened(module, dict(params, **{option: value for option, value in given.items() if value is not None})) as target:
            answer = bring(module, host, target)
        module.exit_json(**answer)


if __name__ == "__main__":
    main()
