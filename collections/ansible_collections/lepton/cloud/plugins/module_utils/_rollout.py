# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The steps by which a service comes, grows, shrinks, changes and goes, without dropping a request: pure.

PRIVATE to the collection and to the Lepton bot. Growing is place, start, healthy, into the balancers; shrinking is out of the balancers
(drained), then stop. All steps of one replica are one group: where one of them fails, its own replica is taken back and no other.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, Mapping, Sequence

from ._backends import BACKENDS, absent_args, healthy_args, images_of, resize_of, room_of, start_args, stop_args
from ._balancer import BalancerError, is_down, is_up
from ._foreign import Proxy, replaced_by
from ._placement import PlacementError, Room, place_replica
from ._service import DATA_DIR, Service, ServiceError, check_name, check_replicas, read_service, revision
from ._units import parse_size

Step = dict[str, Any]
Answers = Mapping[str, Mapping[str, Mapping[str, Any]]]
PREFIX = "lepton.cloud."
BALANCERS = "load_balancers"
SERVICE_LABEL, REVISION_LABEL = "cloud.lepton.service", "cloud.lepton.revision"
ALL = "all"  # what a failure stops: every other step of the plan, and not only those of its own replica
WEIGHT, WEIGHT_STEP, LEAST_CHANGE = 100, 10, 20
LONGEST_FETCH = 1800  # seconds that an image or data may take to come, between two replicas
UNEVEN = 2  # replicas that one host may have more than another before `balance` moves one


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


def look(name: str, answers: Answers, backend: str = "container") -> Scene:
    """Return what is, from what hosts and load balancers answered. `backend` is the kind of a service that no load balancer has yet."""
    check_name(name)
    balancers = answers.get(BALANCERS, {})
    answering = [host for host, answer in balancers.items() if "services" in answer]
    silent = {host: str(answer.get("msg", "not reached")) for host, answer in balancers.items() if "services" not in answer}
    if not balancers:
        raise ServiceError("the inventory has no host in the group %s, so no client could reach a service" % BALANCERS)
    if not answering:
        raise ServiceError("no load balancer answers, so nothing is known of %s: %s" % (name, _reasons(silent)))
    entries = {host: entry for host in answering for entry in balancers[host]["services"] if entry["name"] == name}
    newest = max(entries.values(), key=lambda entry: entry["version"], default=None)
    wanted = None if newest is None else read_service(name, newest["declaration"])
    kind = BACKENDS[backend if wanted is None else wanted.backend]
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
        rooms={host: room_of(answer) for host, answer in hosts.items() if known in answer},
        images={host: images_of(answer) for host, answer in hosts.items() if known in answer},
        data_dirs={host: answer["data_dir"] for host, answer in hosts.items() if "data_dir" in answer},
    )


def _found(name: str, answers: Answers) -> Iterator[Replica]:
    """Yield the replicas of a service that hosts have: containers, and nodes."""
    pattern = re.compile(re.escape(name) + r"-\d{1,6}")
    for name_of, kind in BACKENDS.items():
        for host, answer in answers.get(kind.group, {}).items():
            for item in answer.get(kind.known, ()):
                if item.get("owned", True) and item.get("labels", {}).get(SERVICE_LABEL) == name and pattern.fullmatch(item["name"]):
                    size = {**item, **(item.get("config") or {})}  # what a node has at its next start is what it was asked to have
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


def _reasons(silent: Mapping[str, str]) -> str:
    return "; ".join("%s did not answer: %s" % pair for pair in sorted(silent.items()))


class Planner:
    """Collects the steps of one plan, and gives away room as it goes."""

    def __init__(self, scene: Scene, service: Service) -> None:
        self.scene = scene
        self.service = service
        self.kind = BACKENDS[service.backend]
        self.steps: list[Step] = []
        self._rooms = dict(scene.rooms)
        self._counts = {host: sum(1 for item in scene.alive() if item.host == host) for host in scene.rooms}
        self._next = scene.next_number()
        self.stops = ""  # what a failure of the steps that follow stops

    def add(
        self,
        title: str,
        host: str,
        module: str,
        args: dict[str, Any],
        *,
        before: Any = None,
        after: Any = None,
        group: str = "",
        undo: bool = False,
        needs_all: bool = False,
    ) -> None:
        """Append one step."""
        step: Step = {"title": title, "host": host, "module": PREFIX + module, "args": args, "before": before or {}, "after": after or {}}
        if group:
            step["group"] = group
        if group and self.stops and not undo:
            step["stops"] = self.stops
        if undo:
            step["undo"] = True
        if needs_all:
            step["needs_all"] = True
        self.steps.append(step)

    def room(self) -> tuple[str, Replica]:
        """Return the host for one more replica, and that replica; raise PlacementError where none has room."""
        memory = parse_size(self.service.memory) if self.service.memory else 0
        having = {host for host, images in self.scene.images.items() if self.service.image in images}
        host = place_replica(self._rooms, cpus=self.service.cpus or 0, memory=memory, counts=self._counts, having=having)
        room = self._rooms[host]
        name = "%s-%d" % (self.scene.name, self._next)
        # Not simply the first free one: two services that grow at once are planned from the same answer.
        port = room.ports[zlib.crc32(name.encode()) % len(room.ports)]
        replica = Replica(name, host, "running", self.service.backend, room.address, port, revision(self.service))
        self._next += 1
        self._counts[host] += 1
        self._rooms[host] = Room(
            room.cpus - (self.service.cpus or 0), room.memory - memory, tuple(other for other in room.ports if other != port), room.address
        )
        return host, replica

    def start(self, replica: Replica) -> None:
        """Start a replica; it need not be healthy yet."""
        for dataset in self.service.data:
            self.add("have %s on %s" % (dataset.name, replica.host), str(replica.host), "container_dataset", dataset.to_fields(), group=replica.name)
        data_dir = self.scene.data_dirs.get(str(replica.host), DATA_DIR)
        args = start_args(self.service, self.scene.name, replica.name, replica.address, replica.port, data_dir)
        self.add(
            "start %s from %s" % (replica.name, self.service.image),
            str(replica.host),
            self.kind.module,
            args,
            before={"state": "absent"},
            after={"state": "running", "image": self.service.image},
            group=replica.name,
        )

    def serve(self, replica: Replica, balancers: Sequence[str], *, watch: bool = False) -> None:
        """Wait until a replica is healthy, and have its load balancers send it requests."""
        waiting = healthy_args(self.service, replica.name)
        self.add("wait until %s is healthy" % replica.name, str(replica.host), self.kind.module, waiting, group=replica.name)
        for balancer in balancers:
            args: dict[str, Any] = dict(self._server(replica), state="ready")
            if watch:
                args.update(watch_seconds=self.service.watch_seconds, max_error_rate=self.service.max_error_rate)
            title = "send requests to %s" % replica.name
            self.add(title, balancer, "load_balancer_server", args, before={"state": "absent"}, after={"state": "ready"}, group=replica.name)

    def _server(self, replica: Replica) -> dict[str, Any]:
        return {"service": self.scene.name, "name": replica.name, "address": replica.address, "port": replica.port}

    def up(self, count: int) -> None:
        """Start so many replicas side by side, then take each in as it becomes healthy; take back those that do not."""
        new = [self.room()[1] for _number in range(count)]
        for replica in new:
            self.start(replica)
        for replica in new:
            self.serve(replica, self.scene.balancers)
        for replica in new:
            self.remove(replica, self.scene.balancers, group=replica.name, undo=True)

    def out(self, replica: Replica, *, group: str, undo: bool = False, balancers: Sequence[str] | None = None) -> None:
        """Drain a replica and take it out of its load balancers."""
        for balancer in replica.servers if balancers is None else balancers:
            args = {"service": self.scene.name, "name": replica.name, "state": "absent", "drain_seconds": self.service.drain_seconds}
            server = replica.servers.get(balancer)
            before = {} if server is None or undo else {"state": server["state"]}
            after = {} if server is None or undo else {"state": "absent"}
            self.add("drain %s and take it out" % replica.name, balancer, "load_balancer_server", args, before=before, after=after, group=group, undo=undo)

    def remove(self, replica: Replica, balancers: Sequence[str] | None = None, *, group: str, undo: bool = False) -> None:
        """Drain a replica, take it out of its load balancers and remove it."""
        self.out(replica, group=group, undo=undo, balancers=balancers)
        if replica.host is not None:
            args = absent_args(self.service, replica.name)
            before, after = ({}, {}) if undo else ({"state": replica.state}, {"state": "absent"})
            title = "remove %s" % replica.name
            self.add(title, replica.host, self.kind.module, args, before=before, after=after, group=group, undo=undo)

    def back(self, replica: Replica, *, group: str) -> None:
        """Take a replica in again that was taken out: what undoes that."""
        if replica.host is None:
            return
        again = healthy_args(self.service, replica.name)
        self.add("start %s again" % replica.name, replica.host, self.kind.module, again, group=group, undo=True)
        for balancer in replica.servers:
            args = dict(self._server(replica), state="ready")
            self.add("send requests to %s again" % replica.name, balancer, "load_balancer_server", args, group=group, undo=True)

    def down(self, replicas: Sequence[Replica]) -> None:
        """Take replicas away, one after the other; one whose sessions do not end in time stays."""
        for replica in replicas:
            self.remove(replica, group=replica.name)
            self.back(replica, group=replica.name)

    def swap(self, replica: Replica, new: Replica) -> None:
        """Start a new replica in place of one that serves; where it does not come up, the other one stays."""
        self.start(new)
        self.serve(new, self.scene.balancers)
        self.remove(replica, group=new.name)
        self.back(replica, group=new.name)
        self.remove(new, self.scene.balancers, group=new.name, undo=True)

    def mend(self, target: int, other: Sequence[Replica] = ()) -> None:
        """Bring the replicas to a number: what is dead goes, what runs unseen by a balancer is taken in, the rest is up or down.

        `other` are replicas of another declaration than the one that is wanted; they go first, or are swapped.
        """
        broken = self.scene.broken()
        good = [item for item in self.scene.alive() if item not in broken]
        if not self.scene.silent_balancers:  # one that is away may still send requests to where they were; what is left there keeps its port
            for replica in self.scene.dead():
                self.remove(replica, group=replica.name)
        going = surplus(good, len(good) - target, other) if target < len(good) else []
        for replica in good:
            if replica not in going:
                self._take_in(replica)
        if target > len(good):
            self.up(target - len(good))
        self.down(going)
        for replica in other:
            if replica in good and replica not in going:
                try:
                    self.swap(replica, self.room()[1])
                except PlacementError:
                    break  # it serves, and what is dead is mended all the same
        if not self.scene.silent_balancers:
            for replica in broken:  # after what takes their place
                self.remove(replica, group=replica.name)

    def _take_in(self, replica: Replica) -> None:
        """Have every load balancer send requests to a replica that runs, and was left aside."""
        missing = [balancer for balancer in self.scene.balancers if balancer not in replica.servers]
        if missing and replica.host is not None:
            self.serve(replica, missing)
            if not replica.servers:  # one that never becomes healthy must not count for ever
                self.remove(replica, missing, group=replica.name, undo=True)
        for balancer, server in replica.servers.items():
            if server["state"] != "ready":
                args = {"service": self.scene.name, "name": replica.name, "state": "ready"}
                title = "send requests to %s again" % replica.name
                self.add(title, balancer, "load_balancer_server", args, before={"state": server["state"]}, after={"state": "ready"}, group=replica.name)

    def want(self, *, declaration: bool = False, replicas: int | None = None, group: str = "") -> None:
        """Keep what is wanted at every load balancer."""
        scene = self.scene
        old = {} if scene.wanted is None else scene.wanted.to_fields()
        new = self.service.to_fields() if declaration else old
        before = {name: old.get(name) for name in sorted({**old, **new}) if old.get(name) != new.get(name)}
        after = {name: new.get(name) for name in before}
        args: dict[str, Any] = {"name": scene.name, "version": scene.version + 1}
        if declaration:
            args["declaration"] = new
        if replicas is not None:
            args["replicas"] = replicas
            before["replicas"] = None if scene.wanted is None else scene.wanted_replicas
            after["replicas"] = replicas
        if scene.wanted is None:
            before["service"], after["service"] = "absent", "present"
        for balancer in scene.balancers:
            self.add("keep that %s is wanted so" % scene.name, balancer, "load_balancer_service", args, before=before, after=after, group=group)

    def want_no_more(self, *, group: str) -> None:
        """Take back what was kept as wanted: what undoes `want`."""
        scene = self.scene
        for balancer in scene.balancers:
            args: dict[str, Any] = {"name": scene.name, "state": "absent"}
            if scene.wanted is not None:
                # A new version again: a load balancer that kept what failed, and could not be told, must not win.
                fields = scene.wanted.to_fields()
                args = {"name": scene.name, "version": scene.version + 2, "declaration": fields, "replicas": scene.wanted_replicas}
            self.add("keep that %s is wanted as before" % scene.name, balancer, "load_balancer_service", args, group=group, undo=True)


def surplus(replicas: Sequence[Replica], count: int, other: Sequence[Replica] = ()) -> list[Replica]:
    """Return the replicas that go first: those of another declaration, those that do not serve, those on the fullest host, the youngest."""
    left, going = list(replicas), []
    for _number in range(count):
        counts = {item.host: sum(1 for other in left if other.host == item.host) for item in left}
        worst = max(left, key=lambda item: (item in other, not item.serves, counts[item.host], item.number))
        left.remove(worst)
        going.append(worst)
    return going


def _wanted(scene: Scene) -> Service:
    if scene.wanted is None:
        raise ServiceError("there is no service %s: make it with service create" % scene.name)
    return scene.wanted


def _everybody(scene: Scene, what: str) -> None:
    """Refuse what would leave a load balancer that does not answer with servers that are gone."""
    if scene.silent:
        raise ServiceError("%s is not %s: %s" % (scene.name, what, _reasons(scene.silent)))


def _current(scene: Scene, planner: Planner) -> None:
    """Bring load balancers that were away to where the others are."""
    for balancer in scene.behind:
        service = _wanted(scene)
        args = {"name": scene.name, "version": scene.version, "declaration": service.to_fields(), "replicas": scene.wanted_replicas}
        planner.add("bring %s up to date with what is wanted" % balancer, balancer, "load_balancer_service", args)


def create_service(arguments: Mapping[str, Any], answers: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan a new service. Where one of its replicas does not come up, nothing of it is left."""
    name = check_name(arguments["service"])
    service = _declared(name, declared)
    if arguments.get("image"):
        service = replace(service, image=arguments["image"])
    count = check_replicas(name, service, service.min_replicas if arguments.get("replicas") is None else arguments["replicas"])
    scene = look(name, answers, service.backend)
    if scene.wanted is not None:
        raise ServiceError("there is a service %s already: use service update or service scale" % name)
    if scene.replicas:
        raise ServiceError("replicas of a service %s are there already: %s. Remove them first" % (name, ", ".join(item.name for item in scene.replicas)))
    _everybody(scene, "created")
    _own_port(scene, service, answers)
    planner = Planner(scene, service)
    planner.stops = ALL
    planner.want(declaration=True, replicas=count, group=name)
    planner.up(count)
    planner.want_no_more(group=name)
    return planner.steps


def _own_port(scene: Scene, service: Service, answers: Answers) -> None:
    """Refuse a port that another service listens on: HAProxy would let both, and the kernel would share out the clients."""
    for host in scene.balancers:
        for other in answers[BALANCERS][host]["services"]:
            if other["name"] != scene.name and other["declaration"]["listen_port"] == service.listen_port:
                raise ServiceError("port %d of %s is another service's already: %s" % (service.listen_port, host, other["name"]))


def _declared(name: str, declared: Mapping[str, Any]) -> Service:
    if name not in declared:
        known = ", ".join(sorted(map(str, declared))) or "none"
        raise ServiceError("the inventory declares no service %s in lepton_services, only: %s" % (name, known))
    return read_service(name, declared[name])


def adopt_service(arguments: Mapping[str, Any], answers: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan that a service takes the place of what HAProxy's own configuration serves on its port.

    First its address, with the servers that are there; then its own replicas; and when all of these serve, the old servers go. Where
    something fails before that, what was there is served as before. One that was cut short is planned to its end.
    """
    name = check_name(arguments["service"])
    service = _declared(name, declared)
    count = check_replicas(name, service, service.min_replicas if arguments.get("replicas") is None else arguments["replicas"])
    scene = look(name, answers, service.backend)
    _everybody(scene, "adopted")
    replaced = {host: _replaced(host, answers[BALANCERS][host], service.listen_port) for host in scene.balancers}
    strangers = {host: _strangers(name, answers[BALANCERS][host], replaced[host]) for host in scene.balancers}
    if not any(replaced.values()) and not any(strangers.values()):
        raise ServiceError("nothing that Lepton did not make listens on port %d of %s: use service create" % (service.listen_port, ", ".join(scene.balancers)))
    planner = Planner(scene, service)
    planner.stops = ALL
    before: dict[str, Any] = {"service": "absent"} if scene.wanted is None else {}
    for host, names in replaced.items():
        args = {"name": name, "version": scene.version + 1, "declaration": service.to_fields(), "replicas": count, "replaces": names}
        title = "take the place of %s" % (", ".join(names) or "nothing")
        after = {"service": "present"} if before else {}
        if names:
            before_here, after_here = dict(before, proxies=names), dict(after, proxies=[])
            planner.add(title, host, "load_balancer_service", args, before=before_here, after=after_here, group=name)
        else:  # cut short after the files were written: HAProxy may not have read them
            del args["replaces"]
            planner.add("see that %s is served" % name, host, "load_balancer_service", dict(args, version=max(1, scene.version)), group=name)
    planner.up(max(0, count - len(scene.alive())))
    for host, names in replaced.items():
        if names:
            title = "give %s back" % ", ".join(names)
            planner.add(title, host, "load_balancer_service", {"name": name, "state": "given_back"}, group=name, undo=True)
    planner.stops = ""
    for host, servers in strangers.items():
        for server in servers:
            args = {"service": name, "name": server, "state": "absent", "drain_seconds": service.drain_seconds}
            planner.add("drain %s and take it out" % server, host, "load_balancer_server", args, group="old " + server, needs_all=True)
    return planner.steps


def _replaced(host: str, answer: Mapping[str, Any], listen_port: int) -> list[str]:
    """Return the proxies that a load balancer's own configuration has for a port."""
    proxies = [
        Proxy(item["kind"], item["name"], list(item["ports"]), item["default_backend"], list(item["other_backends"]), lost=list(item["lost"]))
        for item in answer.get("proxies", ())
    ]
    try:
        return replaced_by(proxies, listen_port)
    except BalancerError as error:
        raise ServiceError("%s: %s" % (host, error)) from error


def _strangers(name: str, answer: Mapping[str, Any], replaced: Sequence[str]) -> list[str]:
    """Return the servers that a service has, or will have, and that are no replicas of it."""
    pattern = re.compile(re.escape(name) + r"-\d{1,6}")
    coming = [server["name"] for item in answer.get("proxies", ()) if item["name"] in replaced for server in item["servers"]]
    there = [server["name"] for entry in answer["services"] if entry["name"] == name for server in entry["servers"]]
    return sorted({server for server in (*coming, *there) if not pattern.fullmatch(server)})


def scale_service(arguments: Mapping[str, Any], answers: Answers, _declared_services: Mapping[str, Any]) -> list[Step]:
    """Plan another number of replicas: an absolute one, or with a sign one relative to what is wanted now."""
    name = check_name(arguments["service"])
    scene = look(name, answers)
    service = _wanted(scene)
    text = str(arguments["replicas"]).strip()
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        raise ServiceError("replicas: expected a number such as 4, or a difference such as +2 or -1, not %s" % ascii(text[:20]))
    target = check_replicas(name, service, scene.wanted_replicas + int(text) if text[0] in "+-" else int(text))
    if target < len(scene.alive()):
        _everybody(scene, "scaled down")
    planner = Planner(scene, service)
    _current(scene, planner)
    if target != scene.wanted_replicas:
        planner.want(replicas=target)
    planner.mend(target)
    return planner.steps


def reconcile_service(arguments: Mapping[str, Any], answers: Answers, _declared_services: Mapping[str, Any]) -> list[Step]:
    """Plan what is missing between what is wanted and what is: a dead replica is replaced, one that may live is not."""
    scene = look(check_name(arguments["service"]), answers)
    service = _wanted(scene)
    mixed = [item for item in scene.alive() if item.host is not None and item.revision != revision(service)]
    if scene.wanted_replicas < len(scene.alive()) or mixed:
        if _rolling(scene, service):
            return []
        _everybody(scene, "reconciled")
    planner = Planner(scene, service)
    _current(scene, planner)
    # Some of them are what an update left that was cut short. That all of them are is no accident, and service update's to change.
    planner.mend(scene.wanted_replicas, mixed if len(mixed) < len(scene.alive()) else ())
    return planner.steps


def _rolling(scene: Scene, service: Service) -> bool:
    """Return whether somebody whose lock cannot be seen, a playbook on another machine, may be in the middle of a change.

    Each replica of a rolling change begins with a new one, and takes no longer than this until the next one or the end. Of nodes it is
    not known how long they run, so of theirs nothing is assumed.
    """
    longest = LONGEST_FETCH + service.start_seconds + service.watch_seconds + service.drain_seconds + service.stop_seconds
    return any(item.age is None or item.age < longest for item in scene.alive())


def update_service(arguments: Mapping[str, Any], answers: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan a rolling change: for each replica a new one first, healthy and watched, then the old one drained and stopped.

    The old ones are kept, stopped, until all new ones serve. Where one does not, all of it is taken back.
    """
    name = check_name(arguments["service"])
    scene = look(name, answers)
    before = _wanted(scene)
    service = replace(before, image=arguments["image"]) if arguments.get("image") else _declared(name, declared)
    service = read_service(name, service.to_fields())
    _everybody(scene, "updated")
    if service.backend != before.backend:
        raise ServiceError("%s has replicas of kind %s: one of kind %s is another service" % (name, before.backend, service.backend))
    if service.health_path != before.health_path:
        paths = (name, before.health_path, service.health_path)
        raise ServiceError("%s is checked on %s, and all replicas of a service on one path: have the new image answer there too, not only on %s" % paths)
    _own_port(scene, service, answers)
    count = check_replicas(name, service, min(max(scene.wanted_replicas, service.min_replicas), service.max_replicas))
    planner = Planner(scene, service)
    _current(scene, planner)
    planner.stops = ALL
    old = [item for item in scene.alive() if arguments.get("again") or _outdated(item, service, scene)]
    rolled: list[tuple[Replica, Replica]] = []
    for replica in old:
        new = planner.room()[1]
        rolled.append((replica, new))
        planner.start(new)
        planner.serve(new, scene.balancers, watch=True)
        planner.out(replica, group=new.name)
        if replica.host is not None:
            stop = stop_args(service, replica.name)
            title = "stop %s, and keep it until all are new" % replica.name
            planner.add(title, replica.host, planner.kind.module, stop, before={"state": "running"}, after={"state": planner.kind.stopped}, group=new.name)
    staying = [item for item in scene.alive() if item not in old]
    resized = _resized(staying, service)
    for replica, now, wanted in resized:
        args = dict(wanted, name=replica.name)
        planner.add("resize %s" % replica.name, str(replica.host), planner.kind.module, args, before=now, after=wanted, group=replica.name)
    if service != before or count != scene.wanted_replicas:
        planner.want(declaration=True, replicas=count if count != scene.wanted_replicas else None, group=name)
        planner.want_no_more(group=name)
    for replica, now, _wanted_limits in resized:
        args = dict({option: value for option, value in now.items() if value is not None}, name=replica.name)
        planner.add("resize %s back" % replica.name, str(replica.host), planner.kind.module, args, group=replica.name, undo=True)
    for replica, new in reversed(rolled):
        planner.back(replica, group=new.name)
        planner.remove(new, scene.balancers, group=new.name, undo=True)
    planner.stops = ""  # what is left over at the end is no reason to go back
    for replica, _new in rolled:
        if replica.host is not None:
            args = absent_args(service, replica.name)
            planner.add("remove %s" % replica.name, replica.host, planner.kind.module, args, group="old " + replica.name, needs_all=True)
    return planner.steps


def _outdated(replica: Replica, service: Service, scene: Scene) -> bool:
    """Return whether a replica is another than the declaration makes, or runs what its image's name does not mean any more."""
    now = scene.images.get(replica.host or "", {}).get(service.image)
    return replica.revision != revision(service) or bool(now and replica.image_id != now)


def _resized(replicas: Sequence[Replica], service: Service) -> list[tuple[Replica, dict[str, Any], dict[str, Any]]]:
    """Return the replicas whose CPU or memory changes in place, with what they have and what they get."""
    found = []
    for replica in replicas:
        now, wanted = resize_of(service, replica.cpus, replica.memory)
        if wanted and replica.host is not None:
            found.append((replica, now, wanted))
    return found


def balance_service(arguments: Mapping[str, Any], answers: Answers, _declared_services: Mapping[str, Any]) -> list[Step]:
    """Plan weights by what each replica was measured to get done, and replicas spread evenly over the hosts that have room."""
    scene = look(check_name(arguments["service"]), answers)
    service = _wanted(scene)
    _everybody(scene, "balanced")
    planner = Planner(scene, service)
    _current(scene, planner)
    moving = []
    for replica in _crowded(scene):
        try:
            new = planner.room()[1]
        except PlacementError:
            break  # what cannot move stays, and is weighed all the same
        if new.host == replica.host:
            break
        moving.append(replica)
        planner.swap(replica, new)
    for balancer in scene.balancers:
        staying = {item.name: item.servers[balancer] for item in scene.alive() if balancer in item.servers and item not in moving}
        wanted = weights({name: float(server.get("response_ms") or 0) for name, server in staying.items()})
        for name, server in staying.items():
            if server["state"] == "ready" and abs(wanted[name] - server["weight"]) >= LEAST_CHANGE:
                args = {"service": scene.name, "name": name, "state": "ready", "weight": wanted[name]}
                title = "weigh %s by what it gets done" % name
                planner.add(title, balancer, "load_balancer_server", args, before={"weight": server["weight"]}, after={"weight": wanted[name]}, group=name)
    return planner.steps


def _crowded(scene: Scene) -> list[Replica]:
    """Return the replicas that go to another host so that none has more than one above any other."""
    counts = {host: [item for item in scene.alive() if item.host == host] for host in scene.rooms}
    moving = []
    while len(counts) > 1:
        fullest = max(counts, key=lambda host: (len(counts[host]), host))
        emptiest = min(counts, key=lambda host: (len(counts[host]), host))
        if len(counts[fullest]) - len(counts[emptiest]) < UNEVEN:
            break
        replica = counts[fullest].pop()
        counts[emptiest].append(replica)
        moving.append(replica)
    return moving


def weights(response_ms: Mapping[str, float]) -> dict[str, int]:
    """Return weights in proportion to what each server gets done: the inverse of the time it needs for a request.

    `response_ms` is measured under load, by server; one that has not answered yet (0) counts as the quickest. The quickest gets
    the full weight, and none less than a tenth, so that each goes on being measured. In steps: a plan must hold while it is approved.
    """
    known = [value for value in response_ms.values() if value > 0]
    quickest = min(known, default=1.0)
    shares = {name: quickest / value if value > 0 else 1.0 for name, value in response_ms.items()}
    return {name: max(WEIGHT_STEP, round(WEIGHT * share / WEIGHT_STEP) * WEIGHT_STEP) for name, share in shares.items()}


def delete_service(arguments: Mapping[str, Any], answers: Answers, _declared_services: Mapping[str, Any]) -> list[Step]:
    """Plan the end of a service: every replica drained and removed, then its address."""
    scene = look(check_name(arguments["service"]), answers)
    service = _wanted(scene)
    _everybody(scene, "deleted")
    planner = Planner(scene, service)
    planner.stops = ALL
    for replica in scene.replicas:
        planner.remove(replica, group=replica.name)
    for balancer in scene.having:
        args = {"name": scene.name, "state": "absent"}
        title = "remove the address of %s" % scene.name
        planner.add(
            title, balancer, "load_balancer_service", args, before={"service": "present"}, after={"service": "absent"}, group=scene.name, needs_all=True
        )
    return planner.steps
