# SPDX-License-Identifier: Apache-2.0
"""The roles with all their defaults, on this machine: in a mount namespace whose folders of configuration are a test's own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, eventually, require

pytestmark = [pytest.mark.haproxy, pytest.mark.docker, pytest.mark.slow]
FOLDERS = (
    "/etc/haproxy", "/etc/default", "/etc/docker", "/etc/keepalived", "/etc/lepton", "/etc/systemd/system", "/run/haproxy", "/var/lib/haproxy",
    "/var/lib/lepton", "/etc/prometheus", "/etc/grafana",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _root() -> None:
    require([] if os.geteuid() == 0 else ["the rights of root"], "haproxy")


def inside_command(folder: Path, *command: str) -> list[str]:
    """Return what runs a command where these folders are empty ones below `folder`."""
    mounts = []
    for target in FOLDERS:
        Path(target).mkdir(parents=True, exist_ok=True)  # what a package would bring, and only so that something can be mounted there
        own = folder / target.strip("/").replace("/", "-")
        own.mkdir(exist_ok=True)
        mounts.append(f"mount --bind {own} {target}")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join([*mounts, f"exec {shlex.join(command)}"])]


def inside(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command there."""
    return subprocess.run(
        inside_command(folder, *command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "default"},
    )  # fmt: skip


def role(folder: Path, name: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    play = [
        {
            "hosts": "here", "gather_facts": True, "gather_subset": ["min", "pkg_mgr", "service_mgr"], "roles": [f"lepton.cloud.{name}"],
            "vars": {f"{name}_manage_service": False, **variables},
        }
    ]  # fmt: skip
    (folder / "play.yml").write_text(json.dumps(play))
    return inside(folder, str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(ROOT / "inventories/sandbox"), str(folder / "play.yml"))


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout
    found = re.search(r"^here .*changed=(\d+)", done.stdout, re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_load_balancer_as_the_role_makes_it_is_what_the_modules_need(tmp_path: Path) -> None:
    extra = "frontend intranet\n  bind 127.0.0.1:18099\n  http-request return status 204"
    assert changed(role(tmp_path, "load_balancer", load_balancer_extra_config=extra, load_balancer_maxconn=2000)) > 0
    assert changed(role(tmp_path, "load_balancer", load_balancer_extra_config=extra, load_balancer_maxconn=2000)) == 0
    options = re.search(r'^EXTRAOPTS="(.*)"$', (tmp_path / "etc-default" / "haproxy").read_text(), re.MULTILINE)
    assert options is not None
    # As Debian's unit starts it, and then a module with nothing but its defaults.
    script = (
        f"haproxy -W -f /etc/haproxy/haproxy.cfg -p {tmp_path}/pid {options[1]} >{tmp_path}/log 2>&1 & "
        f"while [ ! -S /run/haproxy/admin.sock ] || [ ! -S /run/haproxy-master.sock ]; do sleep 0.1; done; "
        f"{ROOT}/.venv/bin/ansible -i {ROOT}/inventories/sandbox here -m lepton.cloud.load_balancer_service -a "
        f"""'{{"name": "chat", "replicas": 1, "declaration": {{"image": "m:1", "port": 1, "listen_port": 18098}}}}'; """
        f"kill $(cat {tmp_path}/pid)"
    )
    done = inside(tmp_path, "timeout", "60", "sh", "-c", script)
    assert '"reloaded": true' in done.stdout, done.stdout + (tmp_path / "log").read_text()
    assert (tmp_path / "etc-haproxy" / "lepton.d" / "chat.cfg").exists()


def test_a_load_balancer_that_knows_a_cluster_follows_its_pods(tmp_path: Path) -> None:
    clusters = {"gpu": {"api_server": "https://127.0.0.1:1", "token": "secret-word", "validate_certs": False}}
    variables = {"load_balancer_clusters": clusters, "load_balancer_endpoints_dir": "/var/lib/lepton/endpoints", "load_balancer_maxconn": 2000}
    assert changed(role(tmp_path, "load_balancer", **variables)) > 0
    again = role(tmp_path, "load_balancer", **variables)
    assert changed(again) == 0
    assert "secret-word" not in again.stdout
    settings = tmp_path / "etc-lepton" / "endpoints.json"
    assert settings.stat().st_mode & 0o777 == 0o600
    unit = (tmp_path / "etc-systemd-system" / "lepton-endpoints.service").read_text()
    path, start = (re.search(rf"^{name}=(.*)$", unit, re.MULTILINE) for name in ("Environment", "ExecStart"))
    assert path is not None
    assert start is not None
    declared = {"backend": "deployment", "cluster": "gpu", "image": "m:1", "port": 1, "listen_port": 18097}
    given = json.dumps({"name": "chat", "replicas": 1, "declaration": declared})
    # HAProxy as its unit starts it, and the program as its own does, with Debian's Python and its client of Kubernetes.
    script = (
        f"haproxy -W -D -f /etc/haproxy/haproxy.cfg -f /etc/haproxy/lepton.d -p {tmp_path}/pid -S /run/haproxy-master.sock >{tmp_path}/log 2>&1; "
        f"while [ ! -S /run/haproxy/admin.sock ] || [ ! -S /run/haproxy-master.sock ]; do sleep 0.1; done; "
        f"{ROOT}/.venv/bin/ansible -i {ROOT}/inventories/sandbox here -m lepton.cloud.load_balancer_service -a '{given}' >>{tmp_path}/log 2>&1; "
        f"env {path[1]} {start[1]} >{tmp_path}/said 2>&1 & "
        f"for try in $(seq 300); do grep -q chat {tmp_path}/said && break; sleep 0.1; done; "
        f"kill $! $(cat {tmp_path}/pid)"
    )
    inside(tmp_path, "timeout", "90", "sh", "-c", script)
    said = (tmp_path / "said").read_text()
    assert "chat: the API server https://127.0.0.1:1 cannot be reached" in said, said + (tmp_path / "log").read_text()


def test_a_floating_address_needs_a_secret(tmp_path: Path) -> None:
    failed = role(tmp_path, "load_balancer", load_balancer_floating_address="10.0.0.100/24")
    assert failed.returncode != 0
    assert "load_balancer_floating_secret must have 1 to 8 characters" in failed.stdout
    assert not list((tmp_path / "etc-haproxy").iterdir())


@pytest.fixture
def two_networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them: what stands for two machines of one network."""
    names = (f"lep{os.getpid()}a", f"lep{os.getpid()}b")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    for name in names:
        ip("netns", "add", name)
    ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
    for number, name in enumerate(names, 1):
        ip("-n", name, "address", "add", f"10.99.0.{number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        ip("netns", "delete", name)


def test_the_floating_address_goes_to_the_one_whose_haproxy_lives(tmp_path: Path, two_networks: tuple[str, str]) -> None:
    """HAProxy and keepalived as the role configures them, each pair with a network and processes of its own."""
    require([] if shutil.which("keepalived") else ["keepalived"], "haproxy")
    machines = []

    def has_address(network: str) -> bool:
        shown = subprocess.run(["ip", "-n", network, "-4", "address", "show", "dev", "eth0"], capture_output=True, text=True, check=True).stdout
        return "10.99.0.100/24" in shown

    try:
        for network, priority in zip(two_networks, (150, 100), strict=True):
            folder = tmp_path / network
            folder.mkdir()
            floating = {"address": "10.99.0.100/24", "interface": "eth0", "priority": priority, "secret": "together"}
            variables = {f"load_balancer_floating_{name}": value for name, value in floating.items()}
            assert changed(role(folder, "load_balancer", load_balancer_maxconn=2000, **variables)) > 0
            mounts = " && ".join(f"mount --bind {folder}/{target.strip('/').replace('/', '-')} {target}" for target in FOLDERS)
            keepalived = f"keepalived --dont-fork --log-console --use-file=/etc/keepalived/keepalived.conf --pid={folder}/k.pid --vrrp_pid={folder}/v.pid"
            script = f"{mounts} && haproxy -W -D -f /etc/haproxy/haproxy.cfg -p {folder}/haproxy.pid -S {folder}/master.sock && exec {keepalived}"
            own = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
            with (folder / "log").open("wb") as log:
                machines.append(subprocess.Popen(["ip", "netns", "exec", network, *own], stdout=log, stderr=log))
        one, other = two_networks
        eventually(lambda: has_address(one) and not has_address(other), 30)
        found = subprocess.run(["ip", "netns", "pids", one], capture_output=True, text=True, check=True).stdout.split()
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a health check that has just ended
                if Path(f"/proc/{pid}/comm").read_text().strip() == "haproxy":
                    os.kill(int(pid), signal.SIGKILL)
        eventually(lambda: has_address(other) and not has_address(one), 30)
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()


def test_a_container_host_keeps_what_its_engine_was_told(tmp_path: Path) -> None:
    (tmp_path / "etc-docker").mkdir()
    daemon = tmp_path / "etc-docker" / "daemon.json"
    daemon.write_text('{"data-root": "/srv/docker", "log-opts": {"compress": "true"}}')
    assert changed(role(tmp_path, "container_host")) > 0
    assert json.loads(daemon.read_text()) == {
        "data-root": "/srv/docker", "live-restore": True, "log-driver": "json-file", "log-opts": {"compress": "true", "max-file": "3", "max-size": "10m"},
    }  # fmt: skip
    assert changed(role(tmp_path, "container_host")) == 0
