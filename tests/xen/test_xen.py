# SPDX-License-Identifier: Apache-2.0
"""The same playbooks on Xen: what they say is compared with what Xen, libvirt and the guest say."""

from __future__ import annotations

import re

import pytest
from tests.conftest import eventually
from tests.xen.conftest import Dom0

pytestmark = [pytest.mark.xen, pytest.mark.slow, pytest.mark.timeout(1500)]


def changed(dom0: Dom0, playbook: str, *words: str) -> int:
    done = dom0.play(playbook, *words)
    assert done.returncode == 0, done.stdout
    found = re.search(r"^xen1 .*changed=(\d+)", done.stdout, re.MULTILINE)
    assert found is not None
    return int(found[1])


def virsh(dom0: Dom0, *words: str) -> str:
    return dom0.do("virsh", "-q", "-c", "xen:///system", *words)


def told(dom0: Dom0) -> str:
    """Return what the guest said last of itself."""
    return dom0.do("tail", "-n", "1", "/var/log/xen/console/guest-pv-1.log").strip()


def test_a_paravirtual_node_is_made_resized_restarted_and_released(dom0: Dom0) -> None:
    make = [
        "-e", "node=pv-1", "-e", "memory=192MiB", "-e", "max_memory=384MiB", "-e", "vcpus=1", "-e", "max_vcpus=2", "-e", "network=bridge:xenbr0",
        "-e", "disk=32MiB",
    ]  # fmt: skip
    refused = dom0.play("node/create", "-e", "node=pv-1", "-e", "memory=192MiB")
    assert "Xen has no network of mode user" in refused.stdout
    assert changed(dom0, "node/create", *make, "--check") == 1
    assert virsh(dom0, "list", "--all", "--name") == "Domain-0"
    assert changed(dom0, "node/create", *make) == 1
    assert changed(dom0, "node/create", *make) == 0
    xml = virsh(dom0, "dumpxml", "pv-1")
    assert "https://lepton.cloud/xmlns/node/1.0" in xml
    assert "/var/lib/lepton/disks/pv-1.raw" in xml
    eventually(lambda: told(dom0).startswith("guest has 1 CPU") and told(dom0).endswith(f"disk {32 << 11}"), 120)
    assert "maxvcpus = 2" in dom0.do("sh", "-c", "'virsh -q -c xen:///system domxml-to-native xen-xl --domain pv-1'")

    assert changed(dom0, "node/resize", "-e", "node=pv-1", "-e", "vcpus=2", "--check") == 1
    assert changed(dom0, "node/resize", "-e", "node=pv-1", "-e", "vcpus=2", "-e", "memory=320MiB") == 1
    assert changed(dom0, "node/resize", "-e", "node=pv-1", "-e", "vcpus=2", "-e", "memory=320MiB") == 0
    grown = eventually(lambda: re.fullmatch(r"guest has 2 CPU, (\d+) MiB, .*", told(dom0)), 60)
    assert eventually(lambda: int(dom0.do("xl", "list", "pv-1").splitlines()[1].split()[2]) >= 318, 60), grown
    assert changed(dom0, "node/resize", "-e", "node=pv-1", "-e", "vcpus=1") == 1  # which KVM can only at the next start
    eventually(lambda: told(dom0).startswith("guest has 1 CPU"), 60)
    assert dom0.do("xl", "list", "pv-1").splitlines()[1].split()[3] == "1"

    assert "does not fit on this host" in dom0.play("node/resize", "-e", "node=pv-1", "-e", "memory=64GiB").stdout
    assert changed(dom0, "node/stop", "-e", "node=pv-1") == 1
    assert virsh(dom0, "domstate", "pv-1") == "shut off"
    assert changed(dom0, "node/start", "-e", "node=pv-1") == 1
    assert virsh(dom0, "domstate", "pv-1") in ("running", "idle", "no state")
    shown = dom0.play("node/list")
    assert shown.returncode == 0
    assert changed(dom0, "node/release", "-e", "node=pv-1") == 1
    assert virsh(dom0, "list", "--all", "--name") == "Domain-0"
    assert dom0.do("sh", "-c", "'ls /var/lib/lepton/disks'") == ""
