# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Which host has a node, which gets a new one, and where an image goes: pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

from collections import Counter
from typing import Any, Collection, Mapping, NamedTuple

from ._fleet import MIB, WHOLE, Fleet, Free, Host, Request, lacking, nearest_miss
from ._packing import POLICIES, Mix
from ._repacking import Occupancy, Placed
from ._units import format_size, parse_size

GIB = 1024 * MIB
SERVICE_LABEL = "cloud.lepton.service"


class PlacementError(ValueError):
    """There is no such host; the text says what each host answered."""


def locate(name: str, answers: Mapping[str, Mapping[str, Any]], kind: str = "node", host: str | None = None, *, sole: bool = False) -> str:
    """Return the one host that has the node, the container or the deployment; with `host`, that one, if it does.

    With `sole` it is an error that another host does not answer, unless `host` is given: that other one may have it too.

    `answers` holds what each host answered, with `nodes`, `containers` or `deployments` of its own making; without them, it did not answer.
    """
    if host is not None:
        answers = {_named(host, answers): answers[host]}
    silent = _silent(answers, kind)
    found = _having(name, answers, kind)
    if len(found) > 1:
        hint = "node release %s host=HOST removes one" % name if kind == "node" else "remove or rename all but one"
        shown = _with_states(name, found, answers, kind)
        raise PlacementError("several hosts have a %s %s: %s. Which one is meant cannot be told: %s" % (kind, name, shown, hint))
    if found and sole and silent and host is None:
        shown = _with_states(name, found, answers, kind)
        raise PlacementError("%s is on %s%s. Name the host if that is the one: host=%s" % (name, shown, _may_have_it(silent, answers), found[0]))
    if not found and host is not None and not silent:
        raise PlacementError("%s has no %s %s" % (host, kind, ascii(name[:64])[1:-1]))
    if not found:
        asked = ", ".join(sorted(set(answers) - set(silent))) or "none"
        raise PlacementError("no host has a %s %s (asked %s)%s" % (kind, ascii(name[:64])[1:-1], asked, _may_have_it(silent, answers)))
    return found[0]


def _with_states(name: str, hosts: list[str], answers: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    states = [next((str(item.get("state") or "") for item in answers[host][kind + "s"] if item["name"] == name), "") for host in hosts]
    return ", ".join("%s (%s)" % pair if pair[1] else pair[0] for pair in zip(hosts, states))


def choose(name: str, answers: Mapping[str, Mapping[str, Any]], kind: str, host: str | None, group: str) -> str:
    """Return where something goes that may be there already: to the host that has it, else to the one that is named, else to the only one."""
    if host is not None:
        return _named(host, answers)
    if _having(name, answers, kind):
        return locate(name, answers, kind)
    silent = _silent(answers, kind)
    if silent:
        raise PlacementError("it cannot be told where %s is to go%s" % (ascii(name[:64])[1:-1], _may_have_it(silent, answers)))
    if len(answers) != 1:
        raise PlacementError("several hosts of %s could have %s: name one of %s" % (group, ascii(name[:64])[1:-1], ", ".join(sorted(answers))))
    return next(iter(answers))


def _named(host: str, answers: Mapping[str, Any]) -> str:
    if host not in answers:
        raise PlacementError("there is no host %s: expected one of %s" % (ascii(host[:64])[1:-1], ", ".join(sorted(answers)) or "none"))
    return host


def _having(name: str, answers: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    return sorted(host for host, answer in answers.items() if any(item["name"] == name and item.get("owned", True) for item in answer.get(kind + "s", ())))


def _silent(answers: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    return sorted(host for host, answer in answers.items() if kind + "s" not in answer)


def _may_have_it(silent: list[str], answers: Mapping[str, Mapping[str, Any]]) -> str:
    return "".join("; %s did not answer and may have it: %s" % (host, answers[host].get("msg", "not reached")) for host in silent)


def place(
    node: str, request: Request, *, host: str | None, answers: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Mapping[str, str]], policy: str = "spread"
) -> tuple[str, str]:
    """Return (host, why) for a new node, or the host that already has a node of this name.

    `answers` holds each host's `capacity` and `nodes` as M(lepton.cloud.host_info) returns them, empty for a host that did not answer;
    `labels` are the hosts' own, of the inventory. What runs on a host counts by its nodes' labels, as C(NAME=VALUE).
    """
    having = _having(node, answers, "node")
    if host is not None:
        _named(host, answers)
    if having:
        if host is not None and having != [host]:
            raise PlacementError("a node %s exists already on %s" % (node, ", ".join(having)))
        return locate(node, answers), "it has this node already"
    silent = _silent(answers, "node")
    if silent and host is None:
        raise PlacementError("a node %s may exist already%s. Name a host if you know that it does not" % (node, _may_have_it(silent, answers)))
    hosts = _hosts({name: answer for name, answer in answers.items() if host in (None, name)}, labels, request)
    fleet = Fleet(hosts, POLICIES[policy](Mix([request], hosts)))
    best = fleet.choose(request)
    if best is None:
        asked = "%g vCPUs and %s" % (request.cpus / WHOLE, format_size(request.memory)) + (" and %d GPUs" % request.gpus if request.gpus else "")
        why = "; ".join("%s: %s" % pair for pair in nearest_miss(hosts, request))
        raise PlacementError("no host can have a node with %s: %s%s" % (asked, why or "no host answered", _move_first(fleet, request, answers)))
    fitting = sum(not lacking(item, request) for item in hosts)
    left = "%g vCPUs and %s are left there then" % (best.left.cpus / WHOLE, format_size(best.left.memory // MIB * MIB))
    return best.host, "the best of %d hosts that can have it, by policy %s: %s" % (fitting, policy, left)


class Fit(NamedTuple):
    """The hosts that so many nodes alike would go to, in their order, and where not all have room, what each host lacks for one more."""

    hosts: tuple[str, ...]
    lacking: tuple[tuple[str, str], ...]


def fit(request: Request, count: int, *, answers: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Mapping[str, str]], policy: str = "spread") -> Fit:
    """Return where up to `count` nodes alike would go, one after the other. See M(lepton.cloud.host_info) and `place` for what hosts answered."""
    hosts = _hosts(answers, labels, request)
    fleet, found = Fleet(hosts, POLICIES[policy](Mix([request], hosts))), []
    while len(found) < count:
        choice = fleet.choose(request)
        if choice is None:
            silent = [(name, str(answer.get("msg", "not reached"))) for name, answer in sorted(answers.items()) if not answer.get("capacity")]
            return Fit(tuple(found), (*nearest_miss(fleet.hosts(), request), *silent))
        fleet.take(choice, request)
        found.append(choice.host)
    return Fit(tuple(found), ())


def _hosts(answers: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Mapping[str, str]], request: Request) -> list[Host]:
    return [_as_host(name, answer, labels.get(name, {}), huge=request.huge) for name, answer in sorted(answers.items()) if answer.get("capacity")]


def _move_first(fleet: Fleet, request: Request, answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which one node could make room by moving, "" where none could. Replicas of services stay, and what has devices of its host.

    A node without a state is only planned.
    """
    occupancy, states = Occupancy(fleet), {}
    for host in fleet.hosts():
        for node in answers[host.name].get("nodes", ()):
            labels = node.get("labels", {})
            stays = bool(node.get("devices")) or SERVICE_LABEL in labels
            missed = any("%s=%s" % pair in request.near for pair in labels.items())  # where it is, what is to be near it would go
            if "state" in node and not stays and not missed and bool(node.get("hugepages")) == request.huge:
                size, states[node["name"]] = size_of(node), node["state"]
                own = Request(size["vcpus"] * WHOLE, parse_size(size["memory"]), numa=bool(node.get("numa")), huge=request.huge)
                occupancy.note(host.name, Placed(node["name"], own))
    move = occupancy.find_move(request)
    if move is None:
        return ""
    name = move.placed.name
    moved = "%s has room once %s, which is %s, has moved to %s" % (move.from_host, name, states[name], move.to.host)
    return ". %s: node move %s %s" % (moved, name, move.to.host)


def _as_host(name: str, answer: Mapping[str, Any], labels: Mapping[str, str], *, huge: bool) -> Host:
    room = {**answer["capacity"], **(answer["huge_pages"] if huge else {})}
    carries = Counter("%s=%s" % pair for node in answer.get("nodes", ()) for pair in node.get("labels", {}).items())
    whole = room.get("vcpus", room["vcpus_free"]) * WHOLE, room.get("memory", room["memory_free"])
    gpus = tuple(WHOLE for gpu in answer.get("gpus") or () if not gpu["why"])
    free = Free(room["vcpus_free"] * WHOLE, room["memory_free"], gpus, "", *whole, _cells(answer, huge=huge))
    return Host(name, free, labels, carries, answer.get("closed") or "")


def _cells(answer: Mapping[str, Any], *, huge: bool) -> tuple[tuple[int, int, int], ...]:
    """Return what each NUMA node of a host has left for nodes that are bound to one, () where the host has but one."""
    found = []
    for cell in answer.get("host", {}).get("numa", ()):
        gpus = sum(gpu["numa"] in (cell["node"], -1) and not gpu["why"] for gpu in answer.get("gpus") or ())
        found.append((cell["vcpus_free"] * WHOLE, cell["huge_free" if huge else "memory_free"], gpus))
    return tuple(sorted(found))


def size_of(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a node with the size that its next start brings, which is what it was asked to have."""
    return {**node, **(node.get("config") or {})}


class Room(NamedTuple):
    """What a host has free for replicas, and why nothing new may go there. Memory in bytes; `ports` can be published on `address`."""

    cpus: float
    memory: int
    ports: tuple[int, ...]
    address: str
    closed: str = ""

    def without(self, cpus: float, memory: int, port: int) -> Room:
        """Return what is left when a replica has been given this."""
        return self._replace(cpus=self.cpus - cpus, memory=self.memory - memory, ports=tuple(other for other in self.ports if other != port))


def place_replica(rooms: Mapping[str, Room], *, cpus: float, memory: int, counts: Mapping[str, int], having: Collection[str]) -> str:
    """Return the host for one more replica of a service, of those that have room for it.

    `counts` is how many replicas each host has already, `having` the hosts that have the image. The fewest replicas first, then the
    hosts that need not fetch the image, then most left, where a CPU counts as much as a GiB; ties go to the first name.
    """
    hosts = [
        Host(
            host,
            Free(round(room.cpus * WHOLE), room.memory, all_cpus=WHOLE, all_memory=GIB),
            {"image": "there"} if host in having else {},
            {"replicas": counts.get(host, 0)},
            room.closed or ("" if room.ports else "it has no port free"),
        )
        for host, room in sorted(rooms.items())
    ]
    request = Request(round(cpus * WHOLE), memory, preferred=(("image", "there"),), group="replicas", spread="host")
    best = Fleet(hosts, POLICIES["spread"](Mix([request], hosts))).choose(request)
    if best is None:
        why = "; ".join("%s: %s" % pair for pair in nearest_miss(hosts, request)) or "no host answered"
        raise PlacementError("no host has room for a replica with %g CPUs and %s: %s" % (cpus, format_size(memory), why))
    return best.host


def room_for(rooms: Mapping[str, Room], *, cpus: float, memory: int, most: int) -> list[str]:
    """Return the hosts that up to `most` more replicas of a service would go to, one for each that has room."""
    left, hosts = dict(rooms), []
    for _number in range(most):
        try:
            host = place_replica(left, cpus=cpus, memory=memory, counts={name: hosts.count(name) for name in left}, having=())
        except PlacementError:
            break
        left[host] = left[host].without(cpus, memory, left[host].ports[0])
        hosts.append(host)
    return hosts


def place_container(name: str, *, image: str | None, cpus: float, memory: int, host: str | None, answers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return (host, why) for a container: the host that has it, the one that was named, or one with room.

    `answers` holds what each host answered to M(lepton.cloud.container_host_info), empty for a host that did not answer.
    """
    having = _having(name, answers, "container")
    if host is not None:
        _named(host, answers)
    if having:
        if host is not None and having != [host]:
            raise PlacementError("a container %s exists already on %s" % (name, ", ".join(having)))
        return locate(name, answers, "container"), "it has this container already"
    silent = _silent(answers, "container")
    if host is not None:
        return host, "it was asked for"
    if silent:
        raise PlacementError("a container %s may exist already%s. Name a host if you know that it does not" % (name, _may_have_it(silent, answers)))
    rooms = {
        name: Room(answer["room"]["cpus_free"], answer["room"]["memory_free"], tuple(answer["ports_free"]), answer["address"])
        for name, answer in answers.items()
    }
    with_image = [name for name, answer in answers.items() if image in answer["container_images"]]
    return place_replica(rooms, cpus=cpus, memory=memory, counts={}, having=with_image), "it has room"


class Route(NamedTuple):
    """Where an image is taken from and brought to. `without`: layers, by chain ID, that all of those hosts have already."""

    from_host: str
    to_hosts: tuple[str, ...]
    id: str
    without: tuple[str, ...]


def route_image(image: str, *, from_host: str | None, to_hosts: Collection[str] | None, answers: Mapping[str, Mapping[str, Any]]) -> Route:
    """Return the way of an image to the hosts that lack it, `to_hosts` or all that answered.

    `answers` holds what each host answered to M(lepton.cloud.container_host_info), empty for a host that did not answer.
    """
    known = ", ".join(sorted(answers)) or "none"
    for host in (*(to_hosts or ()), *([from_host] if from_host is not None else [])):
        if host not in answers:
            raise PlacementError("there is no host %s: expected one of %s" % (ascii(host[:64])[1:-1], known))
    told = {host: answer["container_images"] for host, answer in answers.items() if "container_images" in answer}
    silent = [host for host in (answers if to_hosts is None else to_hosts) if host not in told]
    if silent:
        raise PlacementError("%s did not answer: %s" % (silent[0], answers[silent[0]].get("msg", "not reached")))
    having = sorted(host for host, images in told.items() if image in images and from_host in (None, host))
    if not having:
        where = "no host has" if from_host is None else from_host + " does not have"
        raise PlacementError("%s the image %s (asked %s)" % (where, image, ", ".join(sorted(told)) or "none"))
    ids = {told[host][image] for host in having}
    if len(ids) > 1:
        raise PlacementError("%s is another image on each of %s: say by from_host which one is meant" % (image, ", ".join(having)))
    identity = ids.pop()
    lacking = tuple(sorted(host for host in (told if to_hosts is None else to_hosts) if told[host].get(image) != identity))
    shared = [set(answers[host].get("layers") or ()) for host in lacking]
    return Route(having[0], lacking, identity, tuple(sorted(set.intersection(*shared))) if shared else ())
