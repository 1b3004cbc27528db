#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create, resize, start, stop and remove virtual nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: virtual_node
short_description: Manage a virtual node, a libvirt domain made by Lepton
version_added: 0.1.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Brings one node to the state, CPU and memory asked for, live where that is possible.
  - CPU and memory headroom is reserved when a node is created, so that it can grow while it runs. Where a running node
    cannot be changed, the change is written for its next start and RV(restart_required) says so, with the reason.
  - Domains that were not made by this module are never touched.
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
    details: O(state=restarted) restarts a running node every time.
options:
  name:
    description:
      - The node's name. Up to 63 lower-case letters, digits, hyphens or dots.
    type: str
    required: true
  state:
    description:
      - V(present) leaves a node's power as it is, and creates a missing one stopped.
      - V(running) starts it, V(healthy) also waits until O(health_path) answers, V(stopped) presses its power button and waits.
      - V(restarted) presses the power button, waits and starts it again, which also brings pending changes into effect.
      - V(absent) removes it with its disk.
      - V(abandoned) removes it only where its creation was cut short, and leaves every other node as it is.
    type: str
    choices: [present, running, healthy, stopped, restarted, absent, abandoned]
    default: present
  image:
    description:
      - Name of an image in O(image_dir), or a path. Needed to create.
    type: str
  vcpus:
    description:
      - Number of vCPUs. Needed to create.
    type: int
  memory:
    description:
      - Memory with its unit, such as V(512MiB) or V(8GiB). Needed to create.
    type: str
  max_vcpus:
    description:
      - How far O(vcpus) can grow while the node runs. Twice O(vcpus) for a new node.
    type: int
  max_memory:
    description:
      - How far O(memory) can grow while the node runs. Twice O(memory) for a new node.
    type: str
  disk:
    description:
      - Size of the node's disk. A qcow2 image brings its own size.
    type: str
  network:
    description:
      - V(user), V(none), V(network:NAME) for a libvirt network, or V(bridge:NAME). V(user) for a new node.
    type: str
  forward_ports:
    description:
      - Ports of the host forwarded to the guest, as V([ADDRESS:]HOST:GUEST), on the loopback address where none is given. Only with
        O(network=user).
    type: list
    elements: str
  labels:
    description:
      - Labels of a new node, which it keeps for its life.
    type: dict
  image_url:
    description:
      - Where the image comes from when O(image_dir) has none of that name, as a qcow2 file.
    type: str
  image_checksum:
    description:
      - What it must be, as V(sha256:HEX) or V(sha512:HEX). One that is there already is not looked at again.
    type: str
  first_boot:
    description:
      - What a new node with cloud-init in its image is told at its first boot. Its host name is its name. It is not looked at for a node that is there.
    type: dict
    suboptions:
      user:
        description:
          - Its user, who may become root, and who has no password.
        type: str
        default: lepton
      ssh_keys:
        description:
          - The keys with which that user logs in, as in an authorized_keys file.
        type: list
        elements: str
        default: []
      packages:
        description:
          - What it installs.
        type: list
        elements: str
        default: []
      files:
        description:
          - What it writes.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description:
              - Where.
            type: str
            required: true
          content:
            description:
              - What.
            type: str
            required: true
          mode:
            description:
              - With which rights.
            type: str
            default: "0644"
  wait_address:
    description:
      - Whether to wait until the running node has an address, by its agent, its lease or the host's ARP table. Not on O(network=user) or
        O(network=none), where no other machine has one for it.
    type: bool
    default: false
  devices:
    description:
      - Devices of the host that a new node has to itself, each as a PCI address such as V(0000:3b:00.0), or as a kind with a number, V(gpu),
        V(nvidia-gpu:2), V(amd-gpu) or V(intel-gpu), of which free ones are chosen, on one NUMA node where possible. What shares an IOMMU group comes along.
      - Needs hardware virtualisation.
    type: list
    elements: str
  cpuset:
    description:
      - CPUs of the host, such as V(2-5,8), that the vCPUs of a new node are pinned to, one after the other.
    type: str
  hugepages:
    description:
      - Whether the memory of a new node is of the host's huge pages, which it must have reserved.
    type: bool
  numa:
    description:
      - Whether all of a new node, its vCPUs, memory and devices, is of one NUMA node of the host; chosen is the one that has least left then. Where the
        host has but one, nothing is bound.
    type: bool
  mac:
    description:
      - The hardware address of a new node on network V(network:NAME) or V(bridge:NAME), such as a DHCP server knows it by. Made up where not given.
    type: str
  health_path:
    description:
      - Path that answers 2xx when the node can serve, for O(state=healthy). It is asked for from the host.
    type: str
  health_port:
    description:
      - The guest's port for O(health_path). It must be among the forwarded ones.
    type: int
  update:
    description:
      - Whether an existing node may be changed. With V(false), one that differs is an error.
    type: bool
    default: true
  virtualization:
    description:
      - V(auto) uses hardware virtualisation where a guest really starts with it, and else software emulation with a
        warning.
    type: str
    choices: [auto, hardware, emulation]
    default: auto
  wait_seconds:
    description:
      - How long to wait for the guest to follow. What it has not done by then is an error.
    type: int
    default: 60
seealso:
  - module: lepton.cloud.virtual_node_info
"""

EXAMPLES = r"""
- name: A running node with room to grow
  lepton.cloud.virtual_node:
    name: web-1
    state: running
    image: debian-12
    vcpus: 2
    max_vcpus: 8
    memory: 4GiB
    disk: 20GiB

- name: Two more processors, while it runs
  lepton.cloud.virtual_node:
    name: web-1
    vcpus: 4

- name: Gone, with its disk
  lepton.cloud.virtual_node:
    name: web-1
    state: absent
"""

RETURN = r"""
node:
  description: The node after the change, or as it is in check mode. Null when there is none.
  type: dict
  returned: success
  sample: {name: web-1, state: running, vcpus: 4, max_vcpus: 8, memory: 4GiB, max_memory: 8GiB}
addresses:
  description: The addresses of the node, where they were waited for.
  type: list
  elements: str
  returned: with O(wait_address)
  sample: [192.168.150.23]
changes:
  description: The fields that differ, from what to what, and when the change takes effect.
  type: list
  elements: dict
  returned: success
  sample: [{field: vcpus, before: 2, after: 4, effective: now}]
steps:
  description: What was done, or would be done in check mode, in order.
  type: list
  elements: str
  returned: success
  sample: [resize_live, resize_config]
restart_required:
  description: Whether something waits for the node's next start.
  type: bool
  returned: success
  sample: false
restart_reasons:
  description: Why it has to wait.
  type: list
  elements: str
  returned: success
  sample: []
"""

import time
from contextlib import ExitStack
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._command import clean
from ..module_utils._fetch import Source, check_source, fetch_image
from ..module_utils._first_boot import check_first_boot
from ..module_utils._host_lock import host_lock
from ..module_utils._libvirt import Host
from ..module_utils._local_files import LocalFiles
from ..module_utils._module import HOST_OPTIONS, connected
from ..module_utils._node import NodeError, Plan, Wish, check_name, forwarded, given, grows, make_plan
from ..module_utils._ports import probe
from ..module_utils._results import node_result
from ..module_utils._units import parse_size

FIRST_BOOT = {
    "user": {"type": "str", "default": "lepton"},
    "ssh_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "packages": {"type": "list", "elements": "str", "default": []},
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "str", "required": True},
            "content": {"type": "str", "required": True, "no_log": True},
            "mode": {"type": "str", "default": "0644"},
        },
    },
}
LOCK_SECONDS = 20
POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between two looks at the hypervisor while its guest is waited for


def read_wish(params: dict) -> Wish:
    """Return the module's options as a typed wish; raise ValueError for a size that is none."""

    def size(option: str) -> int | None:
        try:
            return None if params[option] is None else parse_size(params[option])
        except ValueError as error:
            raise ValueError("%s: %s" % (option, error)) from error

    return Wish(
        name=check_name(params["name"]),
        state="running" if params["state"] == "healthy" else params["state"],
        image=params["image"],
        vcpus=params["vcpus"],
        memory=size("memory"),
        max_vcpus=params["max_vcpus"],
        max_memory=size("max_memory"),
        disk=size("disk"),
        network=params["network"],
        forward_ports=None if params["forward_ports"] is None else tuple(params["forward_ports"]),
        labels=None if params["labels"] is None else tuple(sorted((str(name), str(value)) for name, value in params["labels"].items())),
        devices=None if params["devices"] is None else tuple(params["devices"]),
        cpuset=params["cpuset"],
        hugepages=params["hugepages"],
        numa=params["numa"],
        mac=None if params["mac"] is None else params["mac"].lower(),
        update=params["update"],
        told=params["first_boot"] is not None,
    )


def read_source(params: dict) -> Source | None:
    """Return where the image comes from, None where it is on the host."""
    return None if params["image_url"] is None else check_source(Source(params["image_url"], (params["image_checksum"] or "").lower()))


def plan_for(host: Host, wish: Wish) -> Plan:
    if wish.told and (host.xen or not isinstance(host.files, LocalFiles)):
        raise NodeError("first_boot: only a KVM host that is reached by ssh writes what a node is told")
    if wish.fetched and not isinstance(host.files, LocalFiles):
        raise NodeError("image_url: a host fetches its images itself: reach it by ssh, and not by a libvirt URI of another machine")
    node = host.node(wish.name)
    # All nodes of the host are looked at only where something more is wanted of it.
    plan = make_plan(wish, node, host.room_of(node, huge=bool(wish.hugepages), numa=bool(wish.numa)) if grows(wish, node) else None)
    for step in plan.steps:
        if step.action in ("define", "create_disk"):
            check = host.check_image if not wish.fetched or host.has_image(given(step.boot).image) else host.check_host
            check(wish.name, given(step.size), given(step.boot))
    return plan


def wait_healthy(host: Host, name: str, path: str, port: int, seconds: float) -> None:
    """Wait until a node answers; raise NodeError when it has ended, or has not after `seconds`, with what it printed last."""
    deadline, answer, looked = time.monotonic() + seconds, "nothing", 0.0
    while True:
        if time.monotonic() - looked > LOOK_SECONDS:
            node, looked = host.node(name), time.monotonic()
            if node is None or node.live is None:
                raise NodeError("%s does not run any more%s" % (name, _last_words(host, name)))
            address = forwarded(given(node.boot).forward_ports, port)
            if address is None:
                raise NodeError("health_port: port %d of %s is not among its forwarded ports, so its health cannot be asked for" % (port, name))
        ready, answer = probe(address, path)
        if ready:
            return
        if time.monotonic() > deadline:
            raise NodeError("%s did not become healthy within %d s: %s answered %s%s" % (name, seconds, path, answer, _last_words(host, name)))
        time.sleep(POLL_SECONDS)  # readiness is an answer of the guest's own, for which there is no event


def wait_address(host: Host, name: str, seconds: float) -> list[str]:
    """Return the addresses of a node that runs, as soon as it has one; raise NodeError where that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        node = host.node(name)
        if node is None or node.live is None:
            raise NodeError("%s does not run, and has no address%s" % (name, _last_words(host, name)))
        if given(node.boot).network in ("user", "none"):
            raise NodeError("wait_address: %s is on network %s, where no other machine has an address for it" % (name, given(node.boot).network))
        found = host.addresses(name)
        if found:
            return found
        if time.monotonic() > deadline:
            why = "neither its agent, nor a lease, nor the host's ARP table has one"
            raise NodeError("%s had no address within %d s: %s%s" % (name, seconds, why, _last_words(host, name)))
        time.sleep(LOOK_SECONDS)


def _last_words(host: Host, name: str) -> str:
    try:
        said = clean(host.console(name, 600)).strip()
    except (NodeError, OSError):
        return ""
    return ". It printed last: %s" % said if said else ". It printed nothing"


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            HOST_OPTIONS,
            name={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "running", "healthy", "stopped", "restarted", "absent", "abandoned"], "default": "present"},
            image={"type": "str"},
            vcpus={"type": "int"},
            memory={"type": "str"},
            max_vcpus={"type": "int"},
            max_memory={"type": "str"},
            disk={"type": "str"},
            network={"type": "str"},
            forward_ports={"type": "list", "elements": "str"},
            labels={"type": "dict"},
            image_url={"type": "str"},
            image_checksum={"type": "str"},
            first_boot={"type": "dict", "options": FIRST_BOOT},
            wait_address={"type": "bool", "default": False},
            devices={"type": "list", "elements": "str"},
            cpuset={"type": "str"},
            hugepages={"type": "bool"},
            numa={"type": "bool"},
            mac={"type": "str"},
            health_path={"type": "str"},
            health_port={"type": "int"},
            update={"type": "bool", "default": True},
            virtualization={"type": "str", "choices": ["auto", "hardware", "emulation"], "default": "auto"},
            wait_seconds={"type": "int", "default": 60},
        ),
        required_together=[("health_path", "health_port"), ("image_url", "image_checksum")],
        required_if=[("state", "healthy", ["health_path", "health_port"])],
        supports_check_mode=True,
    )
    with connected(module) as host, ExitStack() as locks, ExitStack() as capacity:
        wish, source, seed = read_wish(module.params), read_source(module.params), module.params["first_boot"]
        if seed is not None:
            check_first_boot(seed)
        if source is not None and wish.image is not None and wish.state != "absent":
            wish = replace(wish, fetched=not host.has_image(wish.image))
        if not module.check_mode:
            locks.enter_context(host_lock(host.lock_dir, "node." + wish.name, LOCK_SECONDS))
            if wish.fetched and plan_for(host, wish).changed:
                fetch_image(host, given(wish.image), given(source))
            if wish.vcpus is not None or wish.memory is not None:
                # Two nodes that grow at once must not both be promised the last free memory.
                capacity.enter_context(host_lock(host.lock_dir, "host", LOCK_SECONDS))
        plan = plan_for(host, wish)
        if plan.changed and not module.check_mode:
            for warning in host.apply(
                wish.name,
                plan.steps,
                virtualization=module.params["virtualization"],
                wait_seconds=module.params["wait_seconds"],
                reserved=capacity.close,
                seed=seed,
            ):
                module.warn(warning)
        if module.params["state"] == "healthy" and not module.check_mode:
            wait_healthy(host, wish.name, module.params["health_path"], module.params["health_port"], module.params["wait_seconds"])
        node = host.node(wish.name)
        found = {}
        if module.params["wait_address"] and not module.check_mode:
            found["addresses"] = wait_address(host, wish.name, module.params["wait_seconds"])
        module.exit_json(
            **found,
            changed=plan.changed,
            diff=plan.diff(),
            changes=[change._asdict() for change in plan.changes],
            steps=[step.action for step in plan.steps],
            restart_required=bool(plan.restart_reasons),
            restart_reasons=list(plan.restart_reasons),
            node=None if node is None else node_result(node),
        )


if __name__ == "__main__":
    main()
