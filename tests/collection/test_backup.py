# SPDX-License-Identifier: Apache-2.0
"""Backups of nodes: pure plans, and then a guest's own data on a second hypervisor after the first one is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._backup import Backup, builds_upon, chain_of, described, next_id, read, superfluous, written
from ansible_collections.lepton.cloud.plugins.module_utils._node import Boot, NodeError, Size
from tests.collection.test_virtual_node import Host, guest
from tests.conftest import ansible_module, eventually, require

from lepton_ai.sandbox.hypervisor import Hypervisor, start_hypervisor, stop_hypervisor
from lepton_ai.sandbox.stand import free_port, link_guest_image

MIB = 1 << 20
UUID = "6f0a"


def backup(number: int, parent: int | None = None, **more: Any) -> Backup:
    def name(of: int) -> str:
        return f"202611{of:02}T020000Z"

    given: dict[str, Any] = {"parent": name(parent) if parent else None, "checkpoint": f"lepton-{name(number)}", "consistency": "crash", "uuid": UUID, **more}
    return described(name(number), "web-1", Size(1, 256 * MIB, 2, 512 * MIB), Boot("guest", 64 * MIB, "user", ("8080:80",), (("team", "search"),)), **given)


def known(*backups: Backup) -> dict[str, Backup]:
    return {each.id: each for each in backups}


def test_a_manifest_is_read_as_it_was_written_and_one_that_is_none_is_refused() -> None:
    made = replace(backup(1), sha256="ab", size=7)
    assert read(written(made), "m") == made
    for text in ("", "[]", "{}", '{"version": 2}', written(made).replace("20261101", "../../01"), written(made).replace('"web-1"', '"-x"')):
        with pytest.raises(NodeError, match="m is no manifest of a backup"):
            read(text, "m")


def test_what_a_backup_builds_upon_must_be_there() -> None:
    three = known(backup(1), backup(2, 1), backup(3, 2))
    assert [item.id[6:8] for item in chain_of("20261103T020000Z", three)] == ["01", "02", "03"]
    del three["20261102T020000Z"]
    with pytest.raises(NodeError, match="there is no backup 20261102T020000Z, on which 20261103T020000Z builds, only 20261101"):
        chain_of("20261103T020000Z", three)
    with pytest.raises(NodeError, match="there is no backup x only none"):
        chain_of("x", {})
    with pytest.raises(NodeError, match="builds upon itself"):
        chain_of("20261101T020000Z", known(backup(1, 2), backup(2, 1)))


def test_the_next_one_is_full_where_what_has_changed_is_not_known() -> None:
    two = known(backup(1), backup(2, 1))
    newest = "lepton-20261102T020000Z"
    found = builds_upon(two, [newest], uuid=UUID, full=False)
    assert found is not None
    assert found.id == "20261102T020000Z"
    assert builds_upon(two, [newest], uuid=UUID, full=True) is None
    assert builds_upon(two, [], uuid=UUID, full=False) is None  # a migration forgets checkpoints
    assert builds_upon(two, [newest], uuid="another", full=False) is None  # one of the same name that was made anew
    assert builds_upon({}, [newest], uuid=UUID, full=False) is None
    long = known(backup(1), *(backup(number, number - 1) for number in range(2, 15)))
    assert builds_upon(long, ["lepton-20261114T020000Z"], uuid=UUID, full=False) is None


def test_nothing_goes_on_which_something_builds_that_stays() -> None:
    there = known(backup(1), backup(2, 1), backup(3), backup(4, 3), backup(5, 4))
    assert superfluous(there, 2) == ["20261102T020000Z", "20261101T020000Z"]
    assert superfluous(there, 4) == []
    assert superfluous(there, 9) == []
    assert next_id("20261101T020000Z", ["20261101T020000Z", "20261101T020000Z-1"]) == "20261101T020000Z-2"


# For real


class Pair:
    """Two hypervisors and a folder that both see; the first can be lost."""

    def __init__(self, first: Host, second: Host, directory: Path) -> None:
        self.first, self.second, self.directory = first, second, directory

    def everything(self) -> list[str]:
        return sorted(f"{path.relative_to(self.directory)} {path.stat().st_size}" for path in self.directory.rglob("*"))

    def back_up(self, name: str = "web-1", **options: Any) -> dict[str, Any]:
        return self.first.module("virtual_node_backup", **{"name": name, "directory": str(self.directory), **options})

    def restore(self, **options: Any) -> dict[str, Any]:
        return self.second.module("virtual_node_restore", node="web-1", directory=str(self.directory), **options)

    def info(self, **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ansible_module("virtual_node_backup_info", {"directory": str(self.directory), **options})["backups"]
        return found


@pytest.fixture(scope="module")
def pair(hypervisor: Hypervisor) -> Iterator[Pair]:
    folder, directory = Path(tempfile.mkdtemp(prefix="lep")), Path(tempfile.mkdtemp(prefix="lepb"))
    (folder / "small").mkdir()
    mounted = os.geteuid() == 0  # before the daemon starts, which has mounts of its own
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder / "small")], check=True)
    first = start_hypervisor(folder)
    link_guest_image(folder)
    yield Pair(Host(first), Host(hypervisor), directory)
    stop_hypervisor(folder)
    if mounted:
        subprocess.run(["umount", str(folder / "small")], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def says(port: int, text: str = "") -> str:
    """Return what stands on the guest's disk, after `text` was written there.

    Asked once, of a guest that answers: what was sent to one that boots may be delivered to it much later.
    """
    eventually(lambda: guest(port, lambda seen: True), 90)
    return httpx.get(f"http://127.0.0.1:{port}/cgi-bin/disk{'?' + text if text else ''}", timeout=60).text.strip()


@pytest.mark.libvirt
@pytest.mark.slow
def test_what_a_guest_wrote_is_there_again_on_another_host_after_its_own_is_lost(pair: Pair, tmp_path: Path) -> None:
    require([] if os.geteuid() == 0 else ["the rights of root"], "libvirt")
    first, second, port = pair.first, pair.second, free_port()
    made = first.node(
        "web-1", state="running", image="guest", vcpus=1, memory="128MiB", disk="64MiB", forward_ports=[f"{port}:80"], labels={"team": "search"},
    )  # fmt: skip
    assert made["changed"], made
    assert says(port, "first") == "first"
    planned = pair.back_up(check=True)
    assert (planned["changed"], planned["backup"]) == (True, {"parent": None})
    assert pair.everything() == []
    full = pair.back_up()
    assert not full["failed"], full
    assert (full["backup"]["parent"], full["backup"]["consistency"]) == (None, "crash")  # the guest has no agent
    assert says(port, "second") == "second"
    second_backup = pair.back_up()
    assert second_backup["backup"]["parent"] == full["backup"]["id"]
    assert says(port, "third") == "third"
    third = pair.back_up()
    assert third["backup"]["parent"] == second_backup["backup"]["id"]
    assert first.virsh("checkpoint-list", "web-1", "--name").split() == [f"lepton-{third['backup']['id']}"]
    before = pair.everything()

    small = first.hypervisor.folder / "small"
    (small / "filler").write_bytes(b"x" * (2 * MIB - 16384))
    no_room = pair.back_up(directory=str(small), full=True)
    assert "web-1 was not backed up, and nothing of that is left" in no_room["msg"]
    assert [path.name for path in small.rglob("*")] in (["filler"], ["filler", "web-1"], ["web-1", "filler"])
    assert first.virsh("checkpoint-list", "web-1", "--name").split() == [f"lepton-{third['backup']['id']}"]
    assert says(port) == "third"
    gone = pair.back_up(directory="/no/such/folder")
    assert "/no/such/folder is not there: the folder of backups is never made by itself" in gone["msg"]
    nobody = pair.back_up("web-9")
    assert "this host has no node web-9" in nobody["msg"]
    assert pair.everything() == before

    stop_hypervisor(first.hypervisor.folder)  # with all that runs there
    shutil.rmtree(first.hypervisor.folder / "disks")

    there = second.everything()
    planned = pair.restore(check=True)
    assert (planned["changed"], planned["node"]) == (True, None)
    assert second.everything() == there
    restored = pair.restore()
    assert not restored["failed"], restored
    assert restored["node"]["labels"]["team"] == "search"
    assert says(port) == "third"
    assert not pair.restore()["changed"]
    refused = second.module("virtual_node_restore", node="web-1", directory=str(pair.directory), backup=full["backup"]["id"])
    assert "there is a node web-1 already, and it is left as it is" in refused["msg"]

    old = pair.restore(name="old-1", backup=full["backup"]["id"], state="stopped")
    assert not old["failed"], old
    assert second.virsh("domstate", "old-1") == "shut off"
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"{second.hypervisor.folder}/disks/old-1.qcow2", raw], check=True)
    assert raw.read_bytes()[:5] == b"first"
    assert [each["trouble"] for each in pair.info(verify=True)] == ["", "", ""]

    disk = pair.directory / "web-1" / second_backup["backup"]["id"] / "disk.qcow2"
    content = bytearray(disk.read_bytes())
    content[-1] ^= 1
    disk.write_bytes(content)
    assert [each["trouble"] for each in pair.info()] == ["", "", ""]  # nobody has looked
    verified = {each["id"]: each["trouble"] for each in pair.info(verify=True)}
    assert verified[full["backup"]["id"]] == ""
    for broken in (second_backup, third):
        assert "disk.qcow2 is not as it was written: its digest is another" in verified[broken["backup"]["id"]]
    there = second.everything()
    broken_restore = pair.restore(name="new-1")
    assert "cannot be used" in broken_restore["msg"]
    assert second.everything() == there
    (pair.directory / "web-1" / third["backup"]["id"] / "manifest.json").write_text("{")
    assert [each["trouble"] for each in pair.info(node="web-1")][-1] == "its manifest cannot be read"
    for name in ("web-1", "old-1"):
        second.node(name, state="absent")


@pytest.mark.libvirt
@pytest.mark.slow
def test_after_a_crash_of_qemu_the_next_one_is_full_and_a_stopped_node_is_copied(pair: Pair, hypervisor: Hypervisor) -> None:
    host, port = pair.second, free_port()

    def back_up(**options: Any) -> dict[str, Any]:
        return host.module("virtual_node_backup", name="db-1", directory=str(pair.directory), **options)

    host.node("db-1", state="running", image="guest", vcpus=1, memory="128MiB", disk="64MiB", forward_ports=[f"{port}:80"])
    assert says(port, "first") == "first"
    assert not back_up()["failed"]
    assert back_up()["backup"]["parent"] is not None
    subprocess.run(["pkill", "-9", "-f", "guest=db-1"], check=True)
    eventually(lambda: host.virsh("domstate", "db-1") == "shut off")
    host.node("db-1", state="running")
    assert says(port) == "first"
    after_crash = back_up()
    assert not after_crash["failed"], after_crash
    assert after_crash["backup"]["parent"] is None
    pruned = back_up(keep=1)
    assert len(pruned["removed"]) == 2
    assert [each["id"] for each in pair.info(node="db-1")] == [after_crash["backup"]["id"], pruned["backup"]["id"]]
    host.virsh("destroy", "db-1")
    stopped = back_up()
    assert (stopped["backup"]["parent"], stopped["backup"]["consistency"]) == (None, "stopped")
    assert json.loads((pair.directory / "db-1" / stopped["backup"]["id"] / "manifest.json").read_text())["sha256"] == stopped["backup"]["sha256"]
    assert "keep: expected 1 or more" in back_up(keep=0)["msg"]
    host.node("db-1", state="absent")
