# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""libvirt's networks: what is wanted, what is there, and the plan between the two. Pure. PRIVATE to the collection.

Trees, never text: https://libvirt.org/formatnetwork.html
"""

from __future__ import annotations

import ipaddress
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from typing import Iterable

from ._changes import Change
from ._node import NodeError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
BRIDGE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)
SMALLEST = 8  # addresses: the host's own, the two that no machine has, and some to give
MODES = ("nat", "isolated", "bridge")


@dataclass(frozen=True)
class Network:
    """`address` is the host's own in it with its prefix, such as 192.168.150.1/24; leases are of the rest. `bridge` is one that the host has."""

    mode: str
    address: str | None = None
    bridge: str | None = None


@dataclass(frozen=True)
class Found:
    """A network as libvirt has it."""

    network: Network
    active: bool
    autostart: bool


def check_network(name: str, network: Network, taken: Iterable[tuple[str, str]]) -> Network:
    """Return what is wanted if libvirt can have it, else raise NodeError. `taken` has the other networks' names and addresses."""
    if not NAME.fullmatch(name):
        raise NodeError("%s is not a network's name: expected up to 64 letters, digits, '-', '_' or '.'" % ascii(name[:80]))
    if network.mode == "bridge":
        if network.bridge is None or not BRIDGE.fullmatch(network.bridge) or network.address is not None:
            raise NodeError("%s: a network of mode bridge needs the name of a bridge that the host has, and no address" % name)
        return network
    if network.bridge is not None or network.address is None:
        raise NodeError("%s: a network of mode %s needs the host's address in it, such as 192.168.150.1/24, and no bridge" % (name, network.mode))
    try:
        own = ipaddress.IPv4Interface(network.address)
    except ValueError as error:
        raise NodeError("%s: address: expected one of IPv4 with its prefix, such as 192.168.150.1/24: %s" % (name, error)) from error
    if own.network.num_addresses < SMALLEST or own.ip in (own.network.network_address, own.network.broadcast_address):
        raise NodeError("%s: %s leaves no addresses to give: expected a host's own address in a network of /29 or larger" % (name, network.address))
    for other, address in taken:
        if own.network.overlaps(ipaddress.IPv4Interface(address).network):
            raise NodeError("%s: %s overlaps with %s of network %s" % (name, network.address, address, other))
    return Network(network.mode, str(own))


def plan_network(name: str, wanted: Network, found: Found | None) -> list[Change]:
    """Return what must be done; raise NodeError where another network has that name, since nodes may hang on it."""
    if found is None:
        return [Change("state", "absent", "active"), *(Change(field, None, value) for field, value in asdict(wanted).items() if value is not None)]
    for field, value in asdict(wanted).items():
        there = getattr(found.network, field)
        if value != there:
            raise NodeError("network %s exists with %s %s, not %s: nodes may use it, so it is left alone. Choose another name" % (name, field, there, value))
    changes = [] if found.active else [Change("state", "inactive", "active")]
    return changes + ([] if found.autostart else [Change("autostart", False, True)])


def render_network(name: str, network: Network) -> str:
    """Return libvirt's description of a new network."""
    root = ET.Element("network")
    ET.SubElement(root, "name").text = name
    if network.mode != "isolated":
        ET.SubElement(root, "forward", mode=network.mode)
    if network.address is None:
        ET.SubElement(root, "bridge", name=network.bridge or "")
        return ET.tostring(root, encoding="unicode")
    own = ipaddress.IPv4Interface(network.address)
    ip = ET.SubElement(root, "ip", address=str(own.ip), netmask=str(own.netmask))
    # The larger side of what is left of and right of the host's own address.
    first, last = own.network.network_address + 1, own.network.broadcast_address - 1
    start, end = (own.ip + 1, last) if int(last) - int(own.ip) >= int(own.ip) - int(first) else (first, own.ip - 1)
    ET.SubElement(ET.SubElement(ip, "dhcp"), "range", start=str(start), end=str(end))
    return ET.tostring(root, encoding="unicode")


def read_network(xml: str) -> Network:
    """Return what a network is, by libvirt's own description."""
    root = ET.fromstring(xml)
    forward, bridge = root.find("forward"), root.find("bridge")
    mode = "isolated" if forward is None else forward.get("mode", "nat")
    if mode == "bridge":
        return Network(mode, None, None if bridge is None else bridge.get("name"))
    for ip in root.iterfind("ip"):
        if ip.get("family", "ipv4") == "ipv4":
            return Network(mode, str(ipaddress.IPv4Interface("%s/%s" % (ip.get("address"), ip.get("prefix") or ip.get("netmask")))))
    return Network(mode)
