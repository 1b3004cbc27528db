# SPDX-License-Identifier: Apache-2.0
"""Devices that nodes have to themselves, chosen on trees of sysfs as hosts with GPUs have them: no GPU is here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._node import NodeError
from ansible_collections.lepton.cloud.plugins.module_utils._pci import Device, choose_devices, gpus_of, read_cpuset, read_devices, unusable
from tests.collection.test_moving import answer, node, plan
from tests.collection.test_virtual_node import Host

from lepton_ai.sandbox.hypervisor import Hypervisor

NVIDIA, AMD = "0x10de", "0x1002"
# What a host with four GPUs, a console and a network card has: address, class, vendor, NUMA node, IOMMU group, driver.
HOST = [
    ("0000:00:01.0", "0x060400", "0x8086", 0, "1", "pcieport"),
    ("0000:03:00.0", "0x030000", "0x1a03", 0, "2", "ast"),
    ("0000:17:00.0", "0x030200", NVIDIA, 0, "17", "nvidia"),
    ("0000:3b:00.0", "0x030000", NVIDIA, 1, "30", "nvidia"),
    ("0000:3b:00.1", "0x040300", NVIDIA, 1, "30", "snd_hda_intel"),
    ("0000:5e:00.0", "0x030200", NVIDIA, 1, "31", ""),
    ("0000:86:00.0", "0x038000", AMD, 1, "40", "amdgpu"),
    ("0000:87:00.0", "0x020000", "0x8086", 1, "40", "ixgbe"),
]


def tree(folder: Path, devices: list[tuple[str, str, str, int, str, str]], console: str = "0000:03:00.0") -> Path:
    """Write what sysfs has of these devices, as it was seen on hosts: files, and links to groups and drivers."""
    for address, kind, vendor, numa, group, driver in devices:
        path = folder / "bus/pci/devices" / address
        path.mkdir(parents=True)
        for name, text in (("class", kind), ("vendor", vendor), ("numa_node", str(numa))):
            (path / name).write_text(text + "\n")
        if kind.startswith("0x03"):
            (path / "boot_vga").write_text("1\n" if address == console else "0\n")
        for name, target in (("iommu_group", group and f"kernel/iommu_groups/{group}"), ("driver", driver and f"bus/pci/drivers/{driver}")):
            if target:
                (folder / target).mkdir(parents=True, exist_ok=True)
                (path / name).symlink_to(folder / target)
    return folder


@pytest.fixture
def devices(tmp_path: Path) -> list[Device]:
    return read_devices(str(tree(tmp_path, HOST)))


def test_sysfs_is_read_as_it_is(devices: list[Device]) -> None:
    assert devices[3] == Device("0000:3b:00.0", "0x030000", NVIDIA, 1, "30", "nvidia", console=False)
    assert [device.gpu for device in devices] == ["", "other-gpu", "nvidia-gpu", "nvidia-gpu", "", "nvidia-gpu", "amd-gpu", ""]
    assert [device.address for device in devices if device.console] == ["0000:03:00.0"]
    assert read_devices("/nowhere") == []


@pytest.mark.parametrize(
    ("words", "taken", "chosen"),
    [
        (["0000:17:00.0"], {}, ["0000:17:00.0"]),
        (["0000:3b:00.0"], {}, ["0000:3b:00.0", "0000:3b:00.1"]),  # its own sound comes along
        (["nvidia-gpu:2"], {}, ["0000:3b:00.0", "0000:3b:00.1", "0000:5e:00.0"]),  # both on one NUMA node
        (["gpu:3"], {}, ["0000:17:00.0", "0000:3b:00.0", "0000:3b:00.1", "0000:5e:00.0"]),
        (["gpu"], {"0000:3b:00.1": "web-1", "0000:17:00.0": "web-2"}, ["0000:5e:00.0"]),
        (["nvidia-gpu", "0000:5e:00.0"], {"0000:3b:00.0": "web-1"}, ["0000:17:00.0", "0000:5e:00.0"]),
    ],
)
def test_what_is_asked_for_is_chosen(devices: list[Device], words: list[str], taken: dict[str, str], chosen: list[str]) -> None:
    assert choose_devices(words, devices, taken) == chosen


@pytest.mark.parametrize(
    ("words", "taken", "why"),
    [
        (["nvidia-gpu:4"], {}, "3 of nvidia-gpu are free on this host, and 4 are needed"),
        (["amd-gpu"], {}, "0000:86:00.0: 0000:87:00.0, which shares its IOMMU group, is used by the host (ixgbe)"),
        (["0000:87:00.0"], {}, "it is used by the host (ixgbe): unbind it first"),
        (["0000:03:00.0"], {}, "it shows the host's own console"),
        (["0000:00:01.0"], {}, "it is a bridge"),
        (["0000:17:00.0"], {"0000:17:00.0": "web-1"}, "it is of node web-1"),
        (["0000:3b:00.0"], {"0000:3b:00.1": "web-1"}, "0000:3b:00.1, which shares its IOMMU group, is of node web-1"),
        (["0000:99:00.0"], {}, "this host has no PCI device 0000:99:00.0"),
        (["intel-gpu"], {}, "it has none"),
        (["tpu:1"], {}, "neither an address such as 0000:3b:00.0 nor a kind"),
        (["../../etc"], {}, "neither an address"),
    ],
)
def test_what_cannot_be_had_is_said_with_its_reason(devices: list[Device], words: list[str], taken: dict[str, str], why: str) -> None:
    with pytest.raises(NodeError, match=re.escape(why)):
        choose_devices(words, devices, taken)


def test_gpus_are_counted_for_the_choice_of_a_host() -> None:
    assert gpus_of(["nvidia-gpu:2", "gpu", "0000:17:00.0"]) == 3


def test_without_an_iommu_nothing_can_be_passed_through(tmp_path: Path) -> None:
    devices = read_devices(str(tree(tmp_path, [(*each[:4], "", each[5]) for each in HOST])))
    assert "switch VT-d or AMD-Vi on" in unusable(devices[2], devices, {})


@pytest.mark.parametrize(("text", "cpus"), [("2-5,8", [2, 3, 4, 5, 8]), ("0", [0])])
def test_cpus_are_read_as_linux_writes_them(text: str, cpus: list[int]) -> None:
    assert read_cpuset(text, 16) == cpus


@pytest.mark.parametrize("text", ["", "16", "5-2", "a-b", "1,,2", "-1"])
def test_cpus_that_the_host_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(NodeError, match="which has 0-15"):
        read_cpuset(text, 16)


def test_a_node_with_devices_stays_on_its_host() -> None:
    held: dict[str, Any] = {**node("gpu-1"), "devices": ["nvidia-gpu:2"]}
    with pytest.raises(ValueError, match=r"gpu-1 has devices of a \(nvidia-gpu:2\), which stay there"):
        plan("node.move", {"a": answer(held), "b": answer()}, node="gpu-1")


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_host_without_what_is_asked_for_says_so_and_pins_what_it_can(hypervisor: Hypervisor) -> None:
    host = Host(hypervisor)
    size: dict[str, Any] = {"image": "guest", "vcpus": 1, "memory": "64MiB", "virtualization": "emulation"}
    none = host.node("gpu-1", devices=["nvidia-gpu:1"], **size)
    assert "0 of nvidia-gpu are free on this host, and 1 are needed" in none["msg"]
    assert "expected CPUs of this host" in host.node("gpu-1", cpuset="900", **size)["msg"]
    assert "gpu-1" not in host.virsh("list", "--all", "--name")
    made = host.node("gpu-1", cpuset="0", state="running", **size)
    assert made["changed"], made
    assert {line.split()[1] for line in host.virsh("vcpupin", "gpu-1").splitlines()} == {"0"}
    assert made["node"]["cpuset"] == "0"
    assert not host.node("gpu-1", cpuset="0", state="running", **size)["changed"]
    assert "that cannot be changed" in host.node("gpu-1", cpuset="1", **size)["msg"]
    host.node("gpu-1", state="absent")
