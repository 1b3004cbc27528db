# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The NUMA nodes of a host, which libvirt calls cells, and which of them a node is to be on as a whole. Pure. PRIVATE to the collection."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any, NamedTuple, Sequence

from ._node import Boot, Capacity, Node, NodeError, Size, check_fits, used_by
from ._pci import Device, choose_devices, devices_taken

KIB = 1024


class Cell(NamedTuple):
    """A NUMA node of a host: its number, memory in bytes, its CPUs, and how much of the memory is reserved as huge pages, and is of those that nodes have."""

    number: int
    memory: int
    cpus: tuple[int, ...]
    reserved: int = 0
    huge: int = 0


class Seat(NamedTuple):
    """Where on its host a new node is: the NUMA node that its memory is of, the CPUs that its vCPUs are pinned to, and the PCI devices that it gets.

    Each vCPU is pinned to one of the CPUs, or to all of them where a NUMA node is named.
    """

    cell: int | None = None
    cpus: Sequence[int] = ()
    devices: Sequence[str] = ()


ANYWHERE = Seat()


def read_cells(capabilities: str) -> list[Cell]:
    """Return a host's NUMA nodes from what libvirt says of it."""
    cells = ET.fromstring(capabilities).findall("host/topology/cells/cell")
    reserved = [_reserved(cell) for cell in cells]
    # Without a size QEMU takes the kernel's default, which is the smallest of those that are reserved where nobody has chosen another.
    usual = min((size for sizes in reserved for size in sizes), default=0)
    return [
        Cell(
            int(cell.get("id", 0)), int(cell.findtext("memory") or 0) * KIB, tuple(int(cpu.get("id", 0)) for cpu in cell.iterfind("cpus/cpu")),
            sum(sizes.values()), sizes.get(usual, 0),
        )
        for cell, sizes in zip(cells, reserved)  # noqa: B905 -- Python 3.9 has no strict
    ]  # fmt: skip


def _reserved(cell: ET.Element) -> dict[int, int]:
    """Return how much memory of a NUMA node is reserved as huge pages, by their size in KiB."""
    pages = [(int(page.get("size", 0)), int(page.text or 0)) for page in cell.iterfind("pages")]
    ordinary = min((size for size, _count in pages), default=0)
    return {size: size * count * KIB for size, count in pages if size > ordinary and count}


def capacity_of(cell: Cell, domains: Sequence[Node], cpu_overcommit: float, *, huge: bool = False) -> Capacity:
    """Return what a NUMA node may give and has given to nodes that are bound to it: of its huge pages, or of its other memory."""
    bound = [node for node in domains if node.cell == cell.number]
    memory = cell.huge if huge else cell.memory - cell.reserved
    return Capacity(int(len(cell.cpus) * cpu_overcommit), memory, used_by(bound)[0], used_by([node for node in bound if node.huge == huge])[1])


def cells_result(cells: Sequence[Cell], domains: Sequence[Node], cpu_overcommit: float) -> list[dict[str, Any]]:
    """Return what is told of each NUMA node of a host, and what it has left for nodes that are bound to it. Memory in bytes."""
    found = []
    for cell in cells:
        left, huge = (capacity_of(cell, domains, cpu_overcommit, huge=pages) for pages in (False, True))
        free = {"vcpus_free": left.vcpus_free, "memory_free": left.memory_free, "huge_free": huge.memory_free}
        found.append({"node": cell.number, "cpus": len(cell.cpus), "memory": cell.memory, **free})
    return found


def tighter(one: Capacity, other: Capacity) -> Capacity:
    """Return what is within both capacities."""
    vcpus, memory = min(one.vcpus, other.vcpus), min(one.memory, other.memory)
    return Capacity(vcpus, memory, vcpus - min(one.vcpus_free, other.vcpus_free), memory - min(one.memory_free, other.memory_free))


def choose_seat(name: str, size: Size, boot: Boot, cells: Sequence[Cell], *, domains: Sequence[Node], cpu_overcommit: float, devices: Sequence[Device]) -> Seat:
    """Return the NUMA node that has all that a new node needs, and least left then; raise NodeError with what each lacks."""
    taken = devices_taken(domains)
    found: list[tuple[int, Seat]] = []
    lacking = []
    for cell in cells:
        capacity = capacity_of(cell, domains, cpu_overcommit, huge=boot.hugepages)
        try:
            # How far it could grow is a wish: it does as far as there is room.
            check_fits(name, replace(size, max_vcpus=size.vcpus, max_memory=size.memory), None, capacity)
            chosen = choose_devices(boot.devices, _near(cell, boot.devices, devices), taken)
        except NodeError as error:
            lacking.append("NUMA node %d: %s" % (cell.number, error))
            continue
        found.append((capacity.memory_free, Seat(cell.number, cell.cpus, chosen)))
    if not found:
        raise NodeError("numa: %s is on none of this host's NUMA nodes as a whole. %s" % (name, "; ".join(lacking)))
    return min(found, key=lambda pair: pair[0])[1]


def _near(cell: Cell, words: Sequence[str], devices: Sequence[Device]) -> list[Device]:
    """Return the devices of a NUMA node, and those of no particular one."""
    far = [device for device in devices if device.numa not in (cell.number, -1)]
    named = next((device for device in far if device.address in words), None)
    if named is not None:
        raise NodeError("devices: %s is of NUMA node %d" % (named.address, named.numa))
    return [device for device in devices if device not in far]
