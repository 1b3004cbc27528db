# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Collecting the steps of one plan of a service. Pure. PRIVATE to the collection and to the Lepton bot.

Growing is place, start, healthy, into the balancers; shrinking is out of the balancers (drained), then stop. All steps of one replica
are one group: where one of them fails, its own replica is taken back and no other.
"""

from __future__ import annotations

import zlib
from typing import Any, Sequence

from ._backends import BACKENDS, absent_args, healthy_args, start_args
from ._placement import PlacementError, place_replica
from ._scene import Replica, Scene
from ._service import DATA_DIR, Service, revision
from ._units import parse_size

Step = dict[str, Any]
PREFIX = "lepton.cloud."
ALL = "all"  # what a failure stops: every other step of the plan, and not only those of its own replica


def a_step(title: str, host: str, module: str, args: dict[str, Any], before: Any = None, after: Any = None, *, group: str = "", undo: bool = False) -> Step:
    """Return one step, as `_steps` describes it."""
    step: Step = {"title": title, "host": host, "module": PREFIX + module, "args": args, "before": before or {}, "after": after or {}}
    if group:
        step["group"] = group
    if undo:
        step["undo"] = True
    return step


class Planner:
    """Collects the steps of one plan, and gives away room as it goes."""

    def __init__(self, scene: Scene, service: Service) -> None:
        self.scene = scene
        self.service = service
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
        step = a_step(title, host, module, args, before, after, group=group, undo=undo)
        if group and self.stops and not undo:
            step["stops"] = self.stops
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
        self._rooms[host] = room.without(self.service.cpus or 0, memory, port)
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
            BACKENDS[self.service.backend].module,
            args,
            before={"state": "absent"},
            after={"state": "running", "image": self.service.image},
            group=replica.name,
        )

    def serve(self, replica: Replica, balancers: Sequence[str], *, watch: bool = False) -> None:
        """Wait until a replica is healthy, and have its load balancers send it requests."""
        waiting = healthy_args(self.service, replica.name)
        self.add("wait until %s is healthy" % replica.name, str(replica.host), BACKENDS[self.service.backend].module, waiting, group=replica.name)
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
            self.add(title, replica.host, BACKENDS[self.service.backend].module, args, before=before, after=after, group=group, undo=undo)

    def back(self, replica: Replica, *, group: str) -> None:
        """Take a replica in again that was taken out: what undoes that."""
        if replica.host is None:
            return
        again = healthy_args(self.service, replica.name)
        self.add("start %s again" % replica.name, replica.host, BACKENDS[self.service.backend].module, again, group=group, undo=True)
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
