# SPDX-License-Identifier: Apache-2.0
"""Adopting, renaming and snapshots, on a real hypervisor: what libvirt and the guest say before and after."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.collection.test_backup import says
from tests.collection.test_virtual_node import Host, guest
from tests.conftest import ansible_module, eventually

from lepton_ai.sandbox.hypervisor import Hypervisor
from lepton_ai.sandbox.stand import free_port

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


@pytest.fixture(scope="module")
def host(hypervisor: Hypervisor) -> Host:
    return Host(hypervisor)


@pytest.fixture
def theirs(host: Host, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A domain that virsh made, with a disk of its own elsewhere."""
    disk, image = tmp_path / "theirs.qcow2", host.hypervisor.folder / "images" / "guest"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], check=True)
    (tmp_path / "theirs.xml").write_text(
        f"<domain type='qemu'><name>theirs</name><memory unit='MiB'>128</memory><vcpu current='1'>2</vcpu><os><type>hvm</type>"
        f"<kernel>{image.resolve()}/vmlinuz</kernel><initrd>{image.resolve()}/initrd.img</initrd><cmdline>console=ttyS0</cmdline></os>"
        f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
        "<memballoon model='none'/></devices></domain>"
    )
    host.virsh("define", str(tmp_path / "theirs.xml"))
    yield "theirs", disk
    host.virsh("destroy", "theirs")
    host.virsh("undefine", "theirs")


def identity(host: Host, name: str, **options: Any) -> dict[str, Any]:
    return host.module("virtual_node_identity", name=name, **options)


def test_a_running_domain_of_somebody_else_is_a_node_from_then_on_and_nothing_else_of_it_changes(host: Host, theirs: tuple[str, Path]) -> None:
    name, disk = theirs
    host.virsh("start", name)
    pid = subprocess.run(["pgrep", "-f", "guest=theirs"], capture_output=True, text=True, check=True).stdout
    before = host.everything()
    assert host.node(name, state="stopped")["failed"]  # it is not ours
    planned = identity(host, name, labels={"team": "search"}, check=True)
    assert planned["changes"][0] == {"field": "owner", "before": None, "after": "lepton", "effective": "now"}
    assert host.everything() == before
    adopted = identity(host, name, labels={"team": "search"})
    assert adopted["changed"], adopted
    assert adopted["node"]["labels"] == {"team": "search"}
    assert not identity(host, name)["changed"]
    assert subprocess.run(["pgrep", "-f", "guest=theirs"], capture_output=True, text=True, check=True).stdout == pid
    assert "team" in host.virsh("dumpxml", name)
    assert "team" in host.virsh("dumpxml", name, "--inactive")
    grown = host.node(name, vcpus=2)
    assert grown["changed"], grown
    assert host.virsh("vcpucount", name, "--live", "--current") == "2"
    released = host.node(name, state="absent")
    assert not released["failed"], released
    assert disk.exists()  # which is not where nodes' disks are
    assert "this host has no domain nobody" in identity(host, "nobody")["msg"]


def test_a_stopped_node_gets_another_name_with_its_files_and_one_that_was_cut_short_goes_on(host: Host) -> None:
    port = free_port()
    made = host.node("old-1", state="running", image="guest", vcpus=1, memory="128MiB", disk="16MiB", forward_ports=[f"{port}:80"])
    assert made["changed"], made
    assert says(port, "kept") == "kept"
    running = identity(host, "old-1", new_name="new-1")
    assert "old-1 is running, and a node can be given another name only while it is stopped" in running["msg"]
    host.virsh("destroy", "old-1")
    disks = host.hypervisor.folder / "disks"
    before = host.everything()
    assert identity(host, "old-1", new_name="new-1", check=True)["changes"][0]["after"] == "new-1"
    assert host.everything() == before
    assert "is not a node name" in identity(host, "old-1", new_name="-x")["msg"]
    host.virsh("domrename", "old-1", "new-1")  # as if it had ended after this
    finished = identity(host, "old-1", new_name="new-1")
    assert finished["changed"], finished
    assert not identity(host, "old-1", new_name="new-1")["changed"]
    assert [path.name for path in sorted(disks.glob("[!.]*-1*"))] == ["new-1.console.log", "new-1.qcow2"]
    host.node("new-1", state="running")
    assert says(port) == "kept"
    assert host.node("old-1", state="stopped", image="guest", vcpus=1, memory="64MiB")["changed"]  # the name is free, its files too
    host.virsh("destroy", "new-1")
    assert "there is a domain old-1 already" in identity(host, "new-1", new_name="old-1")["msg"]
    for name in ("old-1", "new-1"):
        host.node(name, state="absent")


def test_a_snapshot_has_memory_and_disk_and_backups_go_on_beside_it(host: Host, tmp_path: Path) -> None:
    port = free_port()

    def snapshot(name: str, state: str = "present", **options: Any) -> dict[str, Any]:
        return host.module("virtual_node_snapshot", name="snap-1", snapshot=name, state=state, **options)

    host.node("snap-1", state="running", image="guest", vcpus=1, memory="96MiB", disk="16MiB", forward_ports=[f"{port}:80"])
    assert says(port, "before") == "before"
    boot = eventually(lambda: guest(port, lambda seen: True))["boot_id"]
    back_up = {"name": "snap-1", "directory": str(tmp_path)}
    assert not host.module("virtual_node_backup", **back_up)["failed"]
    assert snapshot("one", check=True)["changed"]
    assert host.virsh("snapshot-list", "snap-1", "--name") == ""
    taken = snapshot("one")
    assert taken["changed"], taken
    assert host.virsh("snapshot-list", "snap-1", "--name") == "lepton-one"
    assert not snapshot("one")["changed"]
    beside = host.module("virtual_node_backup", **back_up)
    assert not beside["failed"], beside
    assert beside["backup"]["parent"] is None  # libvirt has either of them
    assert says(port, "after") == "after"
    reverted = snapshot("one", "reverted")
    assert reverted["changed"], reverted
    assert says(port) == "before"
    assert eventually(lambda: guest(port, lambda seen: True))["boot_id"] == boot  # it went on from its memory
    assert "snap-1 has no snapshot two, only one" in snapshot("two", "reverted")["msg"]
    host.virsh("destroy", "snap-1")
    assert "has snapshots, and libvirt gives no other name to what has" in identity(host, "snap-1", new_name="snap-2")["msg"]
    assert snapshot("one", "absent")["changed"]
    assert not snapshot("one", "absent")["changed"]
    assert host.virsh("snapshot-list", "snap-1", "--name") == ""
    assert [each["trouble"] for each in ansible_module("virtual_node_backup_info", {"directory": str(tmp_path), "verify": True})["backups"]] == ["", ""]
    host.node("snap-1", state="absent")
