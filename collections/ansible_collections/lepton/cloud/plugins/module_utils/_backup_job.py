# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Backups of nodes through libvirt, and nodes made of backups. PRIVATE to the collection.

A running node is backed up by QEMU itself, at one moment and while it runs (https://libvirt.org/kbase/live_full_disk_backup.html): all of its
disk, or with a checkpoint what was written since. Its guest agent, where one answers, holds the file systems still for that moment.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from . import _libvirt
from ._backup import DISK, Backup, builds_upon, described, next_id, superfluous
from ._backup_store import Store
from ._domain_xml import render_domain
from ._host_lock import host_lock
from ._libvirt import Host
from ._local_files import LocalFiles
from ._node import Node, NodeError, given
from ._units import format_size

MARK = "lepton-"  # what our checkpoints are called
KIB = 1024
LOCK_SECONDS = 60


def node_of(host: Host, name: str) -> Node:
    """Return a node that can be backed up, or raise NodeError."""
    node = host.node(name)
    if node is None or node.boot is None:
        raise NodeError("this host has no node %s" % name)
    if node.unfinished:
        raise NodeError("%s is half made: nothing of it can be backed up" % name)
    local_files(host)
    return node


def local_files(host: Host) -> LocalFiles:
    """Return the files of a host that is this machine, or raise NodeError."""
    if host.xen:
        raise NodeError("there are no backups on Xen: its disks are raw, and libvirt's driver for it has no backup jobs")
    if not isinstance(host.files, LocalFiles):
        raise NodeError("backups are written and read by the host itself: reach it by ssh, and not by a libvirt URI of another machine")
    return host.files


def planned(host: Host, node: Node, store: Store, *, full: bool) -> Backup | None:
    """Return the backup that the next one would build upon, None where it would be a full one."""
    if node.live is None or node.disk_path is None:
        return None
    domain = host.domain(node.name)
    return builds_upon(store.known(), _checkpoints(domain), uuid=domain.UUIDString(), full=full)


def back_up(host: Host, node: Node, store: Store, *, full: bool, wait_seconds: float, host_name: str = "") -> Backup:
    """Back a node up and return what was made; raise NodeError where that failed, and then nothing of it is left."""
    # Another folder may have one of the same second, whose checkpoint must not be taken for this one's.
    noted = {checkpoint[len(MARK) :] for checkpoint in _checkpoints(host.domain(node.name))}
    identity = next_id(datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ"), {*store.known(), *noted})
    base = planned(host, node, store, full=full)
    try:
        partial = store.begin(identity)
        checkpoint, consistency = None, "stopped"
        if node.disk_path is not None and node.live is None:
            local_files(host).flatten(node.disk_path, os.path.join(partial, DISK), host.disk_format(node.name))
        elif node.disk_path is not None:
            # libvirt has either snapshots of a domain or checkpoints.
            checkpoint = None if host.domain(node.name).listAllSnapshots() else MARK + identity
            base, consistency = _run_job(host, node, base, checkpoint, os.path.join(partial, DISK), wait_seconds)
        uuid = host.domain(node.name).UUIDString()
        made = described(
            identity,
            node.name,
            node.config,
            given(node.boot),
            parent=base.id if base else None,
            checkpoint=checkpoint,
            consistency=consistency,
            uuid=uuid,
            host=host_name,
        )
        done = store.finish(made)
    except (_libvirt.libvirt.libvirtError, OSError, NodeError) as error:
        store.give_up(identity)
        if node.live is not None:
            forget_checkpoints(host.domain(node.name), {MARK + identity})
        raise NodeError("%s was not backed up, and nothing of that is left: %s" % (node.name, error)) from error
    if checkpoint is not None:
        domain = host.domain(node.name)
        forget_checkpoints(domain, {name for name in _checkpoints(domain) if name.startswith(MARK) and name != checkpoint})
    return done


def prune(store: Store, keep: int) -> list[str]:
    """Remove backups that are not needed for the newest `keep`, and return their ids."""
    going = superfluous(store.known(), keep)
    for identity in going:
        store.remove(identity)
    return going


def _checkpoints(domain: Any) -> list[str]:
    return [checkpoint.getName() for checkpoint in domain.listAllCheckpoints()]


def forget_checkpoints(domain: Any, names: set[str] | None = None) -> None:
    """Delete checkpoints, all of them where none are named; where QEMU has lost the bitmap of one, what libvirt remembers of it."""
    for checkpoint in domain.listAllCheckpoints():
        if names is None or checkpoint.getName() in names:
            try:
                checkpoint.delete()
            except _libvirt.libvirt.libvirtError:
                checkpoint.delete(_libvirt.libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _run_job(host: Host, node: Node, base: Backup | None, checkpoint: str | None, target: str, wait_seconds: float) -> tuple[Backup | None, str]:
    """Have QEMU write a backup, and return what it builds upon and how consistent it is."""
    domain = host.domain(node.name)
    disk = _disk_target(domain.XMLDesc(), given(node.disk_path))
    if base is not None:
        try:
            return base, _begin(host, domain, disk, base.checkpoint, checkpoint, target, wait_seconds)
        except (_libvirt.libvirt.libvirtError, NodeError):
            # A crash of QEMU loses what it had noted since the last backup: then a full one is the only one.
            forget_checkpoints(domain)
            if os.path.exists(target):
                os.unlink(target)
    return None, _begin(host, domain, disk, None, checkpoint, target, wait_seconds)


def _begin(host: Host, domain: Any, disk: str, since: str | None, checkpoint: str | None, target: str, wait_seconds: float) -> str:
    """Begin a backup job, wait for its end, and return how consistent its result is."""
    libvirt = _libvirt.libvirt
    backup = ET.Element("domainbackup", mode="push")
    if since is not None:
        ET.SubElement(backup, "incremental").text = since
    part = ET.SubElement(ET.SubElement(backup, "disks"), "disk", name=disk, backup="yes", type="file")
    ET.SubElement(part, "driver", type="qcow2")
    ET.SubElement(part, "target", file=target)
    mark = None
    if checkpoint is not None:
        marking = ET.Element("domaincheckpoint")
        ET.SubElement(marking, "name").text = checkpoint
        ET.SubElement(ET.SubElement(marking, "disks"), "disk", name=disk, checkpoint="bitmap")
        mark = ET.tostring(marking, encoding="unicode")
    held = _hold(domain)
    try:
        domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)  # of an earlier job, which is forgotten when it is read
        domain.backupBegin(ET.tostring(backup, encoding="unicode"), mark)
    finally:
        if held:
            domain.fsThaw()  # the backup is of the moment at which it began
    if not host.wait(domain, lambda: domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, wait_seconds):
        domain.abortJob()
        raise NodeError("the backup was not written within %d s" % wait_seconds)
    ended = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if not ended.get("success", False):
        raise NodeError("QEMU could not write it: %s" % (ended.get("errmsg") or "it does not say why (is the disk full?)"))
    return "filesystem" if held else "crash"


def _hold(domain: Any) -> bool:
    """Have the guest's agent hold its file systems still; return whether one did."""
    try:
        return bool(domain.fsFreeze() >= 0)
    except _libvirt.libvirt.libvirtError:
        return False


def _disk_target(xml: str, path: str) -> str:
    for disk in ET.fromstring(xml).iterfind("devices/disk[@device='disk']"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file") == path:
            return str(target.get("dev"))
    raise NodeError("%s is no disk of the running node" % path)


def room_for(host: Host, chain: list[Backup], name: str) -> None:
    """Raise NodeError where a node of a backup does not fit on this host."""
    host.choose_seat(name, chain[-1].node_size, chain[-1].boot)
    size, capacity = chain[-1].node_size, host.capacity(huge=chain[-1].hugepages)
    if size.vcpus > capacity.vcpus_free or size.memory > capacity.memory_free:
        free = "%d vCPUs and %s" % (capacity.vcpus_free, format_size(capacity.memory_free // KIB * KIB))
        raise NodeError("this host has no room for it: it needs %d vCPUs and %s, and %s are free" % (size.vcpus, format_size(size.memory), free))


def disk_room_for(host: Host, chain: list[Backup]) -> None:
    """Raise NodeError where the disk of a node of a backup does not fit on this host."""
    needed, free_bytes = chain[0].size * 2, host.disk_free()
    if free_bytes is not None and needed > free_bytes:
        raise NodeError("there is no room for its disk: %s are free, and about %s are needed" % (format_size(free_bytes // KIB * KIB), format_size(needed)))


def restore(host: Host, store: Store, chain: list[Backup], name: str, labels: dict[str, str], virtualization: str) -> list[str]:
    """Make a node of a backup, stopped, and return warnings; where that fails nothing of it is left."""
    backup = chain[-1]
    warnings: list[str] = []
    files = local_files(host)
    disk, boot = host.disk_path(name), backup.boot
    direct_boot = host.direct_boot(boot.image, needed=not backup.sha256)
    if os.path.exists(disk):
        raise NodeError("%s exists although no node uses it: move it away or delete it" % disk)
    kind = host.kind(virtualization, warnings)
    files.make_folder(host.disk_dir)
    partial = disk + ".partial"
    try:
        if backup.sha256:
            files.join([store.path(item.id, DISK) for item in chain], partial)
        # While its disk was written the host's last room may have been given to another node.
        with host_lock(host.lock_dir, "host", LOCK_SECONDS):
            room_for(host, chain, name)
            if backup.sha256:
                os.rename(partial, disk)
            made = replace(boot, labels=tuple(sorted({**dict(boot.labels), **labels}.items())), mac=_address(host, backup, name, warnings))
            xml = render_domain(
                name, backup.node_size, made, virtualization=kind, disk_path=disk, console_path=host.console_path(name), direct_boot=direct_boot,
                has_disk=bool(backup.sha256), seat=host.choose_seat(name, backup.node_size, boot, kind),
            )  # fmt: skip
            host.connection.defineXML(xml)
        host.finish(name)
    except (_libvirt.libvirt.libvirtError, OSError, NodeError) as error:
        for path in (partial, disk):
            if os.path.exists(path):
                os.unlink(path)
        if host.node(name) is not None:
            host.domain(name).undefine()
        raise NodeError("%s was not restored, and nothing of it is left: %s" % (name, error)) from error
    return warnings


def _address(host: Host, backup: Backup, name: str, warnings: list[str]) -> str:
    """Return the hardware address of a node that is made of a backup, "" for a new one: two of one address cannot run beside each other."""
    if not backup.mac or name != backup.node:
        return ""
    other = next((node.name for node in host.nodes() if node.boot is not None and node.boot.mac == backup.mac), None)
    if other is not None:
        warnings.append("%s has the hardware address that %s had (%s), so a new one is made up" % (other, name, backup.mac))
    return "" if other is not None else backup.mac
