# SPDX-License-Identifier: Apache-2.0
"""The module on a real hypervisor: what it says is compared with what libvirt and the guest say."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import SshServer, ansible_module, eventually

from lepton_ai.sandbox.hypervisor import Hypervisor
from lepton_ai.sandbox.stand import free_port

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]
MIB = 1 << 20


@dataclass
class Host:
    """The hypervisor with the modules on one side, and its own tools on the other."""

    hypervisor: Hypervisor

    def module(self, module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run a module as Ansible does and return what it answered."""
        folder = self.hypervisor.folder
        where = {"uri": self.hypervisor.uri, "image_dir": str(folder / "images"), "disk_dir": str(folder / "disks")}
        return ansible_module(module, {**where, **arguments}, check=check)

    def node(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.module("virtual_node", name=name, **arguments)

    def virsh(self, *words: str) -> str:
        done = subprocess.run(["virsh", "-q", "-c", self.hypervisor.uri, *words], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    def everything(self) -> tuple[str, str, list[str]]:
        """Return all that a change would show in: domains, their XML, and files."""
        names = self.virsh("list", "--all", "--name").split()
        states = "".join(self.virsh("dumpxml", name, "--inactive") + self.virsh("domstate", name) for name in names)
        files = sorted(str(path) for path in (self.hypervisor.folder / "disks").glob("[!.]*"))  # lock files stay
        return " ".join(names), states, files


@pytest.fixture(scope="module")
def host(hypervisor: Hypervisor) -> Host:
    return Host(hypervisor)


@pytest.fixture(scope="module")
def web(host: Host) -> Iterator[tuple[str, int]]:
    """A running node with headroom, and the port on which its guest answers."""
    port = free_port()
    wish: dict[str, Any] = {
        "state": "running",
        "image": "guest",
        "vcpus": 1,
        "memory": "128MiB",
        "max_vcpus": 4,
        "forward_ports": [f"{port}:80"],
        "disk": "64MiB",
    }
    before = host.everything()
    planned = host.node("web-1", check=True, **wish)
    assert planned["changed"]
    assert planned["node"] is None
    assert host.everything() == before
    made = host.node("web-1", **wish)
    assert made["changed"], made
    assert made["steps"] == planned["steps"] == ["define", "create_disk", "finish", "start"]
    assert made["node"]["virtualization"] == ("hardware" if "kvm" in host.virsh("dumpxml", "web-1").splitlines()[0] else "emulation")
    assert not host.node("web-1", **wish)["changed"]
    eventually(lambda: guest(port, lambda seen: True), 60)
    yield "web-1", port
    host.node("web-1", state="absent")


def guest(port: int, wanted: Any) -> dict[str, Any] | None:
    try:
        seen: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/cgi-bin/status", timeout=5).json()
    except (httpx.HTTPError, ValueError):
        return None
    return seen if wanted(seen) else None


def test_cpus_grow_while_it_runs(host: Host, web: tuple[str, int]) -> None:
    name, port = web
    boot = eventually(lambda: guest(port, lambda seen: True))["boot_id"]
    before = host.everything()
    planned = host.node(name, vcpus=3, check=True)
    assert planned["changed"]
    assert planned["changes"] == [{"field": "vcpus", "before": 1, "after": 3, "effective": "now"}]
    assert host.everything() == before
    changed = host.node(name, vcpus=3)
    assert changed["changed"]
    assert not changed["restart_required"]
    assert changed["changes"] == planned["changes"]
    assert host.virsh("vcpucount", name, "--live", "--current") == "3"
    assert host.virsh("vcpucount", name, "--config", "--current") == "3"
    assert eventually(lambda: guest(port, lambda seen: seen["cpus"] == 3))["boot_id"] == boot
    assert not host.node(name, vcpus=3)["changed"]


def test_memory_grows_and_shrinks_while_it_runs(host: Host, web: tuple[str, int]) -> None:
    name, port = web
    assert host.node(name, memory="200MiB")["changed"]
    assert "actual 204800" in host.virsh("dommemstat", name)
    eventually(lambda: guest(port, lambda seen: seen["memory_kib"] > 150_000))
    assert not host.node(name, memory="200MiB")["changed"]
    assert host.node(name, memory="160MiB")["changed"]
    eventually(lambda: guest(port, lambda seen: seen["memory_kib"] < 130_000))


def test_memory_that_the_guest_uses_is_not_taken(host: Host, web: tuple[str, int]) -> None:
    name, port = web
    host.node(name, memory="200MiB")
    assert "filled 90" in httpx.get(f"http://127.0.0.1:{port}/cgi-bin/fill?90", timeout=30).text
    # The figures that the guest gives are up to two seconds old.
    refused = eventually(lambda: (answer := host.node(name, memory="128MiB", check=True)).get("failed") and answer)
    assert "memory cannot go below" in refused["msg"]
    assert "memory cannot go below" in host.node(name, memory="128MiB")["msg"]
    assert "actual 204800" in host.virsh("dommemstat", name)
    assert guest(port, lambda seen: True)


def test_what_cannot_be_live_waits_for_the_restart_and_then_counts(host: Host, web: tuple[str, int]) -> None:
    name, port = web
    answer = host.node(name, vcpus=5)
    assert answer["changed"]
    assert answer["restart_required"]
    assert "reserved when the node was started" in answer["restart_reasons"][0]
    again = host.node(name, vcpus=5)
    assert not again["changed"]
    assert again["restart_required"]
    assert host.virsh("vcpucount", name, "--live", "--maximum") == "4"
    boot = eventually(lambda: guest(port, lambda seen: True))["boot_id"]
    restarted = host.node(name, state="restarted")
    assert restarted["steps"] == ["shutdown", "start"], restarted
    assert host.virsh("vcpucount", name, "--live", "--current") == "5"
    assert eventually(lambda: guest(port, lambda seen: seen["boot_id"] != boot), 60)["cpus"] == 5


def test_stop_and_start(host: Host, web: tuple[str, int]) -> None:
    name, port = web
    assert host.node(name, state="stopped")["changed"]
    assert host.virsh("domstate", name) == "shut off"
    assert not host.node(name, state="stopped")["changed"]
    assert host.node(name, vcpus=2)["steps"] == ["resize_config"]
    assert host.node(name, state="running")["changed"]
    assert eventually(lambda: guest(port, lambda seen: True), 60)["cpus"] == 2


def test_a_guest_that_does_not_power_down_is_not_forced(host: Host, web: tuple[str, int]) -> None:
    name, _port = web
    host.virsh("suspend", name)
    begun = time.monotonic()
    answer = host.node(name, state="stopped", wait_seconds=2)
    assert "did not power down within 2 s" in answer["msg"]
    assert time.monotonic() - begun < 20
    host.virsh("resume", name)
    eventually(lambda: host.virsh("domstate", name) in ("running", "shut off"))
    host.node(name, state="running")


def test_info_and_console_say_what_is(host: Host, web: tuple[str, int]) -> None:
    name, port = web
    eventually(lambda: guest(port, lambda seen: True), 60)
    answer = host.module("virtual_node_info", name=name, console_bytes=4000)
    assert [node["name"] for node in answer["nodes"]] == [name]
    assert "lepton guest: ready" in answer["console"]
    assert host.module("virtual_node_info", name="nobody")["nodes"] == []
    facts = host.module("host_info")
    assert facts["host"]["cpus"] == os.cpu_count()
    assert "guest" in facts["images"]
    assert facts["capacity"]["vcpus"] == 4 * (os.cpu_count() or 0)
    assert name in [node["name"] for node in facts["nodes"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bad", "state": "running", "image": "nothing-here", "vcpus": 1, "memory": "64MiB"}, "there is no image 'nothing-here'"),
        ({"name": "bad", "state": "running", "image": "guest", "vcpus": 999, "memory": "64MiB"}, "does not fit on this host"),
        ({"name": "bad", "state": "running", "image": "guest", "vcpus": 1, "memory": "9TiB"}, "memory is not overcommitted"),
        ({"name": "bad", "state": "running", "image": "guest", "vcpus": 1, "memory": "64MiB", "disk": "900TiB"}, "does not fit in"),
        ({"name": "bad", "state": "running"}, "to create it image and vcpus and memory is needed"),
        ({"name": "web 1; rm -rf /", "state": "absent"}, "is not a node name"),
        ({"name": "{{ lookup('pipe','id') }}", "state": "absent"}, "is not a node name"),
        ({"name": "bad", "state": "present", "memory": "lots"}, "memory: 'lots' is not a size"),
        ({"name": "bad", "state": "absent", "uri": "qemu+unix:///session?socket=/nowhere"}, "libvirt does not answer at"),
    ],
)  # fmt: skip
def test_bad_input_is_said_and_nothing_is_left(host: Host, web: tuple[str, int], arguments: dict[str, Any], message: str) -> None:
    before = host.everything()
    for check in (True, False):
        answer = host.module("virtual_node", check=check, **arguments)
        assert answer.get("failed")
        assert message in answer["msg"], answer["msg"]
    assert host.everything() == before


def test_a_node_that_exists_with_other_settings_is_left_alone(host: Host, web: tuple[str, int]) -> None:
    before = host.everything()
    for other in ({"image": "other"}, {"vcpus": 4}, {"network": "none"}, {"disk": "1GiB"}):
        answer = host.node(web[0], update=False, **other)
        assert answer.get("failed"), other
        assert "exists with" in answer["msg"]
    assert host.everything() == before


def test_a_domain_of_somebody_else_is_never_touched(host: Host) -> None:
    xml = "<domain type='qemu'><name>theirs</name><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>"
    path = host.hypervisor.folder / "theirs.xml"
    path.write_text(xml)
    host.virsh("define", str(path))
    try:
        before = host.everything()
        for wish in ({"state": "absent"}, {"state": "running"}, {"vcpus": 2}):
            assert "not made by Lepton" in host.node("theirs", **wish)["msg"]
        assert host.everything() == before
        assert "theirs" not in [node["name"] for node in host.module("host_info")["nodes"]]
    finally:
        host.virsh("undefine", "theirs")


def test_a_start_that_fails_leaves_nothing_of_a_new_node(host: Host, web: tuple[str, int]) -> None:
    before = host.everything()
    answer = host.node("twin", state="running", image="guest", vcpus=1, memory="64MiB", disk="64MiB", forward_ports=[f"{web[1]}:80"])
    assert "was not created, and nothing is left of it" in answer["msg"]
    names, states, files = host.everything()
    assert (names, states) == before[:2]
    assert [file for file in files if "twin" in file and not file.endswith(".lock")] == []


def test_a_disk_that_nobody_owns_is_not_overwritten(host: Host) -> None:
    disks = host.hypervisor.folder / "disks"
    disks.mkdir(exist_ok=True)
    orphan = disks / "orphan.qcow2"
    orphan.write_bytes(b"somebody's data")
    answer = host.node("orphan", state="running", image="guest", vcpus=1, memory="64MiB", disk="64MiB")
    assert "although no node uses it" in answer["msg"]
    assert orphan.read_bytes() == b"somebody's data"
    assert "orphan" not in host.virsh("list", "--all", "--name")
    orphan.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_and_nothing_is_left(host: Host, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        (small / "filler").write_bytes(b"x" * 60_000)
        answer = host.node("full", state="running", image="guest", vcpus=1, memory="64MiB", disk="8KiB", disk_dir=str(small))
        assert answer.get("failed"), answer
        assert "full" not in host.virsh("list", "--all", "--name")
        assert not list(small.glob("full*"))
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def cut_short(host: Host, name: str, unfinished: str) -> None:
    """Put the node into the state in which a kill between two steps leaves it."""
    xml = host.virsh("dumpxml", name, "--inactive").replace('unfinished=""', f'unfinished="{unfinished}"')
    path = host.hypervisor.folder / "cut.xml"
    path.write_text(xml)
    host.virsh("define", str(path))


def test_a_creation_that_was_cut_short_is_finished_by_the_next_run(host: Host) -> None:
    disk = host.hypervisor.folder / "disks" / "half.qcow2"
    wish: dict[str, Any] = {"state": "present", "image": "guest", "vcpus": 1, "memory": "64MiB", "disk": "64MiB"}
    assert host.node("half", **wish)["changed"]
    try:
        cut_short(host, "half", "creating")
        disk.unlink()
        assert host.node("half", **wish)["steps"] == ["create_disk", "finish"]
        assert disk.exists()
        assert not host.node("half", **wish)["changed"]
        # Cut short after the disk was published: it is not made again, and stays what it was.
        cut_short(host, "half", "creating")
        os.link(disk, f"{disk}.partial")
        inode = disk.stat().st_ino
        assert host.node("half", **wish)["changed"]
        assert disk.stat().st_ino == inode
        assert not Path(f"{disk}.partial").exists()
        # Under the disk's name lies somebody else's file: it is neither overwritten nor deleted.
        cut_short(host, "half", "creating")
        disk.write_bytes(b"somebody's data")
        assert "is left as it is" in host.node("half", **wish)["msg"]
    finally:
        assert host.node("half", state="absent")["changed"]
    assert disk.read_bytes() == b"somebody's data"
    disk.unlink()


def test_a_release_that_was_cut_short_can_only_be_released_again(host: Host) -> None:
    disk = host.hypervisor.folder / "disks" / "leaving.qcow2"
    host.node("leaving", state="present", image="guest", vcpus=1, memory="64MiB", disk="64MiB")
    cut_short(host, "leaving", "releasing")
    assert "release it again" in host.node("leaving", state="running")["msg"]
    assert host.node("leaving", state="absent")["changed"]
    assert not disk.exists()
    assert not host.node("leaving", state="absent")["changed"]


def test_a_disk_that_is_gone_is_not_replaced_by_an_empty_one(host: Host) -> None:
    disk = host.hypervisor.folder / "disks" / "moved.qcow2"
    host.node("moved", state="present", image="guest", vcpus=1, memory="64MiB", disk="64MiB")
    disk.rename(f"{disk}.elsewhere")
    assert "is not where it was" in host.node("moved", state="running")["msg"]
    assert not disk.exists()
    Path(f"{disk}.elsewhere").rename(disk)
    host.node("moved", state="absent")


def test_a_paused_node_is_said_to_be_paused_and_goes_on(host: Host, web: tuple[str, int]) -> None:
    host.virsh("suspend", web[0])
    (shown,) = host.module("virtual_node_info", name=web[0])["nodes"]
    assert shown["state"] == "paused"
    assert host.node(web[0], state="running")["steps"] == ["resume"]
    assert host.virsh("domstate", web[0]) == "running"


def test_an_image_smaller_disk_and_a_path_for_an_image_are_refused(host: Host) -> None:
    image = host.hypervisor.folder / "images" / "big.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    assert "smaller than the image" in host.node("small", state="present", image="big", vcpus=1, memory="64MiB", disk="8MiB")["msg"]
    assert "is not an image" in host.node("small", state="present", image="../disks/web-1", vcpus=1, memory="64MiB")["msg"]
    assert host.node("small", state="present", image="big", vcpus=1, memory="64MiB")["changed"]
    assert host.node("small", state="absent", check=True)["changes"][-1]["field"] == "disk"
    assert host.node("small", state="absent")["changed"]


def test_a_remote_connection_changes_no_files_of_this_machine(host: Host) -> None:
    remote = host.hypervisor.uri.replace("qemu+unix:///session", "qemu+ssh://nowhere.invalid/session")
    answer = host.node("far", state="absent", uri=remote)
    assert answer["failed"]
    assert "libvirt does not answer" in answer["msg"]


@pytest.fixture
def far(host: Host, ssh_server: SshServer) -> dict[str, str]:
    """The options with which the hypervisor is reached over ssh, as one on another machine would be."""
    path = host.hypervisor.uri.partition("socket=")[2]
    options = f"socket={path}&keyfile={ssh_server.key}&command={ssh_server.command}"
    return {"uri": f"qemu+ssh://{ssh_server.user}@127.0.0.1:{ssh_server.port}/session?{options}"}


@pytest.mark.ssh
def test_the_whole_life_of_a_node_over_a_remote_connection(host: Host, far: dict[str, str]) -> None:
    port = free_port()
    wish: dict[str, Any] = {
        "state": "running", "image": "guest", "vcpus": 1, "memory": "128MiB", "max_vcpus": 2, "disk": "16MiB", "forward_ports": [f"{port}:80"],
    }  # fmt: skip
    before = host.everything()
    planned = host.node("far-1", check=True, **far, **wish)
    assert planned["changed"], planned
    assert host.everything() == before
    made = host.node("far-1", **far, **wish)
    assert made["changed"], made
    assert made["steps"] == planned["steps"] == ["define", "create_disk", "finish", "start"]
    try:
        assert not host.node("far-1", **far, **wish)["changed"]
        disk = host.hypervisor.folder / "disks" / "far-1.qcow2"
        assert json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", disk]))["virtual-size"] == 16 * 1024 * 1024
        assert not disk.with_name(disk.name + ".partial").exists()
        eventually(lambda: guest(port, lambda seen: True), 60)
        assert host.node("far-1", vcpus=2, **far)["changes"] == [{"field": "vcpus", "before": 1, "after": 2, "effective": "now"}]
        eventually(lambda: guest(port, lambda seen: seen["cpus"] == 2))
        assert "lepton guest" in host.module("virtual_node_info", name="far-1", console_bytes=100_000, **far)["console"]
    finally:
        gone = host.node("far-1", state="absent", **far)
    assert gone["changed"], gone
    assert host.everything() == before
    assert not host.node("far-1", state="absent", **far)["changed"]


@pytest.mark.ssh
def test_bad_input_over_a_remote_connection_is_said_and_nothing_is_left(host: Host, far: dict[str, str]) -> None:
    images, disks = host.hypervisor.folder / "images", host.hypervisor.folder / "disks"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", images / "base.qcow2", "32M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", images / "plain.qcow2", "32M"], check=True)
    disks.mkdir(exist_ok=True)
    (disks / "taken.qcow2").write_text("somebody's")
    before = host.everything()
    small: dict[str, Any] = {"state": "present", "vcpus": 1, "memory": "64MiB", **far}
    assert "there is no image 'nothing'" in host.node("far-2", image="nothing", **small)["msg"]
    assert "is raw, not qcow2" in host.node("far-2", image="plain", **small)["msg"]
    assert "smaller than the image" in host.node("far-2", image="base", disk="8MiB", **small)["msg"]
    assert "does not fit" in host.node("far-2", image="base", disk="900TiB", **small)["msg"]
    assert "exists although no node uses it" in host.node("taken", image="base", **small)["msg"]
    assert host.everything() == before
    assert (disks / "taken.qcow2").read_text() == "somebody's"
    (disks / "taken.qcow2").unlink()
    made = host.node("far-2", image="base", **small)
    assert made["changed"], made
    assert "base.qcow2" in subprocess.check_output(["qemu-img", "info", disks / "far-2.qcow2"], text=True)
    cut_short(host, "far-2", "creating")
    (disks / "far-2.qcow2.partial").touch()
    assert host.node("far-2", image="base", **small)["changed"]  # made anew, and finished
    assert not (disks / "far-2.qcow2.partial").exists()
    assert host.node("far-2", state="absent", **far)["changed"]


def test_only_what_was_left_half_made_is_abandoned(host: Host) -> None:
    wish: dict[str, Any] = {"state": "present", "image": "guest", "vcpus": 1, "memory": "64MiB", "disk": "64MiB"}
    disk = host.hypervisor.folder / "disks" / "quarter.qcow2"
    host.node("quarter", **wish)
    before = host.everything()
    for name in ("quarter", "nobody"):
        assert not host.node(name, state="abandoned")["changed"]
    assert host.everything() == before
    cut_short(host, "quarter", "creating")
    Path(f"{disk}.partial").hardlink_to(disk)  # what tells its own disk from somebody else's
    before = host.everything()
    assert host.node("quarter", state="abandoned", check=True)["changed"]
    assert host.everything() == before
    assert host.node("quarter", state="abandoned")["changed"]
    assert "quarter" not in host.virsh("list", "--all", "--name")
    assert not host.node("quarter", state="abandoned")["changed"]
    disk.unlink(missing_ok=True)
