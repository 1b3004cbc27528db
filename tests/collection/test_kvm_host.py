# SPDX-License-Identifier: Apache-2.0
"""Hosts for nodes: networks and pools as libvirt has them, and the role that prepares a machine, with another host that reaches it by TLS."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lepton.cloud.plugins.module_utils._network import Found, Network, check_network, plan_network, read_network, render_network
from ansible_collections.lepton.cloud.plugins.module_utils._node import NodeError
from tests.certificates import certificates
from tests.conftest import ROOT, eventually
from tests.machines import WIRE, Two, two_machines
from tests.warm import ansible

NAT = Network("nat", "192.168.150.1/24")


@pytest.mark.parametrize("network", [NAT, Network("isolated", "10.9.0.254/24"), Network("bridge", None, "br0")])
def test_a_network_is_read_as_it_was_written(network: Network) -> None:
    assert read_network(render_network("models", network)) == network
    assert plan_network("models", network, Found(network, active=True, autostart=True)) == []
    assert [change.field for change in plan_network("models", network, Found(network, active=False, autostart=False))] == ["state", "autostart"]


def test_leases_are_of_the_addresses_that_the_host_leaves() -> None:
    assert 'start="192.168.150.2" end="192.168.150.254"' in render_network("m", NAT)
    assert 'start="10.9.0.1" end="10.9.0.253"' in render_network("m", Network("nat", "10.9.0.254/24"))


@pytest.mark.parametrize(
    ("name", "network", "why"),
    [
        ("a b", NAT, "is not a network's name"),
        ("m", Network("nat"), "needs the host's address"),
        ("m", Network("nat", "192.168.150.1"), "leaves no addresses"),
        ("m", Network("nat", "192.168.150.0/24"), "leaves no addresses"),
        ("m", Network("nat", "fd00::1/64"), "expected one of IPv4"),
        ("m", Network("nat", "10.1.2.1/24"), "overlaps with 10.1.0.1/16 of network other"),
        ("m", Network("bridge", None, "br0; reboot"), "needs the name of a bridge"),
        ("m", Network("bridge", "10.5.0.1/24", "br0"), "and no address"),
    ],
)
def test_what_no_network_can_be_is_said(name: str, network: Network, why: str) -> None:
    with pytest.raises(NodeError, match=re.escape(why)):
        check_network(name, network, [("other", "10.1.0.1/16")])


def test_a_network_that_is_otherwise_stays_as_it_is() -> None:
    with pytest.raises(NodeError, match="exists with mode isolated, not nat"):
        plan_network("models", NAT, Found(Network("isolated", "192.168.150.1/24"), active=True, autostart=True))


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with two_machines() as machines:
        yield machines


def prepare(two: Two, **variables: Any) -> dict[str, int]:
    """Run the role on both hosts, and return how much it changed on each."""
    play = [{"hosts": "hypervisors", "gather_facts": True, "gather_subset": ["min", "pkg_mgr"], "roles": ["lepton.cloud.kvm_host"]}]
    (two.folder / "play.yml").write_text(yaml.safe_dump(play))
    (two.folder / "vars.yml").write_text(yaml.safe_dump({"kvm_host_manage_service": False, **variables}))
    words: list[str | Path] = ["-i", two.folder / "hosts.yml", two.folder / "play.yml", "-e", f"@{two.folder}/vars.yml"]
    done = ansible("ansible-playbook", words, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=280)
    assert done.returncode == 0, done.stdout
    return {name: int(count) for name, count in re.findall(r"^(\w+) +: ok=.* changed=(\d+)", done.stdout, re.MULTILINE)}


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_prepared_host_has_pools_a_network_with_leases_and_is_reached_by_tls(two: Two) -> None:
    certificates(two.folder / "tls", WIRE)
    variables = {
        "kvm_host_image_dir": "{{ lepton_host.image_dir }}", "kvm_host_disk_dir": "{{ lepton_host.disk_dir }}", "kvm_host_tls": True,
        "kvm_host_tls_folder": str(two.folder / "tls"), "kvm_host_networks": [{"name": "models", "host_address": "192.168.150.1/24"}],
    }  # fmt: skip
    assert all(count > 0 for count in prepare(two, **variables).values())
    assert prepare(two, **variables) == {"kvm1": 0, "kvm2": 0}
    host = two.first
    assert [line.split() for line in host.virsh("net-list", "--all").splitlines()] == [["models", "active", "yes", "yes"]]
    assert [line.split() for line in host.virsh("pool-list", "--all").splitlines()] == [["lepton-disks", "active", "yes"], ["lepton-images", "active", "yes"]]
    other = host.module("virtual_network", name="models", host_address="10.8.0.1/24")
    assert "network models exists with address 192.168.150.1/24, not 10.8.0.1/24" in other["msg"]
    planned = host.module("virtual_network", name="second", host_address="10.8.0.1/24", check=True)
    assert planned["changed"]
    assert "second" not in host.virsh("net-list", "--all")
    broken = host.module("virtual_network", name="third", mode="bridge", bridge="br-none")
    assert not broken["failed"], broken  # libvirt asks for the bridge when a node joins

    size = {"vcpus": 1, "memory": "96MiB", "virtualization": "emulation"}
    made = {"name": "net-1", "state": "running", "image": "guest", "network": "network:models", "mac": "52:54:00:4B:1F:07", "disk": "16MiB", **size}
    assert host.module("virtual_node", **made)["node"]["mac"] == "52:54:00:4b:1f:07"
    assert not host.module("virtual_node", **made)["changed"]
    assert "that cannot be changed" in host.module("virtual_node", **{**made, "mac": "52:54:00:4b:1f:08"})["msg"]
    for mac, network in (("53:54:00:4b:1f:07", "network:models"), ("52:54:00:4b:1f", "network:models"), ("52:54:00:4b:1f:07", "user")):
        assert "expected one such as 52:54:00:4b:1f:07" in host.module("virtual_node", **{**made, "name": "net-2", "mac": mac, "network": network})["msg"]
    leases = eventually(lambda: host.virsh("net-dhcp-leases", "models"), 90)
    assert "192.168.150." in leases
    assert "52:54:00:4b:1f:07" in leases

    # It is known by its address wherever it goes, and nothing else is.
    backups = two.folder / "backups"
    backups.mkdir()
    assert host.module("virtual_node_backup", name="net-1", directory=str(backups))["changed"]
    host.module("virtual_node", name="net-1", state="absent")
    again = {"node": "net-1", "directory": str(backups), "state": "stopped", "virtualization": "emulation"}
    assert host.module("virtual_node_restore", **again)["node"]["mac"] == "52:54:00:4b:1f:07"
    assert host.module("virtual_node_restore", **again, name="net-2")["node"]["mac"] != "52:54:00:4b:1f:07"
    assert "52:54:00:4b:1f:07" in host.virsh("domiflist", "net-1")
    assert "52:54:00:4b:1f:07" not in host.virsh("domiflist", "net-2")
    for name in ("net-1", "net-2"):
        host.module("virtual_node", name=name, state="absent")

    stop = (two.second.folder / "libvirtd.pid").read_text()
    two.second.do("kill", stop.strip())
    eventually(lambda: not Path(f"/proc/{stop.strip()}").exists(), 20)
    settings = two.second.folder / "etc/libvirtd.conf"
    settings.write_text(settings.read_text().replace("listen_tls = 0", "listen_tls = 1"))
    two.second.start_libvirt()
    assert two.first.do("virsh", "-q", "-c", "qemu+tls://kvm2/system", "hostname") == "kvm2"
    without = subprocess.run(
        [*two.first.inside, "virsh", "-q", "-c", f"qemu+tls://kvm2/system?pkipath={two.folder}", "hostname"], capture_output=True, text=True, check=False
    )
    assert without.returncode != 0, without.stdout
