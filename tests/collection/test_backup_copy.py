# SPDX-License-Identifier: Apache-2.0
"""Backups that go to a second host, which sees no folder of the first: over ssh, and a lost node made of them there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._backup import written
from ansible_collections.lepton.cloud.plugins.module_utils._backup_store import digest
from tests.collection.test_backup import backup
from tests.collection.test_moving import Fleet, fleet, says
from tests.conftest import SshServer, ansible_module

from lepton_ai.sandbox.stand import free_port

__all__ = ["fleet"]


def received(directory: Path, way: Path, *sent: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {"node": "web-1", "directory": str(directory), "state": "received", "way": str(way), "backups": [*sent], **options}
    return ansible_module("virtual_node_backup_copy", arguments, check=check)


@pytest.fixture
def arrived(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A folder of backups, and one where a full backup and an incremental one have arrived."""
    (tmp_path / "backups").mkdir()
    (tmp_path / "way").mkdir()
    sent = []
    for each in (backup(1), backup(2, 1)):
        disk = tmp_path / "way" / each.id
        disk.write_text(f"what {each.id} holds")
        sha256, size = digest(str(disk))
        manifest = written(each).replace('"sha256": ""', f'"sha256": "{sha256}"').replace('"size": 0', f'"size": {size}')
        sent.append({"id": each.id, "manifest": manifest, "size": size, "path": f"/elsewhere/{each.id}"})
    return tmp_path / "backups", tmp_path / "way", sent


def test_what_arrives_whole_is_a_backup_and_nothing_else_is(arrived: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    directory, way, sent = arrived
    planned = received(directory, way, *sent, check=True)
    assert [change["after"] for change in planned["changes"]] == [each["id"] for each in sent]
    assert not (directory / "web-1").exists()
    (way / sent[1]["id"]).write_text("what a network made of it")
    broken = received(directory, way, *sent)
    assert broken["msg"] == (
        f"backup {sent[1]['id']} was not brought here, and nothing of it is left: backup {sent[1]['id']} is not as it was written: its digest is another"
    )
    assert sorted(os.listdir(directory / "web-1")) == [sent[0]["id"]]  # which arrived whole
    (way / sent[1]["id"]).write_text(f"what {sent[1]['id']} holds")
    assert received(directory, way, *sent)["changed"]
    assert not received(directory, way, *sent)["changed"]
    assert sorted(os.listdir(directory / "web-1")) == [each["id"] for each in sent]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest": "{}"}, "what was sent is no manifest of a backup"),
        ({"manifest": written(backup(3)).replace('"web-1"', '"web-2"')}, "backup 20261103T020000Z is of the node web-2"),
        ({"manifest": written(backup(3)).replace("20261103", "../../../3")}, "its id is none"),
    ],
)
def test_what_is_no_backup_of_this_node_is_refused(arrived: tuple[Path, Path, list[dict[str, Any]]], change: dict[str, str], message: str) -> None:
    directory, way, sent = arrived
    assert message in received(directory, way, sent[0], {**sent[1], **change})["msg"]
    assert not (directory / "web-1").exists()


def test_as_many_are_kept_as_are_to_be_kept(arrived: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    directory, way, sent = arrived
    assert "keep: expected 1 or more" in received(directory, way, *sent, keep=0)["msg"]
    third = {"id": backup(3).id, "manifest": written(backup(3)), "size": 0, "path": None}
    assert received(directory, way, *sent, third, keep=1)["removed"] == [sent[1]["id"], sent[0]["id"]]
    assert os.listdir(directory / "web-1") == [backup(3).id]


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

    # While the second host has no folder, the backup is made nevertheless, and that it has no copy is said.
    (fleet.folder / "kvm2").rename(fleet.folder / "away")
    alone = fleet.run("node/backup", node="cp-1")
    assert alone.returncode != 0
    assert f"{fleet.folder}/kvm2 is not there" in alone.stdout
    (fleet.folder / "away").rename(fleet.folder / "kvm2")
    assert len(stands(fleet, "kvm1", "cp-1")) == 2
    assert len(stands(fleet, "kvm2", "cp-1")) == 1
    third = fleet.run("node/backup", node="cp-1")
    assert third.returncode == 0, third.stdout
    assert stands(fleet, "kvm1", "cp-1") == stands(fleet, "kvm2", "cp-1")
    assert len(stands(fleet, "kvm2", "cp-1")) == 3
    parents = [json.loads((fleet.folder / "kvm2/cp-1" / name / "manifest.json").read_text())["parent"] for name in stands(fleet, "kvm2", "cp-1")]
    assert [parent is None for parent in parents] == [True, False, False]

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
