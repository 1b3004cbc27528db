# SPDX-License-Identifier: Apache-2.0
"""Nodes as hosts of an inventory: libvirt's own test driver stands for hypervisors, and sockets for those that are dead or hang."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT

pytestmark = [pytest.mark.libvirt]
EVIL = "{{ lookup('ansible.builtin.pipe', 'touch /tmp/lepton-evil') }}"
OWNER = "https://lepton.cloud/xmlns/node/1.0"


def domain(name: str, *, labels: dict[str, str] | None = None, ours: bool = True) -> str:
    said = json.dumps(labels or {}).replace("&", "&amp;").replace('"', "&quot;")
    mark = f'<metadata><l:node xmlns:l="{OWNER}" image="debian" labels="{said}"/></metadata>' if ours else ""
    return (
        f"<domain type='test'><name>{name}</name>{mark}<memory>262144</memory><vcpu current='1'>2</vcpu>"
        "<os><type>hvm</type></os><devices/></domain>"
    )  # fmt: skip


def hypervisor(folder: Path, name: str, *domains: str) -> str:
    """Write what libvirt's test driver takes for a host, and return its URI."""
    cpus = "<cpu><mhz>6000</mhz><model>i686</model><active>8</active><nodes>1</nodes><sockets>1</sockets><cores>8</cores><threads>1</threads></cpu>"
    (folder / f"{name}.xml").write_text(f"<node>{cpus}<memory>8388608</memory>{''.join(domains)}</node>")
    return f"test://{folder}/{name}.xml"


def listed(folder: Path, hosts: dict[str, Any], **options: Any) -> tuple[dict[str, Any], str]:
    (folder / "a_hosts.yml").write_text(yaml.safe_dump({"hypervisors": {"hosts": hosts}}))
    (folder / "z_virtual_nodes.yml").write_text(yaml.safe_dump({"plugin": "lepton.cloud.virtual_nodes", **options}))
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "HOME": str(folder)}
    command = [ROOT / ".venv/bin/ansible-inventory", "-i", folder / "a_hosts.yml", "-i", folder / "z_virtual_nodes.yml", "--list"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found, " ".join(done.stderr.split())


def local(uri: str) -> dict[str, Any]:
    return {"ansible_connection": "local", "lepton_host": {"uri": uri}}


def test_nodes_of_all_hosts_are_there_and_one_that_hangs_hides_no_other(tmp_path: Path) -> None:
    marker = Path("/tmp/lepton-evil")
    marker.unlink(missing_ok=True)
    one = hypervisor(
        tmp_path, "one", domain("web-1", labels={"cloud.lepton.service": "web", "team": EVIL}), domain("db-1", labels={"team": "search"}),
        domain("theirs", ours=False),
    )  # fmt: skip
    two = hypervisor(tmp_path, "two", domain("web-2", labels={"cloud.lepton.service": "web"}), domain("web-1"))
    with socket.create_server(("127.0.0.1", 0)) as hanging, socket.create_server(("127.0.0.1", 0)) as refusing:
        refused = refusing.getsockname()[1]
        refusing.close()
        hosts = {
            "kvm1": local(one), "kvm2": local(two), "hangs": local(f"qemu+tcp://127.0.0.1:{hanging.getsockname()[1]}/system"),
            "dead": local(f"qemu+tcp://127.0.0.1:{refused}/system"),
        }  # fmt: skip
        began = time.monotonic()
        found, said = listed(tmp_path, hosts, deadline=3, keyed_groups=[{"key": "lepton_node.image", "prefix": "image"}])
        took = time.monotonic() - began
    assert sorted(found["virtual_nodes"]["hosts"]) == ["db-1", "web-1", "web-2"]
    assert found["host_kvm1"]["hosts"] == ["db-1", "web-1"]
    assert found["service_web"]["hosts"] == ["web-1", "web-2"]
    assert found["label_team_search"]["hosts"] == ["db-1"]
    assert found["image_debian"]["hosts"] == ["db-1", "web-1", "web-2"]
    variables = found["_meta"]["hostvars"]
    assert variables["web-2"]["lepton_node"]["host"] == {"__ansible_unsafe": "kvm2"}
    assert variables["web-1"]["lepton_node"]["labels"]["team"] == {"__ansible_unsafe": EVIL}
    assert not marker.exists()
    assert "hangs did not tell of its nodes: no answer within 3 s" in said
    assert "dead did not tell of its nodes: libvirt does not answer" in said
    assert "a node of kvm2 is left out: web-1 is on kvm1 too" in said
    assert took < 15


def test_what_was_told_is_kept_for_a_while_and_who_did_not_answer_is_asked_again(tmp_path: Path) -> None:
    one = hypervisor(tmp_path, "one", domain("web-1"))
    cache = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(tmp_path / "kept"), "cache_timeout": 600}
    hosts = {"kvm1": local(one), "kvm2": local(f"test://{tmp_path}/two.xml")}
    found, said = listed(tmp_path, hosts, **cache)
    assert "kvm2 did not tell of its nodes" in said
    (tmp_path / "one.xml").unlink()
    hypervisor(tmp_path, "two", domain("web-2"))
    found, said = listed(tmp_path, hosts, **cache)
    assert sorted(found["virtual_nodes"]["hosts"]) == ["web-1", "web-2"]
    assert "did not tell" not in said


def test_how_a_host_is_reached_and_what_cannot_be(tmp_path: Path) -> None:
    far = {"ansible_host": "192.0.2.7", "ansible_user": "ops", "ansible_port": 2222, "lepton_host": {"uri": "qemu:///system"}}
    _found, said = listed(tmp_path, {"far": far}, interpreter="/bin/false")
    assert "no answer at qemu+ssh://ops@192.0.2.7:2222/system" in said
    _found, said = listed(tmp_path, {"far": far}, interpreter="/no/such/python")
    assert "/no/such/python: No such file or directory" in said
    _found, said = listed(tmp_path, {"far": far}, hosts_group="nobody")
    assert "the inventory has no group nobody" in said
