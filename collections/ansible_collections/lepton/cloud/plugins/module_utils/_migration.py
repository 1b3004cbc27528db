# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Running nodes that go to another host, through libvirt. PRIVATE to the collection.

The hypervisors do it between themselves (https://libvirt.org/migration.html, "managed peer to peer"): a controller that goes away stops nothing.
That libvirt says it went well is not believed: under heavy writes to memory it said so of a guest that was broken. The guest is asked.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterator

from . import _libvirt
from ._domain_xml import departing, moved, read_kernel, read_paths
from ._libvirt import Host
from ._node import Node, NodeError, check_fits, given
from ._units import format_size

KIB = 1024
TOLD_SECONDS = 0.3  # between two looks at how far a migration is; libvirt has no event for that
ABORT_SECONDS = 60  # that it may take to give up
WATCHED_SECONDS = 6  # one broke some seconds after it had answered (docs/decisions.md)
ANSWER_SECONDS = 30  # after which a guest that says nothing on its new host counts as broken
CONSOLE_BYTES = 65536
TAIL_BYTES = 400
UNCACHED = ("none", "directsync")  # modes of a disk in which no host has what another does not see
BROKEN = re.compile(r"(?:Kernel panic|Oops|BUG: |general protection fault)[^\r\n]{0,120}")  # Linux' own words, at the end of a kernel or of a part of it
Say = Callable[[str], None]


@dataclass(frozen=True)
class Journey:
    """What a node's migration needs. `paths` are those of its files that are called otherwise on the other host."""

    paths: dict[str, str]
    disk: str | None  # what must be made there and copied, as the running domain calls it; None where both hosts see the disk
    disk_size: int = 0
    vouched: bool = False  # that both hosts see the same disk, which libvirt believes of some file systems only


def plan_migration(host: Host, target: Host, node: Node) -> Journey:
    """Return how a node goes to another host; raise NodeError where it cannot. Nothing is changed."""
    name = node.name
    if node.unfinished:
        raise NodeError("%s is half made, or half removed: end that first" % name)
    if node.state != "running":
        raise NodeError("%s is %s, and only what runs is migrated" % (name, node.state))
    if node.devices:
        raise NodeError("%s has devices of its host (%s), which stay there: stop it, and move it without them" % (name, ", ".join(node.devices)))
    if node.cell is not None:
        raise NodeError("%s is bound to NUMA node %d of its host: move it stopped, and it is bound anew there" % (name, node.cell))
    if given(node.boot).numa and target.cells():
        raise NodeError("%s is to be on one NUMA node as a whole, and %s has several: move it stopped, and it is bound there" % (name, target.uri))
    if _host_id(host) == _host_id(target):
        raise NodeError("%s is on that host already: %s is the same hypervisor" % (name, target.uri))
    if target.node(name) is not None:
        raise NodeError("%s has a domain %s already" % (target.uri, name))
    domain = host.domain(name)
    if domain.listAllSnapshots():
        raise NodeError("%s has snapshots, which libvirt cannot migrate: delete them first" % name)
    live = given(node.live)
    check_fits(name, replace(live, memory=live.max_memory) if node.huge else live, None, target.capacity(huge=node.huge))
    xml = domain.XMLDesc()
    _check_cpu(xml, host, target)
    found = read_paths(xml)
    if found["disks"] > 1:
        raise NodeError("%s has %d disks, and only nodes with one are migrated" % (name, found["disks"]))
    paths = {}
    if found["console"]:
        paths[found["console"]] = target.console_path(name)
    kernel = read_kernel(xml)
    if kernel:
        there = target.direct_boot(given(node.boot).image, needed=True) or {}
        if not there:
            raise NodeError("%s boots a kernel of the image %s, and at %s that image has none" % (name, given(node.boot).image, target.uri))
        paths.update({path: there[part] for part, path in kernel.items()})
    if found["disk"] is None:
        return Journey(paths, None)
    with _seen_by(target, host.disk_dir, target.disk_dir) as shared:
        if shared and os.path.dirname(found["disk"]) == host.disk_dir:
            paths[found["disk"]] = os.path.join(target.disk_dir, os.path.basename(found["disk"]))
            return Journey(paths, None, vouched=found["cache"] in UNCACHED)
    capacity, allocated, _physical = domain.blockInfo(found["disk"])
    paths[found["disk"]] = target.disk_path(name)
    if target.files.exists(target.disk_path(name)) and not target.files.is_own(target.disk_path(name)):  # ours is of a migration that was cut short
        raise NodeError("%s exists on the other host although no node uses it: move it away or delete it" % target.disk_path(name))
    free = target.disk_free()
    if free is not None and allocated > free:
        raise NodeError("its disk does not fit at %s: it has %s, and %s are free" % (target.uri, format_size(allocated), format_size(free // KIB * KIB)))
    return Journey(paths, found["disk"], capacity)


def migrate(host: Host, target: Host, node: Node, journey: Journey, *, live: bool, wait_seconds: float, say: Say) -> str:
    """Bring a node to another host, and return how its guest was heard there, "" where it can say nothing.

    Raises NodeError; where that is before the end, the node runs where it was, and nothing of it is left on the other host.
    """
    domain, name = host.domain(node.name), node.name
    heard = _hears(domain)
    printed = target.files.read(target.console_path(name), TAIL_BYTES)
    path, made = target.disk_path(name), False
    try:
        target.files.make_folder(target.disk_dir)
        if journey.disk:
            target.files.make_disk(path, None, journey.disk_size)
            made = True
        _run(domain, target.uri, _parameters(domain, host.seed_path(name), journey), _flags(live=live, journey=journey), wait_seconds, say)
    except (_libvirt.libvirt.libvirtError, OSError, NodeError) as error:
        raise NodeError("%s was not migrated: %s. %s" % (name, error, _after_failure(host, target, name, made=made))) from error
    if journey.disk:
        target.files.delete(path + ".partial", target.disk_dir)  # which said that the disk is ours while it was being made
    _ask(target, name, heard, printed, "%s, as it was when it left, is kept" % journey.disk if journey.disk else "")
    # Only what this journey has made superfluous: of a disk that both hosts see there is no copy.
    for old in (host.seed_path(name), *((journey.disk, host.console_path(name)) if journey.disk else ())):
        host.files.delete(old, host.disk_dir)
    return heard


def _host_id(host: Host) -> str | None:
    return ET.fromstring(host.connection.getCapabilities()).findtext("host/uuid")


def _check_cpu(xml: str, host: Host, target: Host) -> None:
    """Refuse another model of CPU before anything moves. In software emulation every host has the same."""
    libvirt = _libvirt.libvirt
    wanted = cpu_needed(xml, host.connection.getCapabilities())
    if wanted is None:
        return
    try:
        target.connection.compareCPU(wanted, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
    except libvirt.libvirtError as error:
        raise NodeError("the CPU of %s will not do for it: %s" % (target.uri, error)) from error


def cpu_needed(xml: str, capabilities: str) -> str | None:
    """Return the CPU that another host must have for a running domain, as libvirt compares it; None where any will do."""
    domain = ET.fromstring(xml)
    if domain.get("type") != "kvm":
        return None
    cpu = domain.find("cpu")
    if cpu is None or cpu.get("mode") in ("host-passthrough", "maximum"):
        cpu = ET.fromstring(capabilities).find("host/cpu")
    return None if cpu is None else ET.tostring(cpu, encoding="unicode")


@contextmanager
def _seen_by(target: Host, here: str, there: str) -> Iterator[bool]:
    """Tell whether a folder of this host and one of another are the same: what is written here is seen there."""
    os.makedirs(here, mode=0o711, exist_ok=True)
    probe = "lepton-%s.probe" % uuid.uuid4().hex
    with open(os.path.join(here, probe), "x", encoding="ascii"):
        pass
    try:
        yield target.files.exists(os.path.join(there, probe))
    finally:
        os.unlink(os.path.join(here, probe))


def _flags(*, live: bool, journey: Journey) -> int:
    libvirt = _libvirt.libvirt
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    if live:
        flags |= libvirt.VIR_MIGRATE_LIVE
    if journey.disk is not None:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
    if journey.vouched:
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    return int(flags)


def _parameters(domain: Any, seed: str, journey: Journey) -> dict[str, Any]:
    libvirt = _libvirt.libvirt
    full = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE

    def there(xml: str) -> str:
        return moved(departing(xml, seed, whole=journey.disk is not None), journey.paths)

    return {
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: there(domain.XMLDesc(full)),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: there(domain.XMLDesc(full | libvirt.VIR_DOMAIN_XML_INACTIVE)),
    }


def _run(domain: Any, uri: str, parameters: dict[str, Any], flags: int, wait_seconds: float, say: Say) -> None:
    """Have libvirt migrate a domain, tell how far it is, and give up after `wait_seconds`."""
    libvirt = _libvirt.libvirt
    failures: list[Exception] = []

    def work() -> None:
        try:
            domain.migrateToURI3(uri, parameters, flags)
        except libvirt.libvirtError as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    deadline, late = time.monotonic() + wait_seconds, False
    while thread.is_alive():
        thread.join(TOLD_SECONDS)
        if not thread.is_alive():
            break
        try:
            told = domain.jobStats()
            say("%s of %s" % (format_size(told.get("data_processed", 0) // KIB * KIB), format_size(told.get("data_total", 0) // KIB * KIB)))
            if time.monotonic() > deadline and not late:
                late = True
                deadline = time.monotonic() + ABORT_SECONDS
                domain.abortJob()
        except libvirt.libvirtError:
            continue  # it has just ended
        if late and time.monotonic() > deadline:
            raise NodeError("it did not end within %d s, and could not be stopped: see virsh domjobinfo %s" % (wait_seconds, domain.name()))
    if failures and late:
        raise NodeError("it was not done within %d s, and was stopped (a guest that writes memory faster than the network carries it never is)" % wait_seconds)
    if failures:
        raise failures[0]


def _after_failure(host: Host, target: Host, name: str, *, made: bool) -> str:
    """Take back what was made on the other host (`made`: a disk), and say where the node is."""
    libvirt = _libvirt.libvirt
    left = ""
    try:
        there = target.node(name)
        if there is None and made:
            for path in (target.disk_path(name), target.disk_path(name) + ".partial"):
                target.files.delete(path, target.disk_dir)
        if there is not None:
            left = "; the other host has a domain of that name (%s)" % there.state
    except (libvirt.libvirtError, NodeError):
        left = "; the other host does not answer, and may have %s" % (target.disk_path(name) if made else "something of it")
    here = host.node(name)
    if here is not None and here.paused and not left:
        # It was held for the last part of the journey, and the other host does not have it.
        host.domain(name).resume()
        here = host.node(name)
    return "It is %s where it was%s" % ("gone from" if here is None else here.state, left)


def _hears(domain: Any) -> str:
    """Return how a guest can be heard: 'agent', 'balloon' for its memory driver, or "" where it says nothing."""
    libvirt = _libvirt.libvirt
    try:
        domain.getTime()
        return "agent"
    except libvirt.libvirtError:
        return "balloon" if domain.memoryStats().get("last_update") else ""


def _ask(target: Host, name: str, heard: str, printed: bytes, kept: str) -> None:
    """Raise NodeError where a guest does not answer on its new host, or its kernel says that it broke. `printed` is the end of its console before."""
    domain, last = target.domain(name), None
    began = time.monotonic()
    while True:
        said = target.files.read(target.console_path(name), CONSOLE_BYTES)
        broken = BROKEN.search(said[said.rfind(printed) + len(printed) if printed and printed in said else 0 :].decode("utf-8", "replace"))
        if broken:
            break
        alive = heard == ""
        try:
            if heard == "agent":
                domain.getTime()
                alive = True
            elif heard:
                now = domain.memoryStats().get("last_update")
                # The first figure may have come with the guest, the next one only from it.
                alive, last = bool(now and last and now > last), now or last
        except _libvirt.libvirt.libvirtError:
            alive = False
        after = time.monotonic() - began
        if alive and after >= WATCHED_SECONDS:
            return
        if after > ANSWER_SECONDS:
            break
        time.sleep(0.2)  # the guest tells it in its own time, without an event
    why = "its kernel printed: %s" % ascii(broken.group(0))[1:-1] if broken else "its guest did not answer within %d s" % ANSWER_SECONDS
    raise NodeError("%s came to %s, and libvirt says that went well, but %s. Restart it there (node reboot). %s" % (name, target.uri, why, kept))
