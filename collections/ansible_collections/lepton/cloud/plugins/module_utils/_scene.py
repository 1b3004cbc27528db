# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What is of a service: what is wanted, its replicas, and where there is room for more. Pure.

PRIVATE to the collection and to the Lepton bot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, Mapping

from ._backends import BACKENDS, CLUSTERS, images_of, room_of
from ._balancer import is_down, is_up
from ._placement import SERVICE_LABEL, Room, size_of
from ._service import Service, ServiceError, check_name, read_service
from ._units import parse_size

Answers = Mapping[str, Mapping[str, Mapping[str, Any]]]
BALANCERS = "load_balancers"
REVISION_LABEL = "cloud.lepton.revision"


@dataclass(frozen=True)
class Replica:
    """A replica as the hosts and the balancers show it. `host` is None where neither its container nor its node was found."""

    name: str
    host: str | None
    state: str = "absent"
    backend: str = "container"
    address: str = ""
    port: int = 0
    revision: str = ""
    image_id: str = ""
    cpus: float | None = None
    memory: str | None = None
    max_cpus: int | None = None  # that a node can have without a restart, and memory in bytes
    max_memory: int | None = None
    age: int | None = None  # seconds since it was started
    servers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by balancer

    @property
    def number(self) -> int:
        return int(self.name.rpartition("-")[2])

    @property
    def serves(self) -> bool:
        """Return whether every balancer that has it finds it up."""
        return bool(self.servers) and all(map(is_up, self.servers.values()))


@dataclass(frozen=True)
class Scene:
    """What is: the service as it is wanted (None where no balancer has it), its replicas, and the hosts with room."""

    name: str
    wanted: Service | None
    wanted_replicas: int
    version: int
    balancers: tuple[str, ...]
    having: tuple[str, ...]
    behind: tuple[str, ...]
    silent: Mapping[str, str]
    silent_hosts: tuple[str, ...]
    silent_balancers: tuple[str, ...]
    replicas: tuple[Replica, ...]
    rooms: Mapping[str, Room]
    images: Mapping[str, Mapping[str, str]]
    data_dirs: Mapping[str, str]
    servers: Mapping[str, tuple[Mapping[str, Any], ...]]  # by balancer
    deployment: Mapping[str, Any] | None = None  # that of backend `deployment`, as its cluster has it

    def alive(self) -> list[Replica]:
        """Return the replicas that run, or that may: on a host that does not answer, or since a load balancer finds them up."""
        return [item for item in self.replicas if item.state in ("running", "paused") or (item.host is None and item.servers and self._may_live(item))]

    def _may_live(self, replica: Replica) -> bool:
        return bool(self.silent_hosts) or any(map(is_up, replica.servers.values()))

    def broken(self) -> list[Replica]:
        """Return the replicas that run and that every load balancer which has them finds down."""
        return [item for item in self.alive() if item.host is not None and item.servers and all(map(is_down, item.servers.values()))]

    def dead(self) -> list[Replica]:
        """Return what is left of replicas that certainly do not run any more."""
        kept = {item.name for item in self.alive()}
        return [item for item in self.replicas if item.name not in kept]

    def next_number(self) -> int:
        return max((item.number for item in self.replicas), default=0) + 1


def look(name: str, answers: Answers, declared: Service | None = None) -> Scene:
    """Return what is, from what hosts and load balancers answered. `declared` is a service that no load balancer has yet."""
    check_name(name)
    balancers = answers.get(BALANCERS, {})
    answering = [host for host, answer in balancers.items() if "services" in answer]
    silent = {host: str(answer.get("msg", "not reached")) for host, answer in balancers.items() if "services" not in answer}
    if not balancers:
        raise ServiceError("the inventory has no host in the group %s, so no client could reach a service" % BALANCERS)
    if not answering:
        raise ServiceError("no load balancer answers, so nothing is known of %s: %s" % (name, reasons(silent)))
    entries = {host: entry for host in answering for entry in balancers[host]["services"] if entry["name"] == name}
    newest = max(entries.values(), key=lambda entry: entry["version"], default=None)
    wanted = None if newest is None else read_service(name, newest["declaration"])
    service = wanted or declared
    if service is not None and service.backend == "deployment":
        hosts, known = {host: answer for host, answer in answers.get(CLUSTERS, {}).items() if host == service.cluster}, "deployments"
        if not hosts:
            raise ServiceError("service %s: the inventory's group %s has no host %s" % (name, CLUSTERS, ascii(service.cluster)))
    else:
        kind = BACKENDS["container" if service is None else service.backend]
        hosts, known = answers.get(kind.group, {}), kind.known
    silent.update({host: str(answer.get("msg", "not reached")) for host, answer in hosts.items() if known not in answer})
    return Scene(
        name=name,
        wanted=wanted,
        wanted_replicas=0 if newest is None else newest["replicas"],
        version=0 if newest is None else newest["version"],
        balancers=tuple(answering),
        having=tuple(entries),
        behind=tuple(host for host in answering if newest is not None and (host not in entries or entries[host]["version"] != newest["version"])),
        silent=silent,
        silent_hosts=tuple(host for host, answer in hosts.items() if known not in answer),
        silent_balancers=tuple(host for host in balancers if host not in answering),
        replicas=_replicas(name, answers, entries),
        rooms={host: room_of(answer) for host, answer in hosts.items() if known in answer and known != "deployments"},
        images={host: images_of(answer) for host, answer in hosts.items() if known in answer},
        data_dirs={host: answer["data_dir"] for host, answer in hosts.items() if "data_dir" in answer},
        servers={host: tuple(entry["servers"]) for host, entry in entries.items()},
        deployment=next((item for answer in hosts.values() for item in answer.get("deployments", ()) if item["name"] == name), None),
    )


def _found(name: str, answers: Answers) -> Iterator[Replica]:
    """Yield the replicas of a service that hosts have: containers, and nodes."""
    pattern = re.compile(re.escape(name) + r"-\d{1,6}")
    for name_of, kind in BACKENDS.items():
        for host, answer in answers.get(kind.group, {}).items():
            for item in answer.get(kind.known, ()):
                if item.get("owned", True) and item.get("labels", {}).get(SERVICE_LABEL) == name and pattern.fullmatch(item["name"]):
                    size = size_of(item)  # what a node has at its next start is what it was asked to have
                    yield Replica(
                        name=item["name"],
                        host=host,
                        state=item["state"],
                        backend=name_of,
                        address=answer["address"],
                        port=next((int(port.split(":")[-2]) for port in item[kind.ports]), 0),
                        revision=item["labels"].get(REVISION_LABEL, ""),
                        image_id=item.get("image_id", ""),
                        cpus=size[kind.cpus],
                        memory=size["memory"],
                        max_cpus=item.get("max_vcpus"),
                        max_memory=parse_size(item["max_memory"]) if item.get("max_memory") else None,
                        age=item.get("age_seconds"),
                    )


def _replicas(name: str, answers: Answers, entries: Mapping[str, Mapping[str, Any]]) -> tuple[Replica, ...]:
    found: dict[str, Replica] = {}
    for replica in _found(name, answers):
        if replica.name in found:
            both = (found[replica.name].host, replica.host, replica.name)
            raise ServiceError("%s and %s both have a replica %s: stop one of them by hand" % both)
        found[replica.name] = replica
    pattern = re.compile(re.escape(name) + r"-\d{1,6}")
    servers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for balancer, entry in entries.items():
        for server in entry["servers"]:
            if pattern.fullmatch(server["name"]):
                servers.setdefault(server["name"], {})[balancer] = server
    for server_name, by_balancer in servers.items():
        found[server_name] = replace(found.get(server_name) or Replica(server_name, None), servers=by_balancer)
    return tuple(sorted(found.values(), key=lambda item: item.number))


def reasons(silent: Mapping[str, str]) -> str:
    return "; ".join("%s did not answer: %s" % pair for pair in sorted(silent.items()))
