# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Domain XML written and read: pure, no effects. PRIVATE to the collection.

Built as a tree, never as text, so nothing that a name or a path holds can become markup.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any, Mapping

from ._node import FORWARD, LOOPBACK, Boot, Size
from ._numa import ANYWHERE, Seat
from ._pci import read_cpuset

OWNER_NS = "https://lepton.cloud/xmlns/node/1.0"
QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("lepton", OWNER_NS)
ET.register_namespace("qemu", QEMU_NS)
KIB = 1024
MANY = 1 << 20  # CPUs, more than any host has
KERNEL = ("kernel", "initrd")


def render_domain(
    name: str,
    size: Size,
    boot: Boot,
    *,
    virtualization: str,
    disk_path: str,
    console_path: str,
    direct_boot: dict[str, str] | None,
    has_disk: bool,
    seed_path: str | None = None,
    seat: Seat = ANYWHERE,
) -> str:
    """Return the XML of a new node.

    `virtualization` is libvirt's domain type, 'kvm', 'qemu' or 'xen'. `direct_boot` has kernel, initrd and cmdline where the
    image is a kernel and not a disk. CPU and memory are reserved up to their maxima and start at the size asked for.
    """
    domain = ET.Element("domain", type=virtualization)
    _text(domain, "name", name)
    metadata = ET.SubElement(domain, "metadata")
    mark = ET.SubElement(metadata, "{%s}node" % OWNER_NS)
    mark.set("unfinished", "creating")
    mark.set("image", boot.image)
    mark.set("network", boot.network)
    mark.set("forward-ports", json.dumps(list(boot.forward_ports)))
    if boot.labels:
        mark.set("labels", json.dumps(dict(boot.labels)))
    if boot.devices:
        mark.set("devices", json.dumps(list(boot.devices)))
    if boot.cpuset:
        mark.set("cpuset", boot.cpuset)
    if boot.numa:
        mark.set("numa", "single")
    if boot.disk is not None:
        mark.set("disk", str(boot.disk))
    _text(domain, "memory", str(size.max_memory // KIB), unit="KiB")
    _text(domain, "currentMemory", str(size.memory // KIB), unit="KiB")
    _text(domain, "vcpu", str(size.max_vcpus), placement="static", current=str(size.vcpus))
    if boot.hugepages:
        ET.SubElement(ET.SubElement(domain, "memoryBacking"), "hugepages")
    if seat.cpus:
        tune = ET.SubElement(domain, "cputune")
        for number in range(size.max_vcpus):
            cpus = [seat.cpus[number % len(seat.cpus)]] if seat.cell is None else seat.cpus
            ET.SubElement(tune, "vcpupin", vcpu=str(number), cpuset=",".join(map(str, cpus)))
    if seat.cell is not None:
        ET.SubElement(ET.SubElement(domain, "numatune"), "memory", mode="strict", nodeset=str(seat.cell))
    system = ET.SubElement(domain, "os")
    if virtualization == "xen":
        _text(system, "type", "linux", arch="x86_64", machine="xenpv")
    else:
        _text(system, "type", "hvm", arch="x86_64", machine="q35")
    if direct_boot:
        for field in ("kernel", "initrd", "cmdline"):
            _text(system, field, direct_boot[field])
    else:
        ET.SubElement(system, "boot", dev="hd")
    if virtualization != "xen":
        ET.SubElement(ET.SubElement(domain, "features"), "acpi")
    if virtualization == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough", check="none")
    ET.SubElement(domain, "on_poweroff").text = "destroy"
    ET.SubElement(domain, "on_reboot").text = "restart"
    ET.SubElement(domain, "on_crash").text = "destroy"
    devices = ET.SubElement(domain, "devices")
    if virtualization == "xen":
        _xen_devices(devices, disk_path if has_disk else None)
    else:
        _qemu_devices(devices, disk_path if has_disk else None, console_path)
    if seed_path is not None:
        _seed(devices, seed_path)
    for address in seat.devices:
        _hostdev(devices, address)
    _network(domain, devices, boot)
    return ET.tostring(domain, encoding="unicode")


def _hostdev(devices: ET.Element, address: str) -> None:
    """Add a device of the host's, which libvirt takes from its driver when the node starts, and gives back."""
    device = ET.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="yes")
    bus, slot = address.split(":")[1], address.split(":")[2]
    place = {"domain": address.split(":")[0], "bus": bus, "slot": slot.split(".")[0], "function": slot.split(".")[1]}
    ET.SubElement(ET.SubElement(device, "source"), "address", {name: "0x" + digits for name, digits in place.items()})


def read_hostdevs(xml: str | ET.Element) -> tuple[str, ...]:
    """Return the addresses of the host's PCI devices that a domain has."""
    places = parsed(xml).iterfind("devices/hostdev[@type='pci']/source/address")
    numbers = [[int(place.get(name, "0"), 16) for name in ("domain", "bus", "slot", "function")] for place in places]
    return tuple("%04x:%02x:%02x.%x" % tuple(each) for each in numbers)


def _seed(devices: ET.Element, path: str) -> None:
    """Add what is read at the first boot, which may be missing at any other: on another host, or made of a backup."""
    ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")  # which kernels for clouds have, unlike SATA
    disk = ET.SubElement(devices, "disk", type="file", device="cdrom")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    ET.SubElement(disk, "source", file=path, startupPolicy="optional")
    ET.SubElement(disk, "target", dev="sda", bus="scsi")
    ET.SubElement(disk, "readonly")


def _qemu_devices(devices: ET.Element, disk_path: str | None, console_path: str) -> None:
    if disk_path is not None:
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type="qcow2", discard="unmap")
        ET.SubElement(disk, "source", file=disk_path)
        ET.SubElement(disk, "target", dev="vda", bus="virtio")
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=console_path, append="on")
    ET.SubElement(serial, "target", port="0")
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    agent = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(agent, "target", type="virtio", name="org.qemu.guest_agent.0")
    balloon = ET.SubElement(devices, "memballoon", model="virtio")
    ET.SubElement(balloon, "stats", period="2")


def _xen_devices(devices: ET.Element, disk_path: str | None) -> None:
    """Add what a paravirtual guest has; its console and balloon are Xen's own."""
    if disk_path is not None:
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "source", file=disk_path)
        ET.SubElement(disk, "target", dev="xvda", bus="xen")
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="xen", port="0")


def _network(domain: ET.Element, devices: ET.Element, boot: Boot) -> None:
    kind, _colon, source = boot.network.partition(":")
    if kind == "none":
        return
    if kind == "user":
        # libvirt 9 has no port forwarding for user networking without passt, which it rejects: QEMU's own arguments.
        matches = (FORWARD.fullmatch(pair) for pair in boot.forward_ports)
        parts = ((found.group(1) or LOOPBACK, found.group(2), found.group(3)) for found in matches if found)
        forwards = "".join(",hostfwd=tcp:%s:%s-:%s" % part for part in parts)
        command = ET.SubElement(domain, "{%s}commandline" % QEMU_NS)
        for argument in ("-netdev", "user,id=lepton0" + forwards, "-device", "virtio-net-pci,netdev=lepton0,bus=pcie.0,addr=0x10"):
            ET.SubElement(command, "{%s}arg" % QEMU_NS, value=argument)
        return
    interface = ET.SubElement(devices, "interface", type=kind)
    if boot.mac:
        ET.SubElement(interface, "mac", address=boot.mac)
    ET.SubElement(interface, "source", {kind: source})
    if domain.get("type") != "xen":
        ET.SubElement(interface, "model", type="virtio")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def adopted_mark(xml: str, labels: Mapping[str, str]) -> str:
    """Return our mark for a domain that somebody else made: of no image of ours, and of the network that it has."""
    network = "none"
    for interface in ET.fromstring(xml).iterfind("devices/interface"):
        kind, source = interface.get("type", ""), interface.find("source")
        network = "user" if kind == "user" else "%s:%s" % (kind, source.get(kind, "")) if kind in ("network", "bridge") and source is not None else network
    mark = ET.Element("node", image="", network=network)
    mark.set("forward-ports", "[]")
    mark.set("labels", json.dumps(dict(labels)))
    return ET.tostring(mark, encoding="unicode")


def moved(xml: str, paths: Mapping[str, str]) -> str:
    """Return the same domain with other paths of its disk, its console's log and what it boots from."""
    domain = ET.fromstring(xml)
    for element in (*domain.iterfind("devices/disk/source"), *domain.iterfind("devices/serial/log"), *domain.iterfind("devices/console/log")):
        path = element.get("file", "")
        element.set("file", paths.get(path, path))
    for part in KERNEL:
        found = domain.find("os/%s" % part)
        if found is not None and found.text:
            found.text = paths.get(found.text, found.text)
    return ET.tostring(domain, encoding="unicode")


def departing(xml: str, seed: str, *, whole: bool) -> str:
    """Return the same domain as it is on another host: without what was read at its first boot, and of a disk that is copied `whole` without its image."""
    domain = ET.fromstring(xml)
    for disk in domain.iterfind("devices/disk"):
        source, backing = disk.find("source"), disk.find("backingStore")
        if source is not None and disk.get("device") == "cdrom" and source.get("file") == seed:
            disk.remove(source)
        if backing is not None and whole:
            disk.remove(backing)
    return ET.tostring(domain, encoding="unicode")


def read_kernel(xml: str) -> dict[str, str]:
    """Return the files that a domain boots from in place of its disk: kernel and initrd, {} where it boots from its disk."""
    domain = ET.fromstring(xml)
    return {part: text for part in KERNEL for text in [domain.findtext("os/%s" % part)] if text}


def parsed(xml: str | ET.Element) -> ET.Element:
    """Return a domain as a tree; one that is read for many things is parsed once."""
    return ET.fromstring(xml) if isinstance(xml, str) else xml


def read_boot(xml: str | ET.Element) -> Boot | None:
    """Return what a domain was made from, or None when it does not bear our mark."""
    mark = parsed(xml).find("metadata/{%s}node" % OWNER_NS)
    if mark is None:
        return None
    disk = mark.get("disk")
    kind, _colon, source = mark.get("network", "user").partition(":")
    interfaces = (each for each in parsed(xml).iterfind("devices/interface") if source and each.get("type") == kind)
    interface = next((each.find("mac") for each in interfaces for there in [each.find("source")] if there is not None and there.get(kind) == source), None)
    return Boot(
        image=mark.get("image", ""),
        disk=int(disk) if disk else None,
        network=mark.get("network", "user"),
        forward_ports=tuple(json.loads(mark.get("forward-ports", "[]"))),
        labels=tuple(sorted(json.loads(mark.get("labels", "{}")).items())),
        devices=tuple(json.loads(mark.get("devices", "[]"))),
        cpuset=mark.get("cpuset", ""),
        hugepages=parsed(xml).find("memoryBacking/hugepages") is not None,
        numa=mark.get("numa") is not None,
        mac="" if interface is None else interface.get("address", ""),
    )


def read_cell(xml: str | ET.Element) -> int | None:
    """Return the NUMA node of its host that a domain's memory is bound to, None where it is of any, or of several."""
    memory = parsed(xml).find("numatune/memory")
    nodeset = "" if memory is None else memory.get("nodeset", "")
    return int(nodeset) if nodeset.isdigit() else None


def read_unfinished(xml: str | ET.Element) -> str:
    """Return 'creating' or 'releasing' where one of these was cut short, else ''."""
    mark = parsed(xml).find("metadata/{%s}node" % OWNER_NS)
    return "" if mark is None else mark.get("unfinished", "")


def marked(xml: str, unfinished: str) -> str:
    """Return the same domain with another `unfinished` mark."""
    domain = ET.fromstring(xml)
    mark = domain.find("metadata/{%s}node" % OWNER_NS)
    if mark is not None:
        mark.set("unfinished", unfinished)
    return ET.tostring(domain, encoding="unicode")


def read_size(xml: str | ET.Element) -> Size:
    """Return CPUs and memory (bytes) of a domain's XML; libvirt writes memory in KiB."""
    domain = parsed(xml)
    vcpu = domain.find("vcpu")
    max_vcpus = int(vcpu.text or 1) if vcpu is not None else 1
    vcpus = int(vcpu.get("current", max_vcpus)) if vcpu is not None else 1
    max_memory = _kib(domain, "memory")
    return Size(vcpus=vcpus, memory=_kib(domain, "currentMemory") or max_memory, max_vcpus=max_vcpus, max_memory=max_memory)


def _kib(domain: ET.Element, tag: str) -> int:
    found = domain.find(tag)
    return int(found.text or 0) * KIB if found is not None else 0


def _pin_more(domain: ET.Element, vcpus: int) -> None:
    """Have as many pins as vCPUs where we have pinned them; somebody else's stay as they are."""
    tune, mark = domain.find("cputune"), domain.find("metadata/{%s}node" % OWNER_NS)
    pins = [] if tune is None else tune.findall("vcpupin")
    if tune is None or mark is None or not pins or (mark.get("numa") is None and not mark.get("cpuset")):
        return
    own = mark.get("cpuset", "")
    around = [str(cpu) for cpu in read_cpuset(own, MANY)] if own else [pins[0].get("cpuset", "")]
    for pin in pins:
        if int(pin.get("vcpu", 0)) >= vcpus:
            tune.remove(pin)
    for number in sorted(set(range(vcpus)) - {int(pin.get("vcpu", 0)) for pin in pins}):
        tune.insert(number, ET.Element("vcpupin", vcpu=str(number), cpuset=around[number % len(around)]))


def resized(xml: str, size: Size) -> str:
    """Return the same domain with other CPUs and memory; everything else stays as it is."""
    domain = ET.fromstring(xml)
    vcpu = domain.find("vcpu")
    if vcpu is None:
        vcpu = ET.SubElement(domain, "vcpu")
    vcpu.text = str(size.max_vcpus)
    vcpu.set("current", str(size.vcpus))
    _pin_more(domain, size.max_vcpus)
    for tag, value in (("memory", size.max_memory), ("currentMemory", size.memory)):
        found = domain.find(tag)
        if found is None:
            found = ET.SubElement(domain, tag)
        found.text = str(value // KIB)
        found.set("unit", "KiB")
    return ET.tostring(domain, encoding="unicode")


def read_paths(xml: str | ET.Element) -> dict[str, Any]:
    """Return `disk` (the first disk's file), its `cache` mode, `console` (its log), `seed` (a CD-ROM), `type` (kvm or qemu), each None where there is none.

    `disks` is how many it has, and `format` what is in the first one's file.
    """
    domain = parsed(xml)
    disk = domain.find("devices/disk[@device='disk']/source")
    driver = domain.find("devices/disk[@device='disk']/driver")
    log = domain.find("devices/serial/log")
    seed = domain.find("devices/disk[@device='cdrom']/source")
    return {
        "disk": disk.get("file") if disk is not None else None,
        "disks": len(domain.findall("devices/disk[@device='disk']")),
        "format": driver.get("type") if driver is not None else None,
        "cache": driver.get("cache") if driver is not None else None,
        "console": log.get("file") if log is not None else None,
        "seed": seed.get("file") if seed is not None else None,
        "type": domain.get("type", "qemu"),
    }
