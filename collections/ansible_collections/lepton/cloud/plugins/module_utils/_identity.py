# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Whose a domain is, what it is called, and what it was at some moment: adopting, renaming and snapshots. PRIVATE to the collection."""

from __future__ import annotations

import os
from typing import Any, Mapping

from . import _libvirt
from ._backup_job import forget_checkpoints, local_files
from ._changes import Change
from ._domain_xml import OWNER_NS, adopted_mark, moved
from ._libvirt import Host
from ._node import Node, NodeError, check_name

SNAPSHOT = "lepton-"


def adoption(node: Node | None, name: str, labels: Mapping[str, str]) -> list[Change]:
    """Return what adopting a domain changes, nothing where it is ours; raise NodeError where there is none."""
    if node is None:
        raise NodeError("this host has no domain %s" % name)
    if node.boot is not None:
        return []
    return [Change("owner", None, "lepton"), *(Change("label " + label, None, value) for label, value in sorted(labels.items()))]


def adopt(host: Host, name: str, labels: Mapping[str, str]) -> None:
    """Put our mark on a domain; what it is made of stays, and its disks, which are not where nodes' disks are, are never deleted."""
    libvirt, domain = _libvirt.libvirt, host.domain(name)
    if not domain.isPersistent():
        raise NodeError("%s is gone when it stops (libvirt calls that transient): define it first" % name)
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0)
    mark = adopted_mark(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), labels)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark, "lepton", OWNER_NS, flags)


def renaming(host: Host, name: str, new_name: str) -> list[Change]:
    """Return what a new name changes, nothing where that is done; raise NodeError for what cannot be renamed."""
    node, other = host.node(name), host.node(check_name(new_name))
    if node is None:
        if other is not None and other.boot is not None:
            left = other.disk_path == host.disk_path(name)  # cut short after the first step
            return [Change("disk", os.path.basename(host.disk_path(name)), os.path.basename(host.disk_path(new_name)))] if left else []
        raise NodeError("this host has no node %s" % name)
    if node.boot is None:
        raise NodeError("%s is not Lepton's: adopt it first" % name)
    if other is not None:
        raise NodeError("there is a domain %s already" % new_name)
    if node.live is not None or node.saved:
        raise NodeError("%s is %s, and a node can be given another name only while it is stopped" % (name, node.state))
    return [Change("name", name, new_name)]


def rename(host: Host, name: str, new_name: str) -> None:
    """Give a stopped node another name, and its files. Cut short anywhere, the same again goes on."""
    local_files(host)
    if host.node(name) is not None:
        domain = host.domain(name)
        if domain.listAllSnapshots():
            raise NodeError("%s has snapshots, and libvirt gives no other name to what has: remove them first" % name)
        forget_checkpoints(domain)
        domain.rename(new_name)
    pairs = {host.disk_path(name): host.disk_path(new_name), host.console_path(name): host.console_path(new_name)}
    pairs[host.seed_path(name)] = host.seed_path(new_name)
    xml = host.domain(new_name).XMLDesc(_libvirt.libvirt.VIR_DOMAIN_XML_INACTIVE | _libvirt.libvirt.VIR_DOMAIN_XML_SECURE)
    for old, new in pairs.items():
        if os.path.exists(old) and not os.path.exists(new):
            os.link(old, new)
    host.connection.defineXML(moved(xml, pairs))
    for old, new in pairs.items():
        if os.path.exists(old) and os.path.exists(new) and os.path.samefile(old, new):
            os.unlink(old)


def snapshots_of(host: Host, name: str) -> list[dict[str, Any]]:
    """Return the snapshots of a node, the oldest first."""
    found = [snapshot.getName() for snapshot in host.domain(name).listAllSnapshots(_libvirt.libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)]
    return [{"name": known[len(SNAPSHOT) :] if known.startswith(SNAPSHOT) else known, "ours": known.startswith(SNAPSHOT)} for known in found]


def snapshot_changes(host: Host, node: Node | None, name: str, snapshot: str, state: str) -> list[Change]:
    """Return what a snapshot's state changes; raise NodeError for what cannot be had."""
    if node is None or node.boot is None:
        raise NodeError("this host has no node %s" % name)
    check_name(snapshot)
    there = any(each["ours"] and each["name"] == snapshot for each in snapshots_of(host, name))
    if state == "reverted":
        if not there:
            known = ", ".join(each["name"] for each in snapshots_of(host, name)) or "none"
            raise NodeError("%s has no snapshot %s, only %s" % (name, snapshot, known))
        return [Change("state", "as it is", "as at %s" % snapshot)]
    if there == (state == "present"):
        return []
    if state == "present":
        _refuse_what_has_no_snapshot(node)
    return [Change("snapshot", None, snapshot) if state == "present" else Change("snapshot", snapshot, None)]


def _refuse_what_has_no_snapshot(node: Node) -> None:
    if node.disk_path is None:
        raise NodeError("%s has no disk, and its snapshot would have no place" % node.name)
    if node.live is not None and node.devices:
        raise NodeError("%s uses a device of its host, whose state nobody can save: stop it first" % node.name)


def change_snapshot(host: Host, name: str, snapshot: str, state: str) -> None:
    """Take, remove or go back to a snapshot of a node: its disk, and of one that runs its memory too."""
    domain, known = host.domain(name), SNAPSHOT + snapshot
    if state == "present":
        forget_checkpoints(domain)  # libvirt has either of them; the next backup is a full one
        domain.snapshotCreateXML("<domainsnapshot><name>%s</name></domainsnapshot>" % known)
    elif state == "absent":
        domain.snapshotLookupByName(known).delete()
    else:
        domain.revertToSnapshot(domain.snapshotLookupByName(known))
