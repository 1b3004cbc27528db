# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The operations of a service, planned: it comes, grows, shrinks, changes and goes without dropping a request. Pure.

PRIVATE to the collection and to the Lepton bot.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Mapping, Sequence

from ._backends import BACKENDS, absent_args, resize_of, stop_args
from ._balancer import BalancerError
from ._foreign import Proxy, replaced_by
from ._placement import PlacementError
from ._planner import ALL, Planner, Step
from ._pods import PodPlanner, is_pod
from ._scene import BALANCERS, Answers, Replica, Scene, look, reasons
from ._service import MIB, Service, ServiceError, check_name, check_replicas, read_service, revision
from ._units import format_size, parse_size

WEIGHT, WEIGHT_STEP, LEAST_CHANGE = 100, 10, 20
LONGEST_FETCH = 1800  # seconds that an image or data may take to come, between two replicas
UNEVEN = 2  # replicas that one host may have more than another before `balance` moves one


def _planner(scene: Scene, service: Service) -> Planner:
    return PodPlanner(scene, service) if service.backend == "deployment" else Planner(scene, service)


def _wanted(scene: Scene) -> Service:
    if scene.wanted is None:
        raise ServiceError("there is no service %s: make it with service create" % scene.name)
    return scene.wanted


def _everybody(scene: Scene, what: str) -> None:
    """Refuse what would leave a load balancer that does not answer with servers that are gone."""
    if scene.silent:
        raise ServiceError("%s is not %s: %s" % (scene.name, what, reasons(scene.silent)))


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
    count = _first_replicas(name, service, arguments.get("replicas"))
    scene = look(name, answers, service)
    if scene.wanted is not None:
        raise ServiceError("there is a service %s already: use service update or service scale" % name)
    if scene.replicas:
        raise ServiceError("replicas of a service %s are there already: %s. Remove them first" % (name, ", ".join(item.name for item in scene.replicas)))
    _everybody(scene, "created")
    _own_port(scene, service, answers)
    planner = _planner(scene, service)
    planner.stops = ALL
    planner.want(declaration=True, replicas=count, group=name)
    planner.up(count)
    planner.want_no_more(group=name)
    return planner.steps


def _first_replicas(name: str, service: Service, replicas: int | None) -> int:
    """Return how many replicas a service begins with: as few as it may have, and one of those that may have none."""
    return check_replicas(name, service, max(1, service.min_replicas) if replicas is None else replicas)


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
    count = _first_replicas(name, service, arguments.get("replicas"))
    scene = look(name, answers, service)
    _everybody(scene, "adopted")
    replaced = {host: _replaced(host, answers[BALANCERS][host], service.listen_port) for host in scene.balancers}
    strangers = {host: _strangers(name, answers[BALANCERS][host], replaced[host]) for host in scene.balancers}
    if not any(replaced.values()) and not any(strangers.values()):
        raise ServiceError("nothing that Lepton did not make listens on port %d of %s: use service create" % (service.listen_port, ", ".join(scene.balancers)))
    planner = _planner(scene, service)
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
    return sorted({server for server in (*coming, *there) if not pattern.fullmatch(server) and not is_pod(name, server)})


def scale_service(arguments: Mapping[str, Any], answers: Answers, _declared_services: Mapping[str, Any]) -> list[Step]:
    """Plan another number of replicas: an absolute one, or with a sign one relative to what is wanted now."""
    name = check_name(arguments["service"])
    scene = look(name, answers)
    service = _wanted(scene)
    text = str(arguments["replicas"]).strip()
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        raise ServiceError("replicas: expected a number such as 4, or a difference such as +2 or -1, not %s" % ascii(text[:20]))
    target = check_replicas(name, service, scene.wanted_replicas + int(text) if text[0] in "+-" else int(text))
    if target < max(len(scene.alive()), 0 if scene.deployment is None else scene.deployment["replicas"]):
        _everybody(scene, "scaled down")
    planner = _planner(scene, service)
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
    planner = _planner(scene, service)
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
    if service.cluster != before.cluster:
        raise ServiceError("%s runs on %s: on %s it is another service" % (name, before.cluster, service.cluster))
    if service.health_path != before.health_path:
        paths = (name, before.health_path, service.health_path)
        raise ServiceError("%s is checked on %s, and all replicas of a service on one path: have the new image answer there too, not only on %s" % paths)
    _own_port(scene, service, answers)
    again = bool(arguments.get("again"))
    old = [item for item in scene.alive() if again or _outdated(item, service, scene)]
    return _rolled(scene, before, service, old, again=again)


def resize_service(arguments: Mapping[str, Any], answers: Answers, _declared_services: Mapping[str, Any]) -> list[Step]:
    """Plan another size of every replica. Containers and nodes go on serving meanwhile; pods are replaced, as Kubernetes does that."""
    name = check_name(arguments["service"])
    scene = look(name, answers)
    before = _wanted(scene)
    service = read_service(name, {**before.to_fields(), **{field: arguments[field] for field in ("cpus", "memory") if arguments.get(field) is not None}})
    _everybody(scene, "resized")
    _resizable(scene, service)
    return _rolled(scene, before, service, [])


def _resizable(scene: Scene, service: Service) -> None:
    """Refuse a size that replicas cannot have while they serve, or that their hosts have no room for."""
    cpus, memory = service.cpus or 0, parse_size(service.memory) if service.memory else 0
    more: dict[str, list[float]] = {}
    for replica in scene.alive():
        has_cpus, has_memory = replica.cpus or 0, parse_size(replica.memory) if replica.memory else 0
        for what, wanted, has, most in (("vCPUs", cpus, has_cpus, replica.max_cpus), ("bytes of memory", memory, has_memory, replica.max_memory)):
            if most is not None and wanted > most:
                raise ServiceError("%s can be given %d %s while it runs, and not %d: it was made with that reserved" % (replica.name, most, what, wanted))
            if service.backend == "node" and what == "vCPUs" and wanted < has:
                raise ServiceError("%s has %d vCPUs, and a node gives none back while it runs: use service update with again" % (replica.name, has))
        sums = more.setdefault(str(replica.host), [0, 0])
        sums[0] += max(0, cpus - has_cpus) if has_cpus else 0
        sums[1] += max(0, memory - has_memory) if has_memory else 0
    for host, (more_cpus, more_memory) in more.items():
        room = scene.rooms.get(host)
        if room is not None and (more_cpus > room.cpus or more_memory > room.memory):
            sizes = (more_cpus, more_memory), (room.cpus, room.memory)
            asked, there = ("%g CPUs and %s" % (some, format_size(int(size) // MIB * MIB)) for some, size in sizes)
            raise ServiceError("%s has no room for replicas of that size: they need %s more, and there is %s" % (host, asked, there))


def _rolled(scene: Scene, before: Service, service: Service, old: Sequence[Replica], *, again: bool = False) -> list[Step]:
    """Plan that a service becomes what is declared now: the `old` of its replicas are replaced, and the others resized where they serve."""
    name = scene.name
    count = check_replicas(name, service, min(max(scene.wanted_replicas, service.min_replicas), service.max_replicas))
    planner = _planner(scene, service)
    _current(scene, planner)
    planner.stops = ALL
    if isinstance(planner, PodPlanner):
        planner.roll(count, again=again)
        if service != before or count != scene.wanted_replicas:
            planner.want(declaration=True, replicas=count if count != scene.wanted_replicas else None, group=name)
            planner.want_no_more(group=name)
        return planner.steps
    rolled: list[tuple[Replica, Replica]] = []
    for replica in old:
        new = planner.room()[1]
        rolled.append((replica, new))
        planner.start(new)
        planner.serve(new, scene.balancers, watch=True)
        planner.out(replica, group=new.name)
        if replica.host is not None:
            kind, stop = BACKENDS[service.backend], stop_args(service, replica.name)
            title = "stop %s, and keep it until all are new" % replica.name
            planner.add(
                title,
                replica.host,
                kind.module,
                stop,
                before={"state": "running"},
                after={"state": kind.stopped},
                group=new.name,
            )
    staying = [item for item in scene.alive() if item not in old]
    resized = _resized(staying, service)
    for replica, now, wanted in resized:
        args = dict(wanted, name=replica.name)
        planner.add("resize %s" % replica.name, str(replica.host), BACKENDS[service.backend].module, args, before=now, after=wanted, group=replica.name)
    if service != before or count != scene.wanted_replicas:
        planner.want(declaration=True, replicas=count if count != scene.wanted_replicas else None, group=name)
        planner.want_no_more(group=name)
    for replica, now, _wanted_limits in resized:
        args = dict({option: value for option, value in now.items() if value is not None}, name=replica.name)
        planner.add("resize %s back" % replica.name, str(replica.host), BACKENDS[service.backend].module, args, group=replica.name, undo=True)
    for replica, new in reversed(rolled):
        planner.back(replica, group=new.name)
        planner.remove(new, scene.balancers, group=new.name, undo=True)
    planner.stops = ""  # what is left over at the end is no reason to go back
    for replica, _new in rolled:
        if replica.host is not None:
            args = absent_args(service, replica.name)
            planner.add("remove %s" % replica.name, replica.host, BACKENDS[service.backend].module, args, group="old " + replica.name, needs_all=True)
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
    planner = _planner(scene, service)
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
        names = {item.name for item in scene.alive() if item not in moving}
        staying = {server["name"]: server for server in scene.servers.get(balancer, ()) if server["name"] in names or is_pod(scene.name, server["name"])}
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
    planner = _planner(scene, service)
    planner.stops = ALL
    if isinstance(planner, PodPlanner):
        planner.end()
    for replica in scene.replicas:
        planner.remove(replica, group=replica.name)
    for balancer in scene.having:
        args = {"name": scene.name, "state": "absent"}
        title = "remove the address of %s" % scene.name
        planner.add(
            title, balancer, "load_balancer_service", args, before={"service": "present"}, after={"service": "absent"}, group=scene.name, needs_all=True
        )
    return planner.steps
