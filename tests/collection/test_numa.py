# SPDX-License-Identifier: Apache-2.0
"""Nodes that are on one NUMA node of their host as a whole. The build machine has but one, so hosts with two are libvirt's test driver and written ones."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._domain_xml import read_boot, read_cell, render_domain
from ansible_collections.lepton.cloud.plugins.module_utils._node import Boot, Node, NodeError, Size, used_by
from ansible_collections.lepton.cloud.plugins.module_utils._numa import Cell, Seat, capacity_of, cells_result, choose_seat, read_cells, tighter
from ansible_collections.lepton.cloud.plugins.module_utils._pci import Device
from tests.collection.test_domain_xml import validated
from tests.collection.test_moving import answer, node, plan
from tests.collection.test_virtual_node import Host

from lepton_ai.paths import collections_path
from lepton_ai.sandbox.hypervisor import Hypervisor

GIB = 1 << 30
CAPABILITIES = """<capabilities><host><topology><cells num='2'>
<cell id='0'><memory unit='KiB'>16777216</memory><cpus num='2'><cpu id='0' socket_id='0'/><cpu id='2' socket_id='0'/></cpus></cell>
<cell id='1'><memory unit='KiB'>8388608</memory><cpus num='2'><cpu id='1' socket_id='1'/><cpu id='3' socket_id='1'/></cpus></cell>
</cells></topology></host></capabilities>"""
CELLS = read_cells(CAPABILITIES)
SIZE = Size(2, 4 * GIB, 2, 4 * GIB)
BOOT = Boot("debian", None, "none", (), numa=True)
ASKED = """import json, sys
from ansible_collections.lepton.cloud.plugins.module_utils import _libvirt, _node
host = _libvirt.Host(sys.argv[1], image_dir="/", disk_dir="/", cpu_overcommit=4, memory_reserve=0, run=lambda command: (1, "", ""))
host._memory = lambda: 64 << 30  # the one call that the test driver does not know
boot, size = _node.Boot("debian", None, "none", (), numa=True), _node.Size(2, 1 << 30, 2, 1 << 30)
xml = host.domain("test").XMLDesc(2).replace("<vcpu", "<numatune><memory mode='strict' nodeset='1'/></numatune><vcpu")
seats = [host.choose_seat("new", each, boot) for each in (size, _node.Size(2, 3 << 30, 2, 3 << 30))]
host.connection.defineXML(xml)
rooms = [host.room_of(None), host.room_of(None, numa=True), host.room_of(host.node("test"))]
print(json.dumps({"cells": host.cells(), "rooms": [(room.vcpus, room.memory, room.memory_free) for room in rooms], "seats": [seat.cell for seat in seats]}))"""
GPU = Device("0000:3b:00.0", "0x030200", "0x10de", 1, "30", "nvidia", console=False)


def bound(name: str, cell: int | None, size: Size = SIZE) -> Node:
    return Node(name, size, boot=BOOT, cell=cell)


def seat(size: Size = SIZE, *domains: Node, boot: Boot = BOOT, devices: tuple[Device, ...] = (), overcommit: float = 4.0) -> Seat:
    return choose_seat("web-1", size, boot, CELLS, domains=domains, cpu_overcommit=overcommit, devices=devices)


def test_what_libvirt_says_of_numa_nodes_is_read() -> None:
    assert [Cell(0, 16 * GIB, (0, 2)), Cell(1, 8 * GIB, (1, 3))] == CELLS


def test_the_one_that_has_least_left_then_is_chosen() -> None:
    assert seat() == Seat(1, (1, 3), [])
    assert seat(replace(SIZE, memory=9 * GIB, max_memory=9 * GIB)).cell == 0
    assert seat(SIZE, bound("a", 1), bound("b", 1)).cell == 0  # there is no room on the other
    assert seat(SIZE, bound("a", None), bound("b", None)).cell == 1  # what is bound to none counts on none


def test_devices_are_of_the_same() -> None:
    held = replace(BOOT, devices=("nvidia-gpu:1",))
    assert seat(boot=held, devices=(replace_numa(0),)) == Seat(0, (0, 2), ["0000:3b:00.0"])
    assert seat(replace(SIZE, memory=6 * GIB, max_memory=6 * GIB), boot=held, devices=(GPU,)) == Seat(1, (1, 3), ["0000:3b:00.0"])
    with pytest.raises(NodeError, match=r"NUMA node 0: devices: 0000:3b:00.0 is of NUMA node 1; NUMA node 1: .* 0B of 8GiB are free"):
        seat(SIZE, bound("a", 1), bound("b", 1), boot=replace(BOOT, devices=("0000:3b:00.0",)), devices=(GPU,))


def replace_numa(numa: int) -> Device:
    return GPU._replace(numa=numa)


def test_pages_are_of_a_numa_node_too() -> None:
    cells = [CELLS[0]._replace(reserved=12 * GIB, huge=12 * GIB), CELLS[1]]
    of_pages = replace(BOOT, hugepages=True)
    found = [choose_seat("web-1", SIZE, each, cells, domains=(), cpu_overcommit=4, devices=()).cell for each in (of_pages, BOOT)]
    assert found == [0, 0]  # 12 GiB of pages, and the 4 GiB beside them, less than what the other has
    with pytest.raises(NodeError, match=r"NUMA node 0: .* 4GiB of 4GiB are free"):
        choose_seat("web-1", Size(1, 10 * GIB, 1, 10 * GIB), BOOT, cells, domains=(), cpu_overcommit=4, devices=())
    told = cells_result(cells, [replace(bound("a", 0), huge=True)], 4)
    assert [(cell["memory_free"], cell["huge_free"], cell["vcpus_free"]) for cell in told] == [(4 * GIB, 8 * GIB, 6), (8 * GIB, 0, 8)]


def test_headroom_is_a_wish() -> None:
    assert seat(Size(2, 6 * GIB, 4, 64 * GIB)).cell == 1


def test_what_each_lacks_is_said() -> None:
    with pytest.raises(NodeError, match=r"on none of this host's NUMA nodes as a whole. NUMA node 0: .* 4 of 4 allowed vCPUs .*; NUMA node 1: "):
        seat(Size(5, GIB, 5, GIB), overcommit=2)


def test_what_is_bound_grows_within_its_numa_node() -> None:
    whole, part = capacity_of(CELLS[0], [bound("a", 0)], 4.0), capacity_of(CELLS[1], [bound("b", 1), bound("c", 1)], 2.0)
    both = tighter(whole, part)
    assert (both.vcpus, both.vcpus_free, both.memory, both.memory_free) == (4, 0, 8 * GIB, 0)
    assert used_by([bound("a", 0), bound("b", 1)]) == (4, 8 * GIB)


def test_it_is_as_libvirt_has_it(tmp_path: Path) -> None:
    xml = render_domain("a", SIZE, BOOT, virtualization="kvm", disk_path="/d", console_path="/c", direct_boot=None, has_disk=True, seat=Seat(1, (1, 3)))
    assert validated(xml, tmp_path) == ""
    assert read_cell(xml) == 1
    assert read_boot(xml) == BOOT
    assert [pin.get("cpuset") for pin in ET.fromstring(xml).iterfind("cputune/vcpupin")] == ["1,3", "1,3"]
    assert read_cell(xml.replace('nodeset="1"', 'nodeset="0-1"')) is None


def test_a_bound_node_moves_to_a_host_that_has_it_on_one(tmp_path: Path) -> None:
    def cells(free: int) -> list[dict[str, Any]]:
        return [{"node": number, "cpus": 4, "memory": 8 * GIB, "vcpus_free": 14, "memory_free": free * GIB, "huge_free": 0} for number in (0, 1)]

    held: dict[str, Any] = {**node("web-1"), "numa": True, "numa_node": 0, "vcpus": 2, "memory": "6GiB"}
    full = {**answer({**held, "name": "x"}, {**held, "name": "y", "numa_node": 1}), "host": {"cpus": 8, "numa": cells(2)}}
    free = {**answer(), "host": {"cpus": 8, "numa": cells(8)}}
    for each in (full, free):
        each["capacity"] = {"vcpus": 32, "vcpus_free": 20, "memory": 64 * GIB, "memory_free": 40 * GIB}
    steps = plan("node.move", {"a": answer(held), "b": full, "c": free}, node="web-1")
    assert {step["host"] for step in steps} == {"a", "c"}
    # Running it cannot go, which is said before anything is done.
    whole = {**held, "numa_node": None}  # of a host that has but one
    for source, operation, given in ((held, "node.move", {"node": "web-1"}), (held, "host.drain", {"host": "a"}), (whole, "node.move", {"node": "web-1"})):
        with pytest.raises(ValueError, match="web-1 is bound to one NUMA node, and no migration binds it to another"):
            plan(operation, {"a": answer(source), "c": free}, mode="live", **given)
    # A drain gives each NUMA node once.
    three = [{**held, "name": f"n{number}"} for number in (1, 2, 3)]
    with pytest.raises(ValueError, match="c: none of its NUMA nodes has all of it, only 12 CPUs, 2GiB and 0 GPUs, 12 CPUs, 2GiB and 0 GPUs"):
        plan("host.drain", {"a": answer(*three), "c": free}, host="a")
    assert len(plan("host.drain", {"a": answer(*three[:2]), "c": free}, host="a")) > 2
    with pytest.raises(ValueError, match="b: none of its NUMA nodes has all of it, only 14 CPUs, 2GiB and 0 GPUs, 14 CPUs, 2GiB and 0 GPUs"):
        plan("node.move", {"a": answer(held), "b": full}, node="web-1")


@pytest.mark.libvirt
def test_a_host_tells_of_its_numa_nodes(hypervisor: Hypervisor) -> None:
    here = Host(hypervisor).module("host_info")["host"]
    several = Path("/sys/devices/system/node/node1").exists()
    assert bool(here["numa"]) == several
    # libvirt's test driver has two, and lacks a call that the module needs, so it is asked as the module asks.
    command = ["/usr/bin/python3", "-c", ASKED, "test:///default"]
    told = json.loads(subprocess.run(command, env={"PYTHONPATH": str(collections_path())}, capture_output=True, check=True).stdout)
    assert [(number, memory, len(cpus)) for number, memory, cpus, _reserved, _huge in told["cells"]] == [(0, 2 * GIB, 8), (1, 4 * GIB, 8)]
    assert told["seats"] == [0, 1]
    # Its one node has 2 GiB, and was bound to the second NUMA node: it grows within that, and a new one gets no headroom beyond one.
    assert [tuple(room) for room in told["rooms"]] == [(64, 64 * GIB, 62 * GIB), (32, 4 * GIB, 2 * GIB), (32, 4 * GIB, 2 * GIB)]


@pytest.mark.libvirt
@pytest.mark.slow
def test_libvirt_binds_what_runs(hypervisor: Hypervisor, tmp_path: Path) -> None:
    """On the one NUMA node that is here, by the XML that a host with several would get."""
    host = Host(hypervisor)
    xml = render_domain(
        "bound-1", Size(1, 64 << 20, 1, 64 << 20), BOOT, virtualization="qemu", disk_path="", console_path=str(tmp_path / "log"), direct_boot=None,
        has_disk=False, seat=Seat(0, tuple(sorted(os.sched_getaffinity(0)))),
    )  # fmt: skip
    (tmp_path / "bound.xml").write_text(xml)
    host.virsh("define", str(tmp_path / "bound.xml"))
    try:
        host.virsh("start", "bound-1")
        assert "numa_nodeset   : 0" in host.virsh("numatune", "bound-1")
        assert {node["name"]: node.get("numa_node") for node in host.module("host_info")["nodes"]}["bound-1"] == 0
    finally:
        host.virsh("destroy", "bound-1")
        host.virsh("undefine", "bound-1")


@pytest.mark.libvirt
@pytest.mark.slow
def test_on_a_host_with_one_numa_node_nothing_has_to_be_bound(hypervisor: Hypervisor) -> None:
    host = Host(hypervisor)
    size: dict[str, Any] = {"image": "guest", "vcpus": 1, "memory": "64MiB", "virtualization": "emulation", "numa": True}
    assert "give either numa or cpuset" in host.node("numa-1", cpuset="0", **size)["msg"]
    made = host.node("numa-1", **size)
    assert made["changed"], made
    try:
        assert made["node"]["numa"]
        assert "numatune" not in host.virsh("dumpxml", "numa-1")
        assert not host.node("numa-1", **size)["changed"]
        assert "that cannot be changed" in host.node("numa-1", **{**size, "numa": False})["msg"]
    finally:
        host.node("numa-1", state="absent")
