# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a backup of a node is, which of them belong together, and which may go: pure. PRIVATE to the collection.

A backup is a folder C(DIRECTORY/NODE/ID) with C(manifest.json) and, of a node with a disk, C(disk.qcow2): all of it, or what has changed since
the backup before, its parent. A folder whose name begins with a dot is one that was cut short.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Iterable, Mapping, Sequence

from ._node import Boot, NodeError, Size, check_name

VERSION = 1
MANIFEST, DISK = "manifest.json", "disk.qcow2"
ID = re.compile(r"\d{8}T\d{6}Z(?:-\d{1,3})?", re.ASCII)
RESTORED = "cloud.lepton.restored"  # the label of a node that was made of a backup, and of which
LONGEST = 14  # backups that build upon one full one: each is one more file that must not be lost


@dataclass(frozen=True)
class Backup:
    """One backup, as its manifest says. `sha256` and `size` are those of its disk's file, "" and 0 of a node without a disk.

    `consistency` is C(filesystem) where the guest's agent held its file systems still, C(stopped), or C(crash): as after a power failure.
    """

    id: str
    node: str
    parent: str | None
    checkpoint: str | None
    consistency: str
    size_vcpus: int
    size_max_vcpus: int
    size_memory: int
    size_max_memory: int
    image: str
    disk: int | None
    network: str
    forward_ports: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    uuid: str
    sha256: str = ""
    size: int = 0
    devices: tuple[str, ...] = ()
    cpuset: str = ""
    hugepages: bool = False
    numa: bool = False
    mac: str = ""
    host: str = ""  # where it ran, as the inventory calls that host; "" where nobody said
    copied: bool = False  # whether it came from another folder

    @property
    def node_size(self) -> Size:
        # Of huge pages a node takes all that it can have when it starts.
        return Size(self.size_vcpus, self.size_memory, self.size_max_vcpus, self.size_memory if self.hugepages else self.size_max_memory)

    @property
    def boot(self) -> Boot:
        made = (self.image, self.disk, self.network, self.forward_ports, self.labels)
        return Boot(*made, self.devices, self.cpuset, self.hugepages, self.numa, self.mac)


NUMBERS = ("size_vcpus", "size_max_vcpus", "size_memory", "size_max_memory", "size")
WORDS = ("id", "node", "consistency", "image", "network", "uuid", "sha256", "cpuset", "mac", "host")
MAYBE_WORDS = ("parent", "checkpoint")
KINDS: Mapping[str, Any] = {
    **dict.fromkeys(NUMBERS, int), **dict.fromkeys(WORDS, str), **dict.fromkeys(MAYBE_WORDS, (str, type(None))), "disk": (int, type(None)),
    **dict.fromkeys(("hugepages", "numa", "copied"), bool),
}  # fmt: skip


def described(identity: str, node: str, size: Size, boot: Boot, **rest: Any) -> Backup:
    """Return the backup of a node of this size and make."""
    return Backup(
        id=identity,
        node=node,
        size_vcpus=size.vcpus,
        size_max_vcpus=size.max_vcpus,
        size_memory=size.memory,
        size_max_memory=size.max_memory,
        image=boot.image,
        disk=boot.disk,
        network=boot.network,
        forward_ports=boot.forward_ports,
        labels=boot.labels,
        devices=boot.devices,
        cpuset=boot.cpuset,
        hugepages=boot.hugepages,
        numa=boot.numa,
        mac=boot.mac,
        **rest,
    )


def written(backup: Backup) -> str:
    """Return a manifest."""
    return json.dumps({"version": VERSION, **asdict(backup)}, indent=2, sort_keys=True) + "\n"


def read(text: str, where: str) -> Backup:
    """Return what a manifest says; raise NodeError for one that is none."""
    try:
        raw = json.loads(text)
        if raw.pop("version") != VERSION:
            raise ValueError("it is of another version")
        raw["forward_ports"] = tuple(map(str, raw["forward_ports"]))
        raw["devices"] = tuple(map(str, raw.get("devices", ())))
        raw["labels"] = tuple((str(name), str(value)) for name, value in raw["labels"])
        found = Backup(**raw)
        wrong = next((name for name, kind in KINDS.items() if not isinstance(getattr(found, name), kind)), None)
        if wrong is not None:
            raise ValueError("its %s is none" % wrong)
        check_name(found.node)
        if not ID.fullmatch(found.id) or not (found.parent is None or ID.fullmatch(found.parent)):
            raise ValueError("its id is none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NodeError("%s is no manifest of a backup: %s" % (where, error)) from error
    return found


def chain_of(identity: str, known: Mapping[str, Backup]) -> list[Backup]:
    """Return a backup with all that it builds upon, the full one first; raise NodeError where one of them is missing."""
    chain: list[Backup] = []
    wanted: str | None = identity
    while wanted is not None:
        if wanted not in known:
            child = ", on which %s builds, " % chain[0].id if chain else " "
            raise NodeError("there is no backup %s%sonly %s" % (ascii(wanted[:40])[1:-1], child, ", ".join(sorted(known)) or "none"))
        if any(item.id == wanted for item in chain):
            raise NodeError("backup %s builds upon itself" % wanted)
        chain.insert(0, known[wanted])
        wanted = known[wanted].parent
    return chain


def builds_upon(known: Mapping[str, Backup], checkpoints: Sequence[str], *, uuid: str, full: bool) -> Backup | None:
    """Return the backup that the next one of a running node can build upon, None where it has to be a full one."""
    newest = known[max(known)] if known else None
    if newest is None or full or newest.uuid != uuid or newest.checkpoint not in checkpoints:
        return None
    try:
        return newest if len(chain_of(newest.id, known)) < LONGEST else None
    except NodeError:
        return None


def superfluous(known: Mapping[str, Backup], keep: int) -> list[str]:
    """Return the backups that may go so that the newest `keep` can still be restored, the youngest first: nothing is left without its parent."""
    kept: set[str] = set()
    for identity in sorted(known)[-keep:]:
        try:
            kept.update(item.id for item in chain_of(identity, known))
        except NodeError:
            kept.add(identity)  # broken, and a person's to look at
    return sorted(set(known) - kept, reverse=True)


def lacking(known: Mapping[str, Backup], there: Sequence[str], keep: int) -> list[str]:
    """Return what another folder lacks, the oldest first: of the newest `keep` of both what is here, and what these build upon."""
    wanted: set[str] = set()
    for identity in sorted({*known, *there})[-keep:]:
        if identity in known:
            try:
                wanted.update(item.id for item in chain_of(identity, known))
            except NodeError:
                continue  # broken, and nobody's to restore
    return sorted(wanted - set(there))


def next_id(moment: str, taken: Iterable[str]) -> str:
    """Return an id for a backup of a moment such as 20261128T021500Z, another than those that are taken."""
    names = set(taken)
    return next(name for number in range(1000) if (name := moment if not number else "%s-%d" % (moment, number)) not in names)
