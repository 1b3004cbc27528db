# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What nodes and hosts look like in the results of modules and in inventories. Pure. PRIVATE to the collection."""

from __future__ import annotations

from typing import Any

from ._backup import Backup
from ._node import Capacity, Node, Size
from ._units import format_size

VIRTUALIZATION = {"kvm": "hardware", "xen": "paravirtual"}


def size_result(size: Size) -> dict[str, Any]:
    return {
        "vcpus": size.vcpus,
        "max_vcpus": size.max_vcpus,
        "memory": format_size(size.memory),
        "max_memory": format_size(size.max_memory),
    }


def node_result(node: Node) -> dict[str, Any]:
    """Return a node as every module reports it; `config` is what the next start brings, shown where it differs."""
    shown = dict(size_result(node.live or node.config), name=node.name, state=node.state)
    shown["virtualization"] = VIRTUALIZATION.get(node.virtualization, "emulation")
    if node.memory_used is not None:
        shown["memory_used"] = format_size(node.memory_used)
    if node.boot is not None:
        shown["image"] = node.boot.image
        shown["network"] = node.boot.network
        shown["forward_ports"] = list(node.boot.forward_ports)
        shown["labels"] = dict(node.boot.labels)
        shown["disk"] = format_size(node.boot.disk) if node.boot.disk else None
        pinned = {"devices": list(node.boot.devices or node.devices), "first_boot": node.seeded}
        pinned.update({field: getattr(node.boot, field) for field in ("cpuset", "hugepages", "numa", "mac")})
        shown.update({field: value for field, value in pinned.items() if value})
    if node.cell is not None:
        shown["numa_node"] = node.cell
    shown["restart_required"] = node.live is not None and (
        node.live.vcpus != node.config.vcpus or node.live.max_vcpus != node.config.max_vcpus or node.live.max_memory != node.config.max_memory
    )
    if node.live is not None and node.live != node.config:  # a guest follows its balloon in its own time, so memory differs while it starts
        shown["config"] = size_result(node.config)
    return shown


def memory_result(capacity: Capacity) -> dict[str, Any]:
    return {field: getattr(capacity, field) for field in ("memory", "memory_used", "memory_free")}


def capacity_result(capacity: Capacity) -> dict[str, Any]:
    return {**{field: getattr(capacity, field) for field in ("vcpus", "vcpus_used", "vcpus_free")}, **memory_result(capacity)}


def backup_result(backup: Backup) -> dict[str, Any]:
    """Return a backup as every module reports it."""
    shown = {field: getattr(backup, field) for field in ("node", "id", "parent", "consistency", "size", "sha256", "image", "host", "copied")}
    needs = {"devices": list(backup.devices), "hugepages": backup.hugepages, "numa": backup.numa}
    shown.update({field: value for field, value in needs.items() if value})
    return dict(shown, vcpus=backup.size_vcpus, memory=format_size(backup.size_memory), disk=format_size(backup.disk) if backup.disk else None)
