# SPDX-License-Identifier: Apache-2.0
"""The roles with all their defaults, on this machine: in a mount namespace whose folders of configuration are a test's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, require

pytestmark = [pytest.mark.haproxy, pytest.mark.docker, pytest.mark.slow]
FOLDERS = ("/etc/haproxy", "/etc/default", "/etc/docker", "/etc/keepalived", "/run/haproxy", "/var/lib/haproxy", "/var/lib/lepton")


@pytest.fixture(autouse=True)
def _folders() -> None:
    require([] if os.geteuid() == 0 else ["the rights of root"], "haproxy")
    for folder in FOLDERS:  # what a package would bring; empty, and only so that something can be mounted there
        Path(folder).mkdir(parents=True, exist_ok=True)


def inside(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where these folders are empty ones below `folder`."""
    mounts = []
    for target in FOLDERS:
        own = folder / target.strip("/").replace("/", "-")
        own.mkdir(exist_ok=True)
        mounts.append(f"mount --bind {own} {target}")
    script = " && ".join([*mounts, f"exec {shlex.join(command)}"])
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
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


def test_a_floating_address_needs_a_secret(tmp_path: Path) -> None:
    failed = role(tmp_path, "load_balancer", load_balancer_floating_address="10.0.0.100/24")
    assert failed.returncode != 0
    assert "load_balancer_floating_secret must have 1 to 8 characters" in failed.stdout
    assert not list((tmp_path / "etc-haproxy").iterdir())


def test_a_container_host_keeps_what_its_engine_was_told(tmp_path: Path) -> None:
    (tmp_path / "etc-docker").mkdir()
    daemon = tmp_path / "etc-docker" / "daemon.json"
    daemon.write_text('{"data-root": "/srv/docker", "log-opts": {"compress": "true"}}')
    assert changed(role(tmp_path, "container_host")) > 0
    assert json.loads(daemon.read_text()) == {
        "data-root": "/srv/docker", "live-restore": True, "log-driver": "json-file", "log-opts": {"compress": "true", "max-file": "3", "max-size": "10m"},
    }  # fmt: skip
    assert changed(role(tmp_path, "container_host")) == 0
