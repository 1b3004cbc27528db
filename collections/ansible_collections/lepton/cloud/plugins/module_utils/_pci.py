# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Devices of a host that nodes may have to themselves: read from sysfs, and chosen with the checks that a person would make. PRIVATE.

https://docs.kernel.org/driver-api/vfio.html: devices of one IOMMU group reach each other's memory, so a node gets all of a group or nothing.
"""

from __future__ import annotations

import os
import re
from typing import Mapping, NamedTuple, Sequence

from ._node import Node, NodeError

ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)
KIND = re.compile(r"((?:nvidia-|amd-|intel-)?gpu)(?::([1-9][0-9]?))?", re.ASCII)
VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
DISPLAY, BRIDGE = "0x03", "0x06"  # what a device's class begins with
BESIDE_DISPLAY = ("0x0403", "0x0c03", "0x0c80")  # sound, USB and serial buses, as they are on graphics cards
LET_GO = ("", "vfio-pci")  # drivers that leave a device to nodes


class Device(NamedTuple):
    """A device on the PCI bus. `group` is its IOMMU group, "" without one; `console` says that the host shows its own console there."""

    address: str
    kind: str
    vendor: str
    numa: int
    group: str
    driver: str
    console: bool

    @property
    def gpu(self) -> str:
        """Return what it is called where GPUs are asked for, "" where it is none."""
        return "%s-gpu" % VENDORS.get(self.vendor, "other") if self.kind.startswith(DISPLAY) else ""


def read_devices(sysfs: str = "/sys") -> list[Device]:
    """Return the host's PCI devices by address; none where it has no such bus."""
    folder = os.path.join(sysfs, "bus/pci/devices")
    if not os.path.isdir(folder):
        return []
    found = []
    for address in sorted(filter(ADDRESS.fullmatch, os.listdir(folder))):
        path = os.path.join(folder, address)
        numa = _word(path, "numa_node")
        found.append(
            Device(
                address, _word(path, "class"), _word(path, "vendor"), int(numa) if numa.lstrip("-").isdigit() else -1, _target(path, "iommu_group"),
                _target(path, "driver"), _word(path, "boot_vga") == "1",
            )
        )  # fmt: skip
    return found


def _word(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            return file.read(40).strip()
    except OSError:
        return ""


def _target(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else ""


def check_words(words: Sequence[str]) -> None:
    """Raise NodeError for what no devices can be asked for by."""
    for word in words:
        if not ADDRESS.fullmatch(word) and not KIND.fullmatch(word):
            raise NodeError("devices: %s is neither an address such as 0000:3b:00.0 nor a kind such as gpu or nvidia-gpu:2" % ascii(word[:60]))


def gpus_of(words: Sequence[str]) -> int:
    """Return how many GPUs are asked for by kind."""
    check_words(words)
    found = (KIND.fullmatch(word) for word in words)
    return sum(int(kind.group(2) or 1) for kind in found if kind)


def choose_devices(words: Sequence[str], devices: Sequence[Device], taken: Mapping[str, str]) -> list[str]:
    """Return the addresses of what was asked for, with what shares their IOMMU groups; raise NodeError with the reason of each that will not do.

    `taken` has the nodes that have devices already, by address. Of several that would do, those of one NUMA node come first.
    """
    check_words(words)
    by_address = {device.address: device for device in devices}
    chosen: dict[str, None] = {}
    for word in sorted(words, key=lambda word: not ADDRESS.fullmatch(word)):  # what is named comes before what may be any
        if ADDRESS.fullmatch(word):
            if word not in by_address:
                raise NodeError("devices: this host has no PCI device %s" % word)
            trouble = unusable(by_address[word], devices, taken)
            if trouble:
                raise NodeError("devices: %s: %s" % (word, trouble))
            _take(by_address[word], devices, chosen)
            continue
        found = KIND.fullmatch(word)
        kind, count = (found.group(1), int(found.group(2) or 1)) if found else ("", 0)
        of_kind = [device for device in devices if device.gpu and kind in ("gpu", device.gpu) and device.address not in chosen]
        usable = [device for device in of_kind if not unusable(device, devices, taken)]
        if len(usable) < count:
            reasons = "; ".join("%s: %s" % (device.address, unusable(device, devices, taken) or "free") for device in of_kind)
            raise NodeError("devices: %d of %s are free on this host, and %d are needed: %s" % (len(usable), kind, count, reasons or "it has none"))
        nodes = [device.numa for device in usable]
        for device in sorted(usable, key=lambda device: (nodes.count(device.numa) < count, -nodes.count(device.numa), device.numa))[:count]:
            _take(device, devices, chosen)
    return sorted(chosen)


def devices_taken(domains: Sequence[Node]) -> dict[str, str]:
    """Return who has which PCI device, running or not."""
    return {address: node.name for node in domains for address in node.devices}


def _take(device: Device, devices: Sequence[Device], chosen: dict[str, None]) -> None:
    for other in _companions(device, devices):
        chosen[other.address] = None


def _companions(device: Device, devices: Sequence[Device]) -> list[Device]:
    """Return a device with what shares its IOMMU group, but for bridges, which stay with the host."""
    return [other for other in devices if other.group == device.group and not other.kind.startswith(BRIDGE)]


def unusable(device: Device, devices: Sequence[Device], taken: Mapping[str, str]) -> str:
    """Return why a node cannot have a device, "" where it can."""
    if not device.group:
        return "it is in no IOMMU group: switch VT-d or AMD-Vi on in the firmware, and intel_iommu=on for the kernel of an Intel host"
    if device.kind.startswith(BRIDGE):
        return "it is a bridge"
    for other in _companions(device, devices):
        who = "it" if other is device else "%s, which shares its IOMMU group," % other.address
        if other.address in taken:
            return "%s is of node %s" % (who, taken[other.address])
        if other.console:
            return "%s shows the host's own console" % who
        if other.driver not in LET_GO and not _of_a_display(other, devices):
            return "%s is used by the host (%s): unbind it first, if the host can do without" % (who, other.driver)
    return ""


def _of_a_display(device: Device, devices: Sequence[Device]) -> bool:
    """Return whether a device is a GPU or a part of its card. A disk's controller or a network card that has a driver is what the host lives on."""
    slot = device.address.rpartition(".")[0]
    beside = any(other.kind.startswith(DISPLAY) and other.address.rpartition(".")[0] == slot for other in devices)
    return device.kind.startswith(DISPLAY) or (beside and device.kind.startswith(BESIDE_DISPLAY))


def read_cpuset(text: str, cpus: int) -> list[int]:
    """Return the CPUs of a list such as 2-5,8; raise NodeError for none and for those that a host with so many does not have."""
    found: list[int] = []
    for part in text.split(","):
        first, _dash, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit() or not int(first) <= int(last or first) < cpus:
            raise NodeError("cpuset: expected CPUs of this host, which has 0-%d, such as 2-5,8, and not %s" % (cpus - 1, ascii(text[:60])))
        found += range(int(first), int(last or first) + 1)
    return found
