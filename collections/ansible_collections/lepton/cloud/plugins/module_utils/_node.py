# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a node is, what is wanted of it, and the plan between the two: pure, no effects.

PRIVATE to the collection and to the Lepton bot. Sizes are bytes throughout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple, Sequence, TypeVar

from ._changes import Change, diff_of
from ._units import format_size

Item = TypeVar("Item")
NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)
MIB = 1024 * 1024
NETWORK = re.compile(r"user|none|(?:network|bridge):[A-Za-z0-9_.-]{1,64}", re.ASCII)
FORWARD = re.compile(r"(?:(\d{1,3}(?:\.\d{1,3}){3}):)?(\d{1,5}):(\d{1,5})", re.ASCII)
LABEL = re.compile(r"[a-z0-9][a-z0-9._/-]{0,100}", re.ASCII)
MAC = re.compile(r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}", re.ASCII)  # of one machine, and not of a group
LOOPBACK = "127.0.0.1"
HEADROOM = 2  # a new node can grow to this many times its size without a restart
MEMORY_MARGIN = 0.1  # of what the guest uses, left to it when memory shrinks


class NodeError(ValueError):
    """Something asked for that cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class Size:
    """CPUs and memory, and how far both can grow while the node runs."""

    vcpus: int
    memory: int
    max_vcpus: int
    max_memory: int


@dataclass(frozen=True)
class Boot:
    """What a node was made from; fixed for its life."""

    image: str
    disk: int | None
    network: str
    forward_ports: tuple[str, ...]
    labels: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = ()  # of the host's, as they were asked for
    cpuset: str = ""  # the host's CPUs that its vCPUs are pinned to
    hugepages: bool = False
    numa: bool = False  # whether all of it is of one NUMA node of its host
    mac: str = ""  # of its network interface; "" before it has one, and on network user or none


@dataclass(frozen=True)
class Node:
    """A domain as the hypervisor shows it.

    `live` is None while it is stopped. `memory_used` is what the guest says it uses, None where it does not say.
    `boot` is None for a domain without our ownership mark. `unfinished` is 'creating' or 'releasing' where one of these
    was cut short. `disk_path` is the file of its disk, None without one.
    """

    name: str
    config: Size
    live: Size | None = None
    boot: Boot | None = None
    memory_used: int | None = None
    virtualization: str = "qemu"
    unfinished: str = ""
    disk_path: str | None = None
    disk_missing: bool = False
    paused: bool = False
    saved: bool = False
    devices: tuple[str, ...] = ()  # addresses of the host's PCI devices that it has
    seeded: bool = False  # whether there is what it was told at its first boot
    cell: int | None = None  # the NUMA node of its host that it is bound to
    huge: bool = False  # whether its memory is of the host's huge pages

    @property
    def state(self) -> str:
        if self.live is None:
            return "saved" if self.saved else "stopped"
        return "paused" if self.paused else "running"


@dataclass(frozen=True)
class Capacity:
    """Of one host: what nodes may have in all, and what they have now (running or not)."""

    vcpus: int
    memory: int
    vcpus_used: int
    memory_used: int

    @property
    def vcpus_free(self) -> int:
        return max(0, self.vcpus - self.vcpus_used)

    @property
    def memory_free(self) -> int:
        return max(0, self.memory - self.memory_used)


@dataclass(frozen=True)
class Wish:
    """What is wanted. None means: as it is, or the default for a new node. `update` allows changing an existing node."""

    name: str
    state: str = "present"
    image: str | None = None
    vcpus: int | None = None
    memory: int | None = None
    max_vcpus: int | None = None
    max_memory: int | None = None
    disk: int | None = None
    network: str | None = None
    forward_ports: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str], ...] | None = None
    devices: tuple[str, ...] | None = None
    cpuset: str | None = None
    hugepages: bool | None = None
    numa: bool | None = None
    mac: str | None = None
    update: bool = True
    fetched: bool = False  # whether its image has to come from elsewhere first
    told: bool = False  # whether it is told something at its first boot


class Step(NamedTuple):
    """One thing to do. `size` goes with define, resize_live and resize_config."""

    action: str
    size: Size | None = None
    boot: Boot | None = None


@dataclass(frozen=True)
class Plan:
    """Steps in order, the fields they change, and what a restart is still needed for."""

    steps: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()
    restart_reasons: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    def diff(self) -> dict[str, dict[str, object]]:
        return diff_of(self.changes)


def used_by(nodes: Sequence[Node]) -> tuple[int, int]:
    """Return how many vCPUs and how much memory nodes have, running or not."""
    vcpus = memory = 0
    for node in nodes:
        # What a guest has not given back is not free, whatever its next start will bring.
        live = node.live or node.config
        vcpus += max(node.config.vcpus, live.vcpus)
        # Of huge pages QEMU takes all that a node can have, when it starts.
        memory += max(node.config.max_memory, live.max_memory) if node.huge else max(node.config.memory, live.memory)
    return vcpus, memory


def given(value: Item | None) -> Item:
    """Return what a value of its kind always has here; None would be an error of this code, not of its user."""
    if value is None:
        raise AssertionError("a plan lacks what its steps need")
    return value


def check_name(name: str) -> str:
    """Return the name if a node can bear it (a DNS label with dots, at most 63 characters), else raise NodeError."""
    if not NAME.fullmatch(name):
        raise NodeError(
            "%s is not a node name: expected up to 63 lower-case letters, digits, '-' or '.', starting and ending with a letter or digit"
            % ascii(name[:40] + ("…" if len(name) > 40 else ""))
        )
    return name


def check_boot(boot: Boot) -> Boot:
    """Return `boot` if a node can be made so, else raise NodeError."""
    if not NETWORK.fullmatch(boot.network):
        raise NodeError("%s is not a network: expected user, none, network:NAME or bridge:NAME" % ascii(boot.network[:80]))
    for pair in boot.forward_ports:
        if not FORWARD.fullmatch(pair) or not all(0 < int(port) < 65536 for port in pair.split(":")[-2:]):
            raise NodeError("%s is not a port forward: expected [ADDRESS:]HOST:GUEST, such as 8080:80" % ascii(pair[:80]))
    for name, _value in boot.labels:
        if not LABEL.fullmatch(name):
            raise NodeError("labels: %s is not a label: expected lower-case letters, digits and '.'" % ascii(name[:60]))
    if boot.mac and (not MAC.fullmatch(boot.mac) or boot.network in ("user", "none")):
        raise NodeError("mac: %s: expected one such as 52:54:00:4b:1f:07, for a node on network:NAME or bridge:NAME" % ascii(boot.mac[:40]))
    if boot.forward_ports and boot.network != "user":
        raise NodeError("port forwards exist only on network user, not on %s" % boot.network)
    return boot


def forwarded(forward_ports: Sequence[str], inside: int) -> tuple[str, int] | None:
    """Return where on the host a port of the guest is reached: (address, port)."""
    for pair in forward_ports:
        found = FORWARD.fullmatch(pair)
        if found and int(found.group(3)) == inside:
            address = found.group(1) or LOOPBACK
            return (LOOPBACK if address == "0.0.0.0" else address), int(found.group(2))
    return None


def grows(wish: Wish, node: Node | None) -> bool:
    """Return whether a wish needs more of a host, so that the host's capacity must be known to plan it."""
    if node is None:
        return wish.state not in ("absent", "abandoned")
    return any((getattr(wish, field) or 0) > getattr(node.config, field) for field in ("vcpus", "memory", "max_vcpus", "max_memory"))


def make_plan(wish: Wish, node: Node | None, capacity: Capacity | None) -> Plan:
    """Return what must be done to get from `node` (None: there is none) to `wish` on a host with `capacity`, needed only for what grows.

    Raises NodeError when the wish cannot be met; then nothing has been touched.
    """
    check_name(wish.name)
    if wish.state == "abandoned" and (node is None or node.unfinished != "creating"):
        return Plan()
    if node is not None and node.boot is None:
        raise NodeError("%s exists on this host but was not made by Lepton, so it is left alone: choose another name" % wish.name)
    if wish.state in ("absent", "abandoned"):
        return Plan() if node is None else _removal(node)
    if node is None:
        return _creation(wish, given(capacity))
    if node.unfinished == "releasing":
        raise NodeError("the release of %s was cut short: release it again" % wish.name)
    if node.disk_missing and not node.unfinished and wish.state in ("running", "restarted"):
        raise NodeError("the disk of %s is not where it was: %s. Bring it back first" % (wish.name, node.disk_path))
    _refuse_other_boot(wish, node)
    if not wish.update:
        _refuse_other_size(wish, node)
        return _power(wish, node, Plan())
    return _power(wish, node, _resize(wish, node, capacity))


def _removal(node: Node) -> Plan:
    # The mark first: cut short anywhere, the node says what it is and can only be released again.
    marks = [] if node.unfinished == "creating" else [Step("mark_releasing")]  # that mark says whose the disk is
    steps = marks + ([Step("destroy")] if node.live else []) + [Step("delete_disk"), Step("undefine")]
    changes = [
        Change("state", node.state, "absent"),
        Change("vcpus", node.config.vcpus, None),
        Change("memory", format_size(node.config.memory), None),
    ]
    if node.disk_path and not node.disk_missing:
        changes.append(Change("disk", node.disk_path, None))
    return Plan(tuple(steps), tuple(changes))


def _creation(wish: Wish, capacity: Capacity) -> Plan:
    missing = [field for field in ("image", "vcpus", "memory") if getattr(wish, field) is None]
    if missing:
        raise NodeError("there is no node %s, and to create it %s is needed" % (wish.name, " and ".join(missing)))
    image, vcpus, memory = given(wish.image), given(wish.vcpus), given(wish.memory)
    fixed = bool(wish.devices or wish.hugepages)
    if fixed and wish.max_memory not in (None, memory):
        raise NodeError("max_memory: with devices or huge pages all of a node's memory is its own from the start, so it must be its memory")
    size = Size(
        vcpus=vcpus,
        memory=memory,
        max_vcpus=max(vcpus, min(vcpus * HEADROOM, capacity.vcpus)) if wish.max_vcpus is None else wish.max_vcpus,
        max_memory=max(memory, 0 if fixed else min(memory * HEADROOM, capacity.memory // MIB * MIB)) if wish.max_memory is None else wish.max_memory,
    )
    _check_size(size)
    check_fits(wish.name, size, None, capacity)
    boot = check_boot(Boot(image, wish.disk, wish.network or "user", wish.forward_ports or (), wish.labels or (), mac=wish.mac or ""))
    boot = replace(boot, devices=wish.devices or (), cpuset=wish.cpuset or "", hugepages=bool(wish.hugepages), numa=bool(wish.numa))
    if boot.numa and boot.cpuset:
        raise NodeError("numa: a node of one NUMA node of its host is pinned to that one's CPUs: give either numa or cpuset")
    steps = [Step("define", size, boot), Step("create_disk", size, boot), *([Step("write_seed")] if wish.told else []), Step("finish")]
    if wish.fetched:
        steps.insert(0, Step("fetch_image", size, boot))
    started = wish.state in ("running", "restarted")
    if started:
        steps.append(Step("start"))
    changes = [
        Change("state", "absent", "running" if started else "stopped"),
        Change("vcpus", None, size.vcpus),
        Change("memory", None, format_size(size.memory)),
        Change("max_vcpus", None, size.max_vcpus),
        Change("max_memory", None, format_size(size.max_memory)),
        Change("image", None, boot.image),
        Change("network", None, boot.network),
    ]
    if boot.disk:
        changes.append(Change("disk", None, format_size(boot.disk)))
    for field in ("devices", "cpuset", "hugepages", "numa"):
        if getattr(boot, field):
            value = getattr(boot, field)
            changes.append(Change(field, None, list(value) if isinstance(value, tuple) else value))
    if wish.fetched:
        changes.append(Change("image_file", "absent", "fetched"))
    return Plan(tuple(steps), tuple(changes))


def _check_size(size: Size) -> None:
    if size.vcpus < 1:
        raise NodeError("vcpus must be at least 1, not %d" % size.vcpus)
    if size.memory < 16 * MIB or size.memory % MIB:
        raise NodeError("memory must be whole MiB and at least 16MiB, not %s" % format_size(size.memory))
    if size.max_vcpus < size.vcpus:
        raise NodeError("max_vcpus %d is below vcpus %d" % (size.max_vcpus, size.vcpus))
    if size.max_memory < size.memory:
        raise NodeError("max_memory %s is below memory %s" % (format_size(size.max_memory), format_size(size.memory)))


def check_fits(name: str, size: Size, now: Size | None, capacity: Capacity) -> None:
    """Raise NodeError where a host has no room for a node that has `now` (None: nothing) to have `size`."""
    more_vcpus = size.vcpus - (now.vcpus if now else 0)
    more_memory = size.memory - (now.memory if now else 0)
    if more_vcpus > 0 and more_vcpus > capacity.vcpus_free:
        raise NodeError(
            "%s with %d vCPUs does not fit on this host: %d of %d allowed vCPUs are free"
            % (name, size.vcpus, capacity.vcpus_free + (now.vcpus if now else 0), capacity.vcpus)
        )
    if more_memory > 0 and more_memory > capacity.memory_free:
        raise NodeError(
            "%s with %s does not fit on this host: %s of %s are free, and memory is not overcommitted"
            % (
                name,
                format_size(size.memory),
                format_size((capacity.memory_free + (now.memory if now else 0)) // MIB * MIB),
                format_size(capacity.memory // MIB * MIB),
            )
        )
    if size.max_vcpus > max(capacity.vcpus, now.max_vcpus if now else 0):
        raise NodeError("max_vcpus %d is above the %d vCPUs that this host may give in all" % (size.max_vcpus, capacity.vcpus))
    if size.max_memory > max(capacity.memory, now.max_memory if now else 0):
        raise NodeError(
            "max_memory %s is above the %s that this host may give in all" % (format_size(size.max_memory), format_size(capacity.memory // MIB * MIB))
        )


def _refuse_other_boot(wish: Wish, node: Node) -> None:
    boot = given(node.boot)
    for field in ("image", "disk", "network", "forward_ports", "labels", "devices", "cpuset", "hugepages", "numa", "mac"):
        wanted, found = getattr(wish, field), getattr(boot, field)
        if wanted is not None and wanted != found:
            raise NodeError(
                "%s exists with %s %s, not %s, and that cannot be changed: release it first, or choose another name"
                % (wish.name, field, _shown(found), _shown(wanted))
            )


def _refuse_other_size(wish: Wish, node: Node) -> None:
    for field in ("vcpus", "memory", "max_vcpus", "max_memory"):
        wanted, found = getattr(wish, field), getattr(node.config, field)
        if wanted is not None and wanted != found:
            shown = format_size if "memory" in field else str
            raise NodeError("%s exists with %s %s, not %s: use 'node resize' to change it" % (wish.name, field, shown(found), shown(wanted)))


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return format_size(value)
    return ascii(value if not isinstance(value, tuple) else list(value))


def _resize(wish: Wish, node: Node, capacity: Capacity | None) -> Plan:
    config = node.config
    vcpus = config.vcpus if wish.vcpus is None else wish.vcpus
    memory = config.memory if wish.memory is None else wish.memory
    target = Size(
        vcpus=vcpus,
        memory=memory,
        max_vcpus=max(config.max_vcpus, vcpus) if wish.max_vcpus is None else wish.max_vcpus,
        max_memory=_most_memory(wish, node, memory),
    )
    _check_size(target)
    if node.huge and target.max_memory != memory and (wish.memory, wish.max_memory) != (None, None):
        raise NodeError("max_memory: with huge pages all of a node's memory is its own from the start, so it must be its memory")
    if grows(wish, node):
        check_fits(wish.name, target, config, given(capacity))
    steps, changes, reasons = [], [], []
    live_target = node.live
    if node.saved and target != config:
        raise NodeError("%s is suspended to disk, with its size in the saved state: start it first" % wish.name)
    if node.live is not None and wish.state not in ("restarted", "stopped"):
        live_target, reasons = _reachable_live(wish, target, node)
    if live_target != node.live:
        steps.append(Step("resize_live", live_target))
    if target != config:
        steps.append(Step("resize_config", target))
    for field in ("vcpus", "memory", "max_vcpus", "max_memory"):
        shown = format_size if "memory" in field else int
        now = getattr(node.live or config, field)
        wanted = getattr(target, field)
        if getattr(wish, field) is None and wanted == getattr(config, field):
            continue
        if now == wanted == getattr(config, field):
            continue
        # A persistent value that is already right is no change, but it still waits for the restart.
        if now == wanted:
            changes.append(Change(field, shown(getattr(config, field)), shown(wanted), "at the next start"))
            continue
        effective = "now" if live_target is None or getattr(live_target, field) == wanted else "at the next start"
        if effective == "now" or getattr(config, field) != wanted:
            changes.append(Change(field, shown(now), shown(wanted), effective))
    return Plan(tuple(steps), tuple(changes), tuple(reasons))


def _most_memory(wish: Wish, node: Node, memory: int) -> int:
    """Return how far memory can grow: of huge pages a node has all from its start, so that is no more than it is asked to have."""
    if wish.max_memory is not None:
        return wish.max_memory
    return memory if node.huge and wish.memory is not None else max(node.config.max_memory, memory)


def _reachable_live(wish: Wish, target: Size, node: Node) -> tuple[Size, list[str]]:
    """Return how near the running node can come to `target`, and why it cannot come nearer."""
    live = given(node.live)
    reached, reasons = live, []
    if wish.vcpus is None:
        pass
    elif target.vcpus > live.max_vcpus:
        reasons.append("%d vCPUs are above the %d reserved when the node was started" % (target.vcpus, live.max_vcpus))
    elif target.vcpus < live.vcpus and node.virtualization != "xen":
        # Unplugging reports success late or never, and plugging again after it killed QEMU (docs/decisions.md).
        reasons.append("taking vCPUs from a running node (%d to %d) is not reliable" % (live.vcpus, target.vcpus))
    else:
        reached = replace(reached, vcpus=target.vcpus)
    if wish.memory is None or (target.memory == node.config.memory and node.memory_used is None):
        pass  # nothing is asked, or the balloon is not there (yet) and the next start is right already
    elif target.memory > live.max_memory:
        reasons.append("%s is above the %s reserved when the node was started" % (format_size(target.memory), format_size(live.max_memory)))
    elif target.memory < live.memory and node.memory_used is None:
        reasons.append("the guest does not say how much memory it uses, so none is taken from it while it runs")
    else:
        if node.memory_used is not None and target.memory < live.memory:
            floor = int(node.memory_used * (1 + MEMORY_MARGIN))
            if target.memory < floor:
                raise NodeError(
                    "%s uses %s now, so memory cannot go below %s: asked for %s"
                    % (node.name, format_size(node.memory_used // MIB * MIB), format_size(-(-floor // MIB) * MIB), format_size(target.memory))
                )
        reached = replace(reached, memory=target.memory)
    if any(getattr(wish, field) not in (None, getattr(live, field)) for field in ("max_vcpus", "max_memory")):
        reasons.append("headroom can only be reserved at a start")
    return reached, reasons


def _power(wish: Wish, node: Node, resize: Plan) -> Plan:
    steps, changes, reasons = list(resize.steps), list(resize.changes), resize.restart_reasons
    if node.unfinished and node.seeded and not wish.told:
        raise NodeError("the creation of %s was cut short, perhaps before it was told what to be: create it again, or node abandon" % wish.name)
    if node.unfinished:
        steps = [Step("create_disk", node.config, node.boot), *([Step("write_seed")] if wish.told else []), Step("finish"), *steps]
        changes.append(Change("disk", None, node.disk_path))
    final = next((given(step.size) for step in steps if step.action == "resize_config"), node.config)
    if wish.state == "restarted" and node.live:
        steps += [Step("shutdown"), Step("start")]
        changes = [*_at_the_start(node.live, final), Change("state", node.state, "restarted")]
        reasons = ()
    elif wish.state in ("running", "restarted") and not node.live:
        steps.append(Step("start"))
        changes.append(Change("state", node.state, "running"))
    elif wish.state == "running" and node.paused:
        steps.append(Step("resume"))
        changes.append(Change("state", "paused", "running"))
    elif wish.state == "stopped" and node.live:
        steps.append(Step("shutdown"))
        changes = [*_at_the_start(node.live, final), Change("state", node.state, "stopped")]
        reasons = ()
    return Plan(tuple(steps), tuple(changes), reasons)


def _at_the_start(live: Size, final: Size) -> list[Change]:
    """Return what a restart brings into effect, changes that were waiting for it included."""
    shown = {"memory": format_size, "max_memory": format_size}
    return [
        Change(field, shown.get(field, int)(getattr(live, field)), shown.get(field, int)(getattr(final, field)))
        for field in ("vcpus", "memory", "max_vcpus", "max_memory")
        if getattr(live, field) != getattr(final, field)
    ]
