# SPDX-License-Identifier: Apache-2.0
"""Nodes that go to another host: planned, and done between two hypervisors, with what the guest wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._steps import StepError, make_plan
from tests.collection.test_backup import says
from tests.collection.test_virtual_node import Host
from tests.conftest import ROOT
from tests.warm import ansible

from lepton_ai.sandbox.hypervisor import Hypervisor, start_hypervisor, stop_hypervisor
from lepton_ai.sandbox.stand import free_port, link_guest_image

GIB = 1 << 30
AWAY: dict[str, Any] = {"unreachable": True, "msg": "no route"}
BACKUPS = {"directories": dict.fromkeys("abc", "/srv/backups")}


def node(name: str, *, state: str = "running", **labels: str) -> dict[str, Any]:
    return {"name": name, "state": state, "vcpus": 1, "memory": "1GiB", "labels": {label.replace("_", "."): value for label, value in labels.items()}}


def answer(*nodes: dict[str, Any], free: int = 8, closed: str | None = None) -> dict[str, Any]:
    return {"nodes": list(nodes), "capacity": {"vcpus_free": 8, "memory_free": free * GIB}, "closed": closed}


def plan(operation: str, answers: dict[str, Any], declared: dict[str, Any] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    return list(make_plan(operation, arguments, {"hypervisors": answers}, BACKUPS if declared is None else declared)["steps"])


def titles(steps: list[dict[str, Any]], *, undo: bool = False) -> list[tuple[str, str]]:
    return [(step["host"], step["title"]) for step in steps if bool(step.get("undo")) == undo]


def test_a_node_is_there_before_it_is_gone_here_and_back_here_where_that_fails() -> None:
    steps = plan("node.move", {"a": answer(node("web-1")), "b": answer(free=4), "c": answer(free=6)}, node="web-1")
    assert titles(steps) == [("a", "stop web-1"), ("a", "back web-1 up"), ("c", "make web-1 of that on c"), ("a", "remove web-1 from a")]
    assert titles(steps, undo=True) == [("a", "have web-1 on a as it was"), ("c", "remove web-1 from c again")]
    asleep = plan("node.move", {"a": answer(node("web-1", state="stopped")), "b": answer()}, node="web-1", host="b")
    assert titles(asleep)[0] == ("a", "back web-1 up")
    assert asleep[1]["args"]["state"] == "stopped"


@pytest.mark.parametrize(
    ("answers", "arguments", "why"),
    [
        ({"a": answer(node("web-1"))}, {}, "no host can have a node with 1 vCPUs and 1GiB: no host answered"),
        ({"a": answer(node("web-1")), "b": answer()}, {"host": "a"}, "web-1 is on a already"),
        ({"a": answer(node("web-1")), "b": answer()}, {"host": "x"}, "there is no host x: expected one of b"),
        ({"a": answer(node("web-1")), "b": answer(closed="drained")}, {}, "b: drained"),
        ({"a": answer(node("web-1")), "b": answer(free=0)}, {}, "b: it has 0B free of 1GiB"),
        ({"a": answer(node("web-1", cloud_lepton_service="web")), "b": answer()}, {}, "web-1 is a replica of service web"),
        ({"a": answer(), "b": answer()}, {}, "no host has a node web-1"),
        ({"a": answer(node("web-1")), "b": answer()}, {"declared": {}}, "set lepton_backups.directory"),
    ],
)
def test_what_cannot_go_is_said(answers: dict[str, Any], arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(StepError, match=why):
        plan("node.move", answers, node="web-1", **arguments)


def test_a_drain_closes_the_host_first_and_shares_its_nodes_out() -> None:
    hosts = {"a": answer(node("n1"), node("n2"), node("web-1", cloud_lepton_service="web")), "b": answer(free=5), "c": answer(free=5)}
    steps = plan("host.drain", hosts, host="a", because="new memory")
    assert steps[0]["args"] == {"closed": "drained: new memory"}
    assert [step["title"] for step in steps if "make" in step["title"]] == ["make n1 of that on b", "make n2 of that on c"]
    assert not [step for step in steps if "web-1" in step["title"]]
    with pytest.raises(StepError, match="x does not answer, or is no host: expected one of a, b, c"):
        plan("host.drain", hosts, host="x")
    empty = {"a": answer(closed="drained: new memory"), "b": answer()}
    assert plan("host.drain", empty, host="a", because="new memory") == []


def saved(name: str, host: str, day: int = 1) -> dict[str, Any]:
    return {"node": name, "id": f"202611{day:02d}T020000Z", "host": host, "vcpus": 1, "memory": "1GiB"}


SAVED = [saved("n1", "a"), saved("n1", "a", 2), saved("n2", "a"), saved("n3", "b"), saved("n4", "a"), saved("n4", "b", 2)]


def evacuated(answers: dict[str, Any], **arguments: Any) -> list[dict[str, Any]]:
    return plan("host.evacuate", answers, {**BACKUPS, "saved": {"b": SAVED, "c": SAVED}}, **{"host": "a", "is_off": True, **arguments})


def test_the_nodes_of_a_lost_host_are_made_of_their_newest_backups() -> None:
    steps = evacuated({"a": AWAY, "b": answer(node("n3"), free=1), "c": answer(free=1)})
    assert [step["title"] for step in steps] == ["make n1 of its backup 20261102T020000Z on b", "make n2 of its backup 20261101T020000Z on c"]
    assert steps[0]["args"] == {"node": "n1", "name": "n1", "directory": "/srv/backups", "backup": "20261102T020000Z", "state": "running"}
    assert [step["args"]["name"] for step in evacuated({"a": AWAY, "b": answer()}, nodes=["n2"])] == ["n2"]


def test_a_host_with_a_fence_agent_is_turned_off_before_anything_is_made() -> None:
    declared = {**BACKUPS, "saved": {"b": SAVED}, "fences": ["a"]}
    steps = plan("host.evacuate", {"a": AWAY, "b": answer()}, declared, host="a", nodes=["n1"])
    assert titles(steps) == [("a", "turn a off, and see that it is"), ("b", "make n1 of its backup 20261102T020000Z on b")]
    # Where it is not seen to be off, the play ends there: only a step of a group may fail without ending it.
    assert "group" not in steps[0]
    assert titles(plan("host.evacuate", {"a": AWAY, "b": answer()}, declared, host="a", nodes=["n1"], is_off=True)) == titles(steps)[1:]
    with pytest.raises(StepError, match="a is reached, and only its libvirt does not answer: Failed to connect"):
        plan("host.evacuate", {"a": {"msg": "Failed to connect"}, "b": answer()}, declared, host="a", nodes=["n1"])
    with pytest.raises(StepError, match="a were not asked: run it without a limit"):
        plan("host.evacuate", {"a": {}, "b": answer()}, declared, host="a", nodes=["n1"], is_off=True)


def test_each_gpu_is_given_once_when_a_host_is_lost() -> None:
    backups = [{**saved(name, "a"), "devices": ["nvidia-gpu"]} for name in ("g1", "g2", "g3")]
    hosts = {"a": AWAY, **{name: {**answer(), "gpus": [{"numa": 0, "why": ""}, {"numa": 0, "why": "it is a bridge"}]} for name in "bc"}}
    found = {"saved": {"b": backups, "c": backups}}
    with pytest.raises(StepError, match="1 GPUs: b: it has no 1 whole GPUs free"):
        plan("host.evacuate", hosts, {**BACKUPS, **found}, host="a", is_off=True)
    steps = plan("host.evacuate", hosts, {**BACKUPS, **found}, host="a", is_off=True, nodes=["g1", "g2"])
    assert [step["host"] for step in steps] == ["b", "c"]


@pytest.mark.parametrize(
    ("answers", "arguments", "why"),
    [
        ({"a": answer(), "b": answer()}, {}, "a answers, so it is not lost"),
        ({"a": AWAY, "b": answer()}, {"is_off": False}, "See that the host is off and stays off"),
        ({"a": AWAY, "b": answer(), "c": AWAY}, {}, "c do not answer either"),
        ({"b": answer()}, {}, "there is no host a: expected one of b"),
        ({"a": AWAY, "b": answer(node("n1"))}, {"nodes": ["n1"]}, "no backup is of n1 on a, or another host has it"),
        ({"a": AWAY, "b": answer()}, {"nodes": ["n4"]}, "no backup is of n4 on a"),
        ({"a": AWAY, "b": answer(node("n1"), node("n2"))}, {}, "no backup is of a node on a"),
        ({"a": AWAY, "b": answer(free=1)}, {}, "b: it has 0B free of 1GiB"),
    ],
)
def test_nothing_is_made_twice_and_nothing_without_a_word(answers: dict[str, Any], arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(StepError, match=why):
        evacuated(answers, **arguments)


class Fleet:
    """Two hypervisors as two hosts of an inventory."""

    def __init__(self, folder: Path, **hosts: Hypervisor) -> None:
        self.hosts = {name: Host(hypervisor) for name, hypervisor in hosts.items()}
        self.folder = folder
        (folder / "backups").mkdir()
        self.write(str(folder / "backups"))

    def write(self, backups: str) -> None:
        def host(of: Host) -> dict[str, Any]:
            where = of.hypervisor.folder
            options = {"uri": of.hypervisor.uri, "image_dir": str(where / "images"), "disk_dir": str(where / "disks")}
            return {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "lepton_host": options}

        group = {"hosts": {name: host(of) for name, of in self.hosts.items()}, "vars": {"lepton_image": "guest", "lepton_backups": {"directory": backups}}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"hypervisors": group}))

    def lose(self, host: str) -> None:
        """Have a host answer no more, as one whose power went."""
        inventory = yaml.safe_load((self.folder / "hosts.yml").read_text())
        inventory["hypervisors"]["hosts"][host].update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=free_port())
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def fence(self, host: str, **fence: Any) -> None:
        """Have a host turned off by an agent."""
        inventory = yaml.safe_load((self.folder / "hosts.yml").read_text())
        inventory["hypervisors"]["hosts"][host]["lepton_fence"] = fence
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def run(self, playbook: str, *words: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
        command = ["-i", self.folder / "hosts.yml", ROOT / f"playbooks/{playbook}.yml", "-e", json.dumps(arguments), *words]
        return ansible("ansible-playbook", command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=240)

    def answer(self, playbook: str, **arguments: Any) -> dict[str, Any]:
        """Return what a playbook that looks for room says, as Ansible shows it."""
        (told,) = re.findall(r"^ok: \[localhost\] => (.*\"fit\".*)$", self.run(playbook, "-v", **arguments).stdout, re.MULTILINE)
        found: dict[str, Any] = json.loads(told)["fit"]
        return found

    def state(self, name: str) -> dict[str, str]:
        """Return libvirt's own word for a node, by host that has it."""
        words = {host: of.virsh("domstate", name) for host, of in self.hosts.items()}
        return {host: word for host, word in words.items() if "error" not in word}


@pytest.fixture
def fleet(hypervisor: Hypervisor) -> Iterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    second = start_hypervisor(folder / "h")
    link_guest_image(folder / "h")
    yield Fleet(folder, kvm1=hypervisor, kvm2=second)
    stop_hypervisor(folder / "h")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_node_goes_to_another_host_and_back_with_what_its_guest_wrote(fleet: Fleet) -> None:
    port = free_port()
    ports = [f"{port}:80"]
    made = fleet.run("node/create", node="mv-1", memory="128MiB", disk="16MiB", host="kvm1", forward_ports=ports, labels=["team=search"])
    assert made.returncode == 0, made.stdout
    assert says(port, "kept") == "kept"
    planned = fleet.run("node/move", "--check", node="mv-1", host="kvm2")
    assert planned.returncode == 0, planned.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}
    fleet.write("/no/such/folder")
    failed = fleet.run("node/move", node="mv-1", host="kvm2")
    assert failed.returncode != 0
    assert "/no/such/folder is not there" in failed.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}  # started again
    assert says(port) == "kept"
    fleet.write(str(fleet.folder / "backups"))
    moved = fleet.run("node/move", node="mv-1", host="kvm2")
    assert moved.returncode == 0, moved.stdout
    assert fleet.state("mv-1") == {"kvm2": "running"}
    assert says(port) == "kept"
    assert not (fleet.hosts["kvm1"].hypervisor.folder / "disks/mv-1.qcow2").exists()

    drained = fleet.run("host/drain", host="kvm2", because="new memory")
    assert drained.returncode == 0, drained.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}
    assert says(port) == "kept"
    refused = fleet.run("node/create", node="mv-2", memory="64MiB", host="kvm2")
    assert "kvm2: drained: new memory" in refused.stdout
    elsewhere = fleet.run("node/create", node="mv-2", memory="64MiB")
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert fleet.state("mv-2") == {"kvm1": "running"}
    assert fleet.run("host/resume", host="kvm2").returncode == 0
    assert fleet.hosts["kvm2"].module("host_info")["closed"] is None
    assert "there is no host kvm9: expected one of kvm1, kvm2" in fleet.run("host/resume", host="kvm9").stdout
    kept = fleet.run("node/backup", node="mv-1")
    assert kept.returncode == 0, kept.stdout
    fleet.hosts["kvm1"].node("mv-2", state="absent")

    # The first host is lost without a word, and its node runs on: nobody knows.
    lost = fleet.hosts["kvm1"].hypervisor
    fleet.lose("kvm1")
    doubted = fleet.run("host/evacuate", host="kvm1")
    assert "See that the host is off and stays off" in doubted.stdout
    # Its fence agent does what one does, to the node in place of the host's power.
    agent = fleet.folder / "fence_test"
    agent.write_text(
        f'#!/bin/sh\nwords=$(cat)\necho "$words" >>{fleet.folder}/asked\nenv >>{fleet.folder}/environment\ncase "$words" in\n*password=wrong*) '
        f'echo "login with wrong failed" >&2; exit 1 ;;\n*action=off) virsh -c "{lost.uri}" destroy mv-1 ;;\n'
        f'*) [ "$(virsh -c "{lost.uri}" domstate mv-1)" = running ] || exit 2 ;;\nesac\n'
    )
    agent.chmod(0o755)
    fleet.fence("kvm1", agent=str(agent), options={"ip": "192.0.2.7", "password": "wrong"})
    refused = fleet.run("host/evacuate", "-vv", host="kvm1")
    assert refused.returncode != 0
    assert "could not turn it off: login with *** failed. Whether it runs is not known" in refused.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}
    fleet.fence("kvm1", agent=str(agent), options={"ip": "192.0.2.7", "password": "s3cret{{ 1 + 1 }}"})
    planned = fleet.run("host/evacuate", "--check", "-v", host="kvm1")
    assert "turn kvm1 off, and see that it is" in planned.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}
    limited = fleet.run("host/evacuate", "--limit", "localhost,kvm2", host="kvm1")
    assert "kvm1 were not asked" in limited.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}
    # Of a plan that was cut short, what is left to do: the power is on still.
    (told,) = re.findall(r'^ok: \[localhost\] => (\{.*"lepton_plan".*\})$', planned.stdout, re.MULTILINE)
    (fleet.folder / "plan").write_text(json.dumps({"lepton_plan": json.loads(told)["lepton_plan"]}))
    left = fleet.run("host/evacuate", "--check", "--diff", "-e", f"@{fleet.folder}/plan", host="kvm1")
    assert '+    "power": "off"' in left.stdout, left.stdout
    assert fleet.state("mv-1") == {"kvm1": "running"}
    evacuated = fleet.run("host/evacuate", "-vvv", host="kvm1")
    assert "s3cret" not in evacuated.stdout + planned.stdout + (fleet.folder / "environment").read_text()
    assert (fleet.folder / "asked").read_text().endswith("ip=192.0.2.7\npassword=s3cret2\naction=status\n")
    assert evacuated.returncode == 0, evacuated.stdout
    assert fleet.state("mv-1") == {"kvm1": "shut off", "kvm2": "running"}
    assert says(port) == "kept"
    assert (lost.folder / "disks/mv-1.qcow2").exists()

    # The first host comes back, with what it had.
    fleet.write(str(fleet.folder / "backups"))
    both = fleet.run("node/stop", node="mv-1")
    assert "several hosts have a node mv-1: kvm1 (stopped), kvm2 (running)" in both.stdout
    assert "node release mv-1 host=HOST removes one" in both.stdout
    # Where the other one is silent, what was left over is not taken for the node.
    fleet.lose("kvm2")
    doubted = fleet.run("node/start", node="mv-1")
    assert "mv-1 is on kvm1 (stopped); kvm2 did not answer and may have it" in doubted.stdout
    assert "Name the host if that is the one: host=kvm1" in doubted.stdout
    assert fleet.state("mv-1") == {"kvm1": "shut off", "kvm2": "running"}
    fleet.write(str(fleet.folder / "backups"))
    released = fleet.run("node/release", node="mv-1", host="kvm1")
    assert released.returncode == 0, released.stdout
    assert fleet.state("mv-1") == {"kvm2": "running"}
    assert says(port) == "kept"
    assert not (lost.folder / "disks/mv-1.qcow2").exists()
    assert "there is no host kvm9" in fleet.run("node/release", node="mv-1", host="kvm9").stdout
    assert "kvm1 has no node mv-1" in fleet.run("node/release", node="mv-1", host="kvm1").stdout
    assert fleet.run("node/release", node="mv-1").returncode == 0
    assert fleet.state("mv-1") == {}


@pytest.mark.libvirt
@pytest.mark.slow
def test_what_is_said_to_fit_fits_and_one_more_does_not(fleet: Fleet) -> None:
    whole = fleet.hosts["kvm1"].module("host_info")["capacity"]["memory"]
    memory = f"{whole * 2 // 5 >> 20}MiB"  # two on each host, of which nothing is used before they run
    told = fleet.run("host/room", memory=memory, numa=True, spread="host")
    assert told.returncode == 0, told.stdout
    assert "count from 1 to 1000, not 0" in fleet.run("host/room", memory=memory, count=0).stdout
    answer = fleet.answer("host/room", memory=memory, spread="host")
    assert answer["nodes"] == 4
    assert answer["hosts"] == [{"host": "kvm1", "nodes": 2}, {"host": "kvm2", "nodes": 2}]
    assert [(each["host"], "free of" in each["why"]) for each in answer["lacking"]] == [("kvm1", True), ("kvm2", True)]
    assert fleet.answer("host/room", memory=memory, count=3)["lacking"] == []
    for number, host in enumerate(("kvm1", "kvm1", "kvm2", "kvm2")):
        fleet.hosts[host].node(f"fits-{number}", image="guest", vcpus=1, memory=memory, max_memory=memory, virtualization="emulation")
    assert {name: fleet.state(name) for name in ("fits-0", "fits-3")} == {"fits-0": {"kvm1": "shut off"}, "fits-3": {"kvm2": "shut off"}}
    assert fleet.answer("host/room", memory=memory)["nodes"] == 0
    refused = fleet.run("node/create", node="fits-4", memory=memory)
    assert refused.returncode != 0
    assert "no host can have a node with 1 vCPUs" in refused.stdout
    for number in (0, 1):
        fleet.hosts["kvm1"].node(f"fits-{number}", state="absent")


@pytest.mark.libvirt
@pytest.mark.slow
def test_what_would_make_room_makes_room(fleet: Fleet) -> None:
    whole = fleet.hosts["kvm1"].module("host_info")["capacity"]["memory"] >> 20
    for name, host, share in (("small", "kvm1", 0.2), ("large", "kvm2", 0.6)):
        size = {"memory": f"{int(whole * share)}MiB", "max_memory": f"{int(whole * share)}MiB"}
        fleet.hosts[host].node(name, image="guest", vcpus=1, virtualization="emulation", **size)
    memory = f"{int(whole * 0.9)}MiB"
    refused = fleet.run("node/create", node="huge", memory=memory, max_memory=memory)
    assert "kvm1 has room once small, which is stopped, has moved to kvm2: node move small kvm2" in refused.stdout.replace("\n", " ")
    moved = fleet.run("node/move", node="small", host="kvm2")
    assert moved.returncode == 0, moved.stdout
    assert fleet.answer("host/room", memory=memory)["hosts"] == [{"host": "kvm1", "nodes": 1}]
