# SPDX-License-Identifier: Apache-2.0
"""Running nodes that go to another host: two libvirt daemons in two network namespaces are the hosts, and the guests are asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils import _migration
from ansible_collections.lepton.cloud.plugins.module_utils._migration import BROKEN, _ask, cpu_needed
from ansible_collections.lepton.cloud.plugins.module_utils._node import NodeError
from ansible_collections.lepton.cloud.plugins.module_utils._progress import SAID
from tests.collection.test_moving import answer, node, plan
from tests.conftest import eventually
from tests.machines import Two, two_machines

MIB = 1 << 20
THERE = {"uri": "qemu+tcp://kvm2/system", "image_dir": "/i", "disk_dir": "/d", "cpu_overcommit": 2.0, "memory_reserve": "1GiB"}


def test_a_node_that_runs_is_migrated_where_that_is_asked_for() -> None:
    hosts = {"a": answer(node("n1"), node("n2", state="stopped")), "b": {**answer(), "migration": THERE}}
    (step,) = plan("node.move", hosts, {}, node="n1", mode="live")
    assert (step["host"], step["module"], step["before"], step["after"]) == (
        "a", "lepton.cloud.virtual_node_migration", {"state": "running"}, {"state": "absent"},
    )  # fmt: skip
    assert step["args"] == {"name": "n1", "live": True, **{f"target_{option}": value for option, value in THERE.items()}}
    assert plan("node.move", hosts, {}, node="n1", mode="suspended")[0]["args"]["live"] is False
    assert [step["module"].rpartition(".")[2] for step in plan("node.move", hosts, node="n2", mode="live")][:2] == [
        "virtual_node_backup",
        "virtual_node_restore",
    ]
    drained = plan("host.drain", hosts, host="a", mode="live")
    assert [step["title"] for step in drained][:3] == ["have nothing new on a", "migrate n1 to b", "back n2 up"]
    nowhere = {**hosts, "b": {**answer(), "migration": {**THERE, "uri": None}}}
    with pytest.raises(ValueError, match="no running node comes to b: set migration_uri"):
        plan("node.move", nowhere, {}, node="n1", mode="live")


def test_only_hardware_has_models_of_cpus() -> None:
    capabilities = "<capabilities><host><cpu><arch>x86_64</arch><model>EPYC-Milan</model></cpu></host></capabilities>"
    assert cpu_needed("<domain type='qemu'><cpu mode='custom'><model>qemu64</model></cpu></domain>", capabilities) is None
    assert "EPYC-Milan" in str(cpu_needed("<domain type='kvm'><cpu mode='host-passthrough'/></domain>", capabilities))
    assert "Haswell" in str(cpu_needed("<domain type='kvm'><cpu mode='custom'><model>Haswell</model></cpu></domain>", capabilities))


@pytest.mark.parametrize(
    ("printed", "broken"),
    [
        ("[  1.2] BUG: unable to handle page fault for address: 00\r\n", True),
        ("Kernel panic - not syncing: Attempted to kill init!", True),
        ("Oops: 0002 [#1] PREEMPT SMP", True),
        ("web-1 login: ", False),
    ],
)
def test_what_a_broken_kernel_prints_is_known(printed: str, broken: bool) -> None:
    assert bool(BROKEN.search(printed)) == broken


class Broken:
    """Stands for a host whose guest has printed something, and says nothing of its memory."""

    uri, name = "qemu+tcp://kvm2/system", "web-1"

    def __init__(self, printed: bytes) -> None:
        self.printed, self.files = printed, self

    def domain(self, _name: str) -> Broken:
        return self

    def console_path(self, _name: str) -> str:
        return "/d/web-1.console.log"

    def read(self, _path: str, _limit: int) -> bytes:
        return self.printed


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [
        (b"", b"Kernel panic - not syncing", True),
        (b"login: ", b"boot\r\nlogin: Oops: 0002", True),
        (b"Oops: 0002 was yesterday\r\n", b"boot\r\nOops: 0002 was yesterday\r\nlogin: ", False),
        (b"", b"login: ", False),
    ],
)
def test_a_guest_that_arrives_broken_is_told_from_one_that_was(monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes, broken: bool) -> None:
    monkeypatch.setattr(_migration, "WATCHED_SECONDS", 0.3)
    host: Any = Broken(after)
    if not broken:
        _ask(host, "web-1", "", before, "")
        return
    with pytest.raises(NodeError, match=r"libvirt says that went well, but its kernel printed: .* the old disk is kept"):
        _ask(host, "web-1", "", before, "the old disk is kept")


class Dying(Broken):
    """Stands for a host whose guest tells of its memory for some time, and then prints that it breaks, or falls silent."""

    def __init__(self, tells: int, printed: bytes = b"") -> None:
        super().__init__(printed)
        self.left, self.told = tells, 0

    def memoryStats(self) -> dict[str, int]:  # noqa: N802 -- libvirt's name
        self.left, self.told = self.left - 1, self.told + (self.left > 0)
        return {"last_update": self.told}

    def read(self, path: str, limit: int) -> bytes:
        return super().read(path, limit) if self.left <= 0 else b""


@pytest.mark.parametrize(
    ("printed", "why"), [(b"Kernel panic - not syncing", "its kernel printed: Kernel panic"), (b"", "its guest did not answer within 2 s")]
)
def test_a_guest_that_breaks_soon_after_it_has_answered_is_broken(monkeypatch: pytest.MonkeyPatch, printed: bytes, why: str) -> None:
    monkeypatch.setattr(_migration, "WATCHED_SECONDS", 1)
    monkeypatch.setattr(_migration, "ANSWER_SECONDS", 2)
    dying: Any = Dying(3, printed)
    with pytest.raises(NodeError, match=why):
        _ask(dying, "web-1", "balloon", b"", "")
    living: Any = Dying(1000)
    _ask(living, "web-1", "balloon", b"", "")


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with two_machines() as machines:
        yield machines


@pytest.fixture
def two_with_node(two: Two) -> Iterator[Two]:
    """A running node on the first host, with something on its disk."""
    # Its disk builds upon its image's, which the other host does not have.
    for host in (two.first, two.second):
        image = host.folder / "images/based"
        if not image.exists():
            image.mkdir()
            for file in (host.folder / "images/guest").iterdir():
                (image / file.name).symlink_to(file)
    base = two.first.folder / "images/based/disk.qcow2"
    if not base.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "16M"], check=True)
    size = {"vcpus": 1, "memory": "96MiB", "disk": "32MiB", "virtualization": "emulation"}
    made = two.first.module("virtual_node", name="mig-1", state="running", image="based", forward_ports=["8090:80"], first_boot={}, **size)
    assert made["changed"], made
    eventually(lambda: two.first.asks("status"), 90)
    assert two.first.asks("disk?kept") == "kept"
    yield two
    for host in (two.first, two.second):
        host.module("virtual_node", name="mig-1", state="absent")
    assert two.running() == []


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_node_goes_live_with_its_disk_and_its_guest_works_on(two_with_node: Two) -> None:
    two = two_with_node
    boot = json.loads(two.first.asks("status"))["boot_id"]
    planned = two.play("node/move", "--check", "-e", "node=mig-1", "-e", "mode=live")
    assert planned.returncode == 0, planned.stdout
    assert (two.running(), two.files(two.second)) == (["kvm1"], [])
    assert "mig-1.seed.iso" in two.files(two.first)
    moved = two.play("node/move", "-e", "node=mig-1", "-e", "mode=live")
    assert moved.returncode == 0, moved.stdout
    assert SAID in moved.stdout  # how far it is
    assert two.running() == ["kvm2"]
    assert two.second.asks("disk") == "kept"
    assert json.loads(two.second.asks("status"))["boot_id"] == boot
    assert two.files(two.first) == []
    assert two.files(two.second) == ["mig-1.console.log", "mig-1.qcow2"]
    assert "seed.iso" not in two.second.virsh("dumpxml", "mig-1")
    stranger = two.first.folder / "disks/mig-1.qcow2"
    stranger.write_text("somebody's")
    assert "mig-1" not in two.first.virsh("list", "--all", "--name")
    again = two.first.module("virtual_node_migration", name="mig-1", target_uri="qemu+tcp://kvm2/system", target_disk_dir=two.second.options["disk_dir"])
    assert again["changed"] is False, again
    assert stranger.read_text() == "somebody's"
    stranger.unlink()
    back = two.play("host/drain", "-e", "host=kvm2", "-e", "mode=suspended")
    assert back.returncode == 0, back.stdout
    assert (two.running(), two.first.asks("disk")) == (["kvm1"], "kept")
    assert two.play("host/resume", "-e", "host=kvm2").returncode == 0


@pytest.mark.libvirt
@pytest.mark.slow
def test_what_cannot_go_stays_as_it_is_and_so_does_what_is_cut_off_on_its_way(two_with_node: Two) -> None:
    two = two_with_node
    boot = json.loads(two.first.asks("status"))["boot_id"]
    there = {"name": "mig-1", "target_uri": "qemu+tcp://kvm2/system", "target_disk_dir": two.second.options["disk_dir"]}

    def refused(**arguments: Any) -> str:
        answer = two.first.module("virtual_node_migration", **{**there, **arguments})
        assert answer["failed"], answer
        assert two.running() == ["kvm1"]
        return str(answer["msg"])

    assert "mig-1 is on that host already" in refused(target_uri="qemu+tcp://kvm1/system")
    assert "libvirt does not answer at qemu+tcp://10.213.7.9/system" in refused(target_uri="qemu+tcp://10.213.7.9/system")
    assert "this host has no node mig-2" in refused(name="mig-2")
    foreign = two.folder / "kvm2/disks/mig-1.qcow2"
    foreign.write_text("somebody's")
    assert f"{foreign} exists on the other host although no node uses it" in refused()
    assert foreign.read_text() == "somebody's"
    foreign.unlink()
    taken = two.second.module("virtual_node", name="mig-1", image="guest", vcpus=1, memory="32MiB")
    assert taken["changed"], taken
    assert "has a domain mig-1 already" in refused()
    two.second.module("virtual_node", name="mig-1", state="absent")
    # Its port is taken there, which only QEMU finds out.
    holder = "import socket; s = socket.create_server(('127.0.0.1', 8090)); print('held', flush=True); s.accept()"
    with subprocess.Popen([*two.second.inside, "/usr/bin/python3", "-c", holder], stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        assert "mig-1 was not migrated" in refused()
        held.kill()
    assert two.files(two.second) == ["mig-1.console.log"]
    two.second.module("virtual_node", name="mig-1", state="absent")

    two.first.virsh("migrate-setspeed", "mig-1", "1")  # MiB/s: it is under way for long enough to be cut off
    with ThreadPoolExecutor() as pool:
        going = pool.submit(two.first.module, "virtual_node_migration", **there)
        eventually(lambda: "Outgoing migration" in two.first.virsh("domjobinfo", "mig-1"), 60)
        two.first.do("ip", "link", "set", "wire0", "down")
        cut = going.result()
        two.first.do("ip", "link", "set", "wire0", "up")
    assert cut["failed"], cut
    assert "It is running where it was" in cut["msg"]
    assert two.running() == ["kvm1"]
    assert json.loads(two.first.asks("status"))["boot_id"] == boot
    two.first.virsh("migrate-setspeed", "mig-1", "1000")
    gone = two.first.module("virtual_node_migration", **there)
    assert gone["changed"], gone
    assert (gone["heard"], two.running(), two.second.asks("disk")) == ("balloon", ["kvm2"], "kept")


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_disk_that_both_hosts_see_is_not_copied(two: Two) -> None:
    shared = two.folder / "shared"
    shared.mkdir()
    size = {"vcpus": 1, "memory": "96MiB", "disk": "32MiB", "virtualization": "emulation", "disk_dir": str(shared)}
    assert two.first.module("virtual_node", name="mig-1", image="guest", forward_ports=["8090:80"], **size)["changed"]
    cached = two.first.module("virtual_node", name="mig-1", state="running", disk_dir=str(shared))
    there: dict[str, Any] = {"name": "mig-1", "target_uri": "qemu+tcp://kvm2/system", "disk_dir": str(shared)}
    assert "Migration without shared storage is unsafe" in two.first.module("virtual_node_migration", **there)["msg"], cached
    two.first.virsh("destroy", "mig-1")
    # Where no host caches, it is safe on any file system.
    described = two.folder / "uncached.xml"
    described.write_text(two.first.virsh("dumpxml", "mig-1").replace("type='qcow2'", "type='qcow2' cache='none'"))
    two.first.virsh("define", str(described))
    assert two.first.module("virtual_node", name="mig-1", state="running", disk_dir=str(shared))["changed"]
    eventually(lambda: two.first.asks("status"), 90)
    assert two.first.asks("disk?kept") == "kept"
    gone = two.first.module("virtual_node_migration", **there)
    assert not gone["failed"], gone
    assert (gone["changed"], gone["copied"]) == (True, None)
    assert (two.running(), two.second.asks("disk")) == (["kvm2"], "kept")
    assert (shared / "mig-1.qcow2").exists()
    assert two.second.module("virtual_node", name="mig-1", state="absent", disk_dir=str(shared))["changed"]
    assert not (shared / "mig-1.qcow2").exists()
