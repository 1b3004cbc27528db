# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The NUMA nodes of a host, which libvirt calls cells, and which of them a node is to be on as a whole. Pure. PRIVATE to the collection."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import NamedTuple, Sequence

from ._node import Boot, Capacity, Node, NodeError, Size, check_fits, used_by
from ._pci import Device, choose_devices

KIB = 1024
PAGE = 4  # KiB, of one that is not huge, where nodes are made


class Cell(NamedTuple):
    """A NUMA node of a host: its number, memory in bytes, and its CPUs."""

    number: int
    memory: int
    cpus: tuple[int, ...]


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
    return [
        Cell(int(cell.get("id", 0)), int(cell.findtext("memory") or 0) * KIB, tuple(int(cpu.get("id", 0)) for cpu in cell.iterfind("cpus/cpu")))
        for cell in ET.fromstring(capabilities).iterfind("host/topology/cells/cell")
    ]


def read_huge_pages(capabilities: str) -> int:
    """Return how much memory a host has reserved as huge pages, of which nothing else can be."""
    pages = ET.fromstring(capabilities).iterfind("host/topology/cells/cell/pages")
    return sum(int(page.get("size", 0)) * int(page.text or 0) * KIB for page in pages if int(page.get("size", 0)) > PAGE)


def capacity_of(cell: Cell, domains: Sequence[Node], cpu_overcommit: float) -> Capacity:
    """Return what a NUMA node may give and has given to nodes that are bound to it."""
    return Capacity(int(len(cell.cpus) * cpu_overcommit), cell.memory, *used_by([node for node in domains if node.cell == cell.number]))


def tighter(one: Capacity, other: Capacity) -> Capacity:
    """Return what is within both capacities."""
    vcpus, memory = min(one.vcpus, other.vcpus), min(one.memory, other.memory)
    return Capacity(vcpus, memory, vcpus - min(one.vcpus_free, other.vcpus_free), memory - min(one.memory_free, other.memory_free))


def choose_seat(name: str, size: Size, boot: Boot, cells: Sequence[Cell], *, domains: Sequence[Node], cpu_overcommit: float, devices: Sequence[Device]) -> Seat:
    """Return the NUMA node that has all that a new node needs, and least left then; raise NodeError with what each lacks."""
    taken = {address: node.name for node in domains for address in node.devices}
    found: list[tuple[int, Seat]] = []
    lacking = []
    for cell in cells:
        capacity = capacity_of(cell, domains, cpu_overcommit)
        try:
            check_fits(name, size, None, capacity)
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
