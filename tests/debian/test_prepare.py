# SPDX-License-Identifier: Apache-2.0
"""Our roles on a machine with systemd, as a site runs them: a bare Debian becomes a host for everything, and is one still after a restart."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.certificates import certificates
from tests.conftest import ROOT, ansible_module, eventually
from tests.debian.machine import ADDRESS, SSH, SUITES, Machine, changed, debian_machine

from lepton_ai.sandbox.guest import build_guest

pytestmark = [pytest.mark.debian, pytest.mark.slow, pytest.mark.timeout(900)]
UNITS = (
    "libvirtd", "docker", "haproxy", "keepalived", "prometheus", "prometheus-alertmanager", "prometheus-node-exporter", "prometheus-libvirt-exporter",
)  # fmt: skip
FLOATING = "10.213.8.100"
SITE = {
    "lepton_metrics": {"address": ADDRESS}, "lepton_image": "guest",
    "kvm_host_tls": True, "kvm_host_networks": [{"name": "models", "host_address": "192.168.150.1/24"}],
    "load_balancer_floating_address": f"{FLOATING}/24", "load_balancer_floating_secret": "secret",
    "load_balancer_maxconn": 2000,  # this machine allows 20000 files
    "monitoring_alert_token": "token", "monitoring_grafana": False,  # Debian has no Grafana,
    "exporters_containers_image": "",  # and no registry is reached from here
}  # fmt: skip


@pytest.fixture(scope="module", params=SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with debian_machine(request.param) as made:
        # Control groups cannot be made in the container that stands for a machine.
        (made.folder / "root/etc/libvirt").mkdir()
        (made.folder / "root/etc/libvirt/qemu.conf").write_text("cgroup_controllers = []\n")
        certificates(made.folder / "tls", {"prepared": ADDRESS})
        site(made)
        yield made


def site(machine: Machine, **variables: Any) -> None:
    given = {**SITE, "kvm_host_tls_folder": str(machine.folder / "tls"), **variables}
    machine.inventory(("hypervisors", "container_hosts", "load_balancers", "monitors"), **given)


def working(machine: Machine) -> bool:
    """Return whether all that the roles are for works, asked of the machine from outside."""
    units = machine.do("systemctl", "is-active", *UNITS).split() == ["active"] * len(UNITS)
    pools = [line.split() for line in machine.do("virsh", "-q", "pool-list", "--all").splitlines()]
    networks = [line.split() for line in machine.do("virsh", "-q", "net-list", "--all").splitlines()]
    try:
        targets = httpx.get(f"http://{ADDRESS}:9090/api/v1/targets", timeout=5).json()["data"]["activeTargets"]
    except (httpx.HTTPError, ValueError):
        return False
    health = {target["labels"]["job"]: target["health"] for target in targets}
    return (
        units
        and [f"lepton-{what}" for what in ("disks", "images")] == [pool[0] for pool in pools if pool[1:] == ["active", "yes"]]
        and ["models", "active", "yes", "yes"] in networks
        and {health.get(job) for job in ("node", "libvirt", "haproxy")} == {"up"}
        and machine.do("virsh", "-q", "-c", f"qemu+tls://{ADDRESS}/system", "hostname") == "prepared"
        and FLOATING in machine.do("ip", "-4", "-o", "address", "show", "eth0")
    )


def maxconn(machine: Machine) -> str:
    """Return how many connections the running HAProxy takes, by its own word."""
    script = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); s.sendall(b'show info\\n'); print(s.makefile().read())"
    found = re.search(r"^Maxconn: (\d+)$", machine.do("python3", "-c", f'"{script}"'), re.MULTILINE)
    return found[1] if found else ""


def test_a_bare_machine_becomes_a_host_for_everything(machine: Machine) -> None:
    assert changed(machine.play("host/prepare")) > 15
    assert changed(machine.play("monitoring/install")) > 10
    eventually(lambda: working(machine), 60)
    assert maxconn(machine) == "2000"
    assert changed(machine.play("host/prepare")) == 0
    assert changed(machine.play("monitoring/install")) == 0


def test_a_node_works_on_it(machine: Machine) -> None:
    shutil.copytree(build_guest(), machine.folder / "root/var/lib/lepton/images/guest")
    node = {"node": "web-1", "vcpus": 1, "memory": "96MiB", "disk": "16MiB", "network": "network:models"}
    made = machine.play("node/create", "-e", json.dumps(node))
    assert made.returncode == 0, made.stdout
    assert "web-1" in machine.do("virsh", "-q", "list")
    lease = eventually(lambda: re.search(r"192\.168\.150\.\d+", machine.do("virsh", "-q", "net-dhcp-leases", "models")), 90)
    code = f"import urllib.request as u; print(u.urlopen('http://{lease[0]}:80/cgi-bin/status', timeout=20).read().decode())"
    assert eventually(lambda: '"cpus": 1' in machine.do("python3", "-c", f'"{code}"'), 60)


def test_a_fence_agent_of_pacemakers_turns_a_machine_off(machine: Machine) -> None:
    """The machine is a node of this host, by fence_virsh: no BMC is here."""
    options = {
        "ip": ADDRESS, "username": "root", "identity_file": str(machine.folder / "key"), "plug": "web-1",
        "ssh_options": f"-t -F none {SSH} '/bin/bash -c \"PS1=[EXPECT]#\\  /bin/bash --noprofile --norc\"'",  # its own prompt, and no known hosts
    }  # fmt: skip
    planned = ansible_module("host_fence", {"agent": "fence_virsh", "options": options}, check=True)
    assert (planned["failed"], planned["changed"]) == (False, True), planned
    assert "running" in machine.do("virsh", "domstate", "web-1")
    done = ansible_module("host_fence", {"agent": "fence_virsh", "options": options})
    assert (done["failed"], done["changed"]) == (False, True), done
    assert "shut off" in machine.do("virsh", "domstate", "web-1")
    assert not ansible_module("host_fence", {"agent": "fence_virsh", "options": options})["changed"]
    refused = ansible_module("host_fence", {"agent": "fence_virsh", "options": {**options, "plug": "web-9"}})
    assert "Whether it runs is not known" in refused["msg"]
    machine.do("virsh", "start", "web-1")


def test_a_run_that_dies_half_way_is_finished_by_the_next(machine: Machine) -> None:
    """A program that read its files before they were changed is told of it, whoever changed them and whenever."""
    command = [ROOT / ".venv/bin/ansible-playbook", "-i", machine.folder / "hosts.yml", ROOT / "playbooks/host/prepare.yml"]
    site(machine, load_balancer_maxconn=1999)
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written = machine.folder / "root/etc/haproxy/haproxy.cfg"
    eventually(lambda: "maxconn 1999" in written.read_text(), 60)
    run.kill()
    run.wait()
    assert maxconn(machine) == "2000"
    assert changed(machine.play("host/prepare")) > 0
    assert eventually(lambda: maxconn(machine) == "1999", 20)
    assert changed(machine.play("host/prepare")) == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_one_still_after_a_restart_and_after_a_power_cut(machine: Machine, how: signal.Signals) -> None:
    machine.stop(how)
    machine.start()
    eventually(lambda: working(machine), 90)
    assert changed(machine.play("host/prepare")) == 0
    # Nodes are off: they may have been made elsewhere meanwhile.
    assert machine.do("virsh", "-q", "list", "--all").split()[1:] == ["web-1", "shut", "off"]


def test_what_it_runs_stays_running_when_it_is_prepared_again(machine: Machine) -> None:
    before = machine.do("systemctl", "show", "-p", "MainPID", "--value", *UNITS)
    site(machine, load_balancer_maxconn=2001)
    assert changed(machine.play("host/prepare")) == 2
    assert maxconn(machine) == "2001"
    assert machine.do("systemctl", "show", "-p", "MainPID", "--value", *UNITS) == before
