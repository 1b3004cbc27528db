# SPDX-License-Identifier: Apache-2.0
"""Backups that go to a second host, which sees no folder of the first: over ssh, and a lost node made of them there."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._backup import lacking, written
from ansible_collections.lepton.cloud.plugins.module_utils._backup_store import digest
from tests.collection.test_backup import backup
from tests.collection.test_moving import Fleet, fleet, says
from tests.conftest import SshServer, ansible_module

from lepton_ai.sandbox.stand import free_port

__all__ = ["fleet"]


def copy(directory: Path, state: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
    return ansible_module("virtual_node_backup_copy", {"node": "web-1", "directory": str(directory), "state": state, **options}, check=check)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a full backup and two that build upon it, and a controller with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for each in (backup(1), backup(2, 1), backup(3, 2)):
        folder = tmp_path / "first/web-1" / each.id
        folder.mkdir(parents=True)
        (folder / "disk.qcow2").write_text(f"what {each.id} holds")
        sha256, size = digest(str(folder / "disk.qcow2"))
        (folder / "manifest.json").write_text(written(replace(each, sha256=sha256, size=size)))
    (tmp_path / "second").mkdir()
    return tmp_path / "first"


def name(number: int) -> str:
    return backup(number).id


def test_what_arrives_whole_is_a_backup_and_nothing_else_is(first: Path, tmp_path: Path) -> None:
    second, way = tmp_path / "second", tmp_path / "cache/lepton/backups-on-their-way/web-1"
    assert copy(first, "offered")["offered"] == [name(number) for number in (1, 2, 3)]
    sent = copy(first, "sent", backup=name(1))
    assert (way / name(1)).read_text() == f"what {name(1)} holds"
    planned = copy(second, "received", backup=name(1), manifest=sent["manifest"], check=True)
    assert planned["changes"] == [{"field": f"backup {name(1)}", "before": "absent", "after": "present", "effective": "now"}]
    assert os.listdir(second) == []
    (way / name(1)).write_text("what a network made of it")
    broken = copy(second, "received", backup=name(1), manifest=sent["manifest"])["msg"]
    assert f"backup {name(1)} was not brought here, and nothing of it is left: backup {name(1)} is not as it was written" in broken
    assert os.listdir(second / "web-1") == []
    assert not way.parent.exists() or os.listdir(way.parent) == []
    assert "it has not arrived" in copy(second, "received", backup=name(1), manifest=sent["manifest"])["msg"]
    child = copy(first, "described", backup=name(2))
    assert copy(second, "received", backup=name(2), manifest=child["manifest"], coming=[name(1)], check=True)["changed"]
    assert f"backup {name(2)} builds upon {name(1)}, which is not here" in copy(second, "received", backup=name(2), manifest=child["manifest"])["msg"]
    for number in (1, 2):
        sent = copy(first, "sent", backup=name(number))
        assert copy(second, "received", backup=name(number), manifest=sent["manifest"])["changed"]
        assert not copy(second, "received", backup=name(number), manifest=sent["manifest"])["changed"]
        assert not way.exists()
    assert json.loads((second / "web-1" / name(2) / "manifest.json").read_text())["copied"] is True
    assert copy(first, "offered", there=[name(1), name(2)])["offered"] == [name(3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{", "["), "what was sent is no manifest of a backup"),
        (('"web-1"', '"web-2"'), "what was sent is backup 20261101T020000Z of web-2, and not 20261101T020000Z of web-1"),
        (("20261101", "../../../1"), "its id is none"),
        (("20261101", "20261109"), "what was sent is backup 20261109T020000Z of web-1, and not 20261101T020000Z"),
        (('"size_memory": 268435456', '"size_memory": "abc"'), "its size_memory is none"),
        (('"size": ', '"size": 9999999999999999'), "there is no room for backup"),
    ],
)
def test_what_is_no_backup_of_this_node_is_refused(first: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    sent = copy(first, "described", backup=name(1))
    assert change[0] in sent["manifest"]
    for check in (True, False):
        assert message in copy(tmp_path / "second", "received", backup=name(1), manifest=sent["manifest"].replace(*change), check=check)["msg"]
    assert not (tmp_path / "second/web-1").exists()


@pytest.mark.parametrize(("arguments", "message"), [({"backup": "/root/.ssh/authorized_keys"}, "is not the id"), ({"node": "../../up"}, "is not a node name")])
def test_nobody_names_a_path_of_the_controller(first: Path, tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    for state in ("sent", "received"):
        assert message in copy(first, state, **{"backup": name(1), "manifest": "{}", **arguments})["msg"]
    assert not (tmp_path / "cache").exists()


def test_only_what_is_kept_there_is_brought() -> None:
    four = {each.id: each for each in (backup(1), backup(2, 1), backup(3), backup(4))}
    assert lacking(four, [], 2) == [name(3), name(4)]
    assert lacking(four, [name(3)], 2) == [name(4)]
    assert lacking(four, [name(5), name(6)], 2) == []  # it has newer ones of its own
    assert lacking({key: four[key] for key in (name(1), name(2))}, [], 1) == [name(1), name(2)]
    assert lacking({key: four[key] for key in (name(2), name(3))}, [], 9) == [name(3)]  # what the other builds upon is lost


def test_as_many_are_kept_as_are_to_be_kept(first: Path) -> None:
    assert "keep: expected 1 or more" in copy(first, "pruned", keep=0)["msg"]
    assert [change["field"] for change in copy(first, "pruned", keep=5, more=True, check=True)["changes"]] == ["the next backup"]
    (first / "web-1" / name(4)).mkdir()
    (first / "web-1" / name(4) / "manifest.json").write_text(written(backup(4)))
    planned = copy(first, "pruned", keep=1, check=True)
    assert [change["field"] for change in planned["changes"]] == [f"backup {name(number)}" for number in (3, 2, 1)]
    assert len(os.listdir(first / "web-1")) == 4
    assert copy(first, "pruned", keep=1)["changes"] == planned["changes"]
    assert os.listdir(first / "web-1") == [name(4)]
    assert not copy(first, "pruned", keep=1)["changed"]


def stands(fleet: Fleet, host: str, name: str) -> dict[str, str]:
    """Return the digests of a node's backups in a host's own folder."""
    folder = fleet.folder / host / name
    return {path.name: digest(str(path / "disk.qcow2"))[0] for path in sorted(folder.iterdir())} if folder.exists() else {}


def split(fleet: Fleet, ssh_server: SshServer, **copies_on: str) -> None:
    """Give each host a folder of its own, and have the second one reached over ssh."""
    inventory = yaml.safe_load((fleet.folder / "hosts.yml").read_text())
    for host, variables in inventory["hypervisors"]["hosts"].items():
        (fleet.folder / host).mkdir(exist_ok=True)
        variables["lepton_backups"] = {"directory": str(fleet.folder / host), "copies_on": copies_on.get(host, "")}
    inventory["hypervisors"]["hosts"]["kvm2"].update(ssh_server.host_vars)
    (fleet.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))


@pytest.mark.libvirt
@pytest.mark.ssh
@pytest.mark.slow
def test_a_lost_node_is_made_of_what_a_second_host_has(fleet: Fleet, ssh_server: SshServer) -> None:
    port = free_port()
    made = fleet.run("node/create", node="cp-1", memory="128MiB", disk="16MiB", host="kvm1", forward_ports=[f"{port}:80"])
    assert made.returncode == 0, made.stdout
    assert says(port, "first") == "first"
    for wrong in ("kvm1", "kvm9"):
        split(fleet, ssh_server, kvm1=wrong)
        assert f"expected another host of hypervisors, and not {wrong}" in fleet.run("node/backup", node="cp-1").stdout
    assert stands(fleet, "kvm1", "cp-1") == {}
    split(fleet, ssh_server, kvm1="kvm2")
    planned = fleet.run("node/backup", "--check", node="cp-1")
    assert planned.returncode == 0, planned.stdout
    assert re.search(r"kvm1 +: ok=\d+ +changed=1", planned.stdout), planned.stdout
    assert re.search(r"kvm2 +: ok=\d+ +changed=1", planned.stdout), planned.stdout
    assert stands(fleet, "kvm1", "cp-1") == stands(fleet, "kvm2", "cp-1") == {}
    full = fleet.run("node/backup", node="cp-1")
    assert full.returncode == 0, full.stdout
    assert stands(fleet, "kvm1", "cp-1") == stands(fleet, "kvm2", "cp-1") != {}
    assert says(port, "second") == "second"

    # One that was damaged keeps none from coming that does not build upon it; here all do.
    (fleet.folder / "kvm2/cp-1").rename(fleet.folder / "elsewhere")
    (fleet.folder / "kvm2/.copies.cp-1.lock").unlink()
    (disk,) = (fleet.folder / "kvm1/cp-1").glob("*/disk.qcow2")
    whole = disk.read_bytes()
    disk.write_bytes(whole[:-1] + b"x")
    again = fleet.run("node/backup", "--check", node="cp-1")
    assert again.returncode == 0, again.stdout
    assert re.search(r"kvm2 +: ok=\d+ +changed=2", again.stdout), again.stdout  # what is there, and what would be made
    assert os.listdir(fleet.folder / "kvm2") == []
    damaged = fleet.run("node/backup", node="cp-1", full=True)
    assert damaged.returncode != 0
    assert "was not brought here, and nothing of it is left" in damaged.stdout
    assert len(stands(fleet, "kvm1", "cp-1")) == 2
    assert len(stands(fleet, "kvm2", "cp-1")) == 1
    assert list(Path("~/.cache/lepton/backups-on-their-way").expanduser().glob("cp-1/*")) == []
    disk.write_bytes(whole)
    shutil.rmtree(fleet.folder / "kvm2/cp-1")
    (fleet.folder / "elsewhere").rename(fleet.folder / "kvm2/cp-1")

    # While the second host has no folder, the backup is made nevertheless, and that it has no copy is said.
    (fleet.folder / "kvm2").rename(fleet.folder / "away")
    alone = fleet.run("node/backup", node="cp-1")
    assert alone.returncode != 0
    assert f"{fleet.folder}/kvm2 is not there" in alone.stdout
    (fleet.folder / "away").rename(fleet.folder / "kvm2")
    assert len(stands(fleet, "kvm1", "cp-1")) == 3
    assert len(stands(fleet, "kvm2", "cp-1")) == 1
    third = fleet.run("node/backup", node="cp-1")
    assert third.returncode == 0, third.stdout
    assert stands(fleet, "kvm1", "cp-1") == stands(fleet, "kvm2", "cp-1")
    assert len(stands(fleet, "kvm2", "cp-1")) == 4
    parents = [json.loads((fleet.folder / "kvm2/cp-1" / name / "manifest.json").read_text())["parent"] for name in stands(fleet, "kvm2", "cp-1")]
    assert [parent is None for parent in parents] == [True, True, False, False]

    # A move goes by a folder that both see. The copies are older than what it stops, and are not taken for it.
    moved = fleet.run("node/move", node="cp-1", host="kvm2")
    assert "that kvm1 wrote: do both hosts see the same folder?" in moved.stdout
    assert fleet.state("cp-1") == {"kvm1": "running"}
    assert says(port) == "second"

    (fleet.folder / "kvm1").rename(fleet.folder / "lost")
    fleet.hosts["kvm1"].virsh("destroy", "cp-1")
    fleet.lose("kvm1")
    evacuated = fleet.run("host/evacuate", host="kvm1", is_off=True)
    assert evacuated.returncode == 0, evacuated.stdout
    assert fleet.hosts["kvm2"].virsh("domstate", "cp-1") == "running"
    assert says(port) == "second"
    fleet.hosts["kvm2"].node("cp-1", state="absent")
    fleet.hosts["kvm1"].node("cp-1", state="absent")
