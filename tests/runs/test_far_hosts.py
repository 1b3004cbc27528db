# SPDX-License-Identifier: Apache-2.0
"""Runs on a host that is reached over ssh, as managed hosts are: a real sshd on this machine's loopback address."""

from __future__ import annotations

import fcntl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import SshServer, eventually, write_playbook

from lepton_ai.access.matching import Caller
from lepton_ai.intake import Intake
from lepton_ai.operations.parsing import parse_command, split_words
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.service import Runs
from lepton_ai.sandbox.hypervisor import Hypervisor
from lepton_ai.settings import Settings

pytestmark = [pytest.mark.libvirt, pytest.mark.ssh, pytest.mark.slow]
OWNER = "os:0@here"


@pytest.fixture
def runs(site: Settings, make_runs: Callable[[], Runs], hypervisor: Hypervisor, ssh_server: SshServer) -> Runs:
    """A site whose one host is reached over ssh."""
    folder = hypervisor.folder
    lepton_host = {"uri": hypervisor.uri, "image_dir": str(folder / "images"), "disk_dir": str(folder / "disks")}
    hosts = {"far": {**ssh_server.host_vars, "lepton_host": lepton_host}}
    inventory = site.site / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"hypervisors": {"hosts": hosts, "vars": {"lepton_image": "guest"}}}))
    made = make_runs()
    made.settings = site.model_copy(update={"inventory": inventory})
    return made


def begin(runs: Runs, text: str) -> tuple[Run, threading.Thread]:
    command = parse_command(runs.catalog, split_words(text))
    run, _new = Intake(runs, OWNER).submit(Caller(OWNER), command, key=text + str(time.monotonic()))
    thread = threading.Thread(target=runs.execute, args=(run.id,))
    thread.start()
    return run, thread


def do(runs: Runs, text: str) -> Run:
    run, thread = begin(runs, text)
    thread.join(120)
    return runs.store.run(run.id)


@pytest.fixture
def deaf(runs: Runs, hypervisor: Hypervisor) -> Iterator[str]:
    """A node that does not hear its power button: its processors stand still."""
    made = do(runs, "node create deaf vcpus=1 memory=64MiB")
    assert made.state is State.SUCCEEDED, made.error
    subprocess.run(["virsh", "-q", "-c", hypervisor.uri, "suspend", "deaf"], check=True)
    yield "deaf"
    assert do(runs, "node release deaf").state is State.SUCCEEDED


def held(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_operations_work_over_ssh(runs: Runs, deaf: str) -> None:
    shown = do(runs, "node show deaf")
    assert shown.result["answers"]["far"]["nodes"][0]["name"] == deaf


def test_cancel_ends_the_far_side_too(runs: Runs, deaf: str, hypervisor: Hypervisor) -> None:
    lock = hypervisor.folder / "disks" / f".node.{deaf}.lock"
    run, thread = begin(runs, "node stop deaf wait_seconds=250")
    eventually(lambda: held(lock))
    asked = time.monotonic()
    runs.cancel(run.id, OWNER)
    thread.join(10)
    assert runs.store.run(run.id).state is State.CANCELED
    eventually(lambda: not held(lock), 2 - (time.monotonic() - asked))
    assert do(runs, "node show deaf").result["answers"]["far"]["nodes"][0]["state"] == "paused"


def test_without_pipelining_a_terminal_ends_any_module(runs: Runs, site: Settings, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    script = f"echo $$ > {trace}; sleep 250"
    write_playbook(site.playbooks, "far", "wait", f"- name: Wait\n  ansible.builtin.command:\n    argv: [sh, -c, '{script}']\n  changed_when: true")
    path = site.playbooks / "far" / "wait.yml"
    plays: list[dict[str, Any]] = yaml.safe_load(path.read_text())
    plays[0] = {"name": "Test", "hosts": "hypervisors", "gather_facts": False, "vars": {"ansible_pipelining": False}, "tasks": plays[0]["tasks"]}
    path.write_text(yaml.safe_dump(plays))
    runs.catalog = site.catalog()
    run, thread = begin(runs, "far wait")
    pid = int(eventually(lambda: trace.exists() and trace.read_text()))
    runs.cancel(run.id, OWNER)
    thread.join(10)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 2)
