# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The program C(lepton-endpoints): it keeps a load balancer's servers as the EndpointSlices of its services have them.

PRIVATE to the collection: the role P(lepton.cloud.load_balancer#role) installs it. It runs beside HAProxy, so that pods come and go
without the bot. Slices are watched; what they tell is read anew at each change and every few seconds, so nothing depends on what was
missed. While a cluster does not answer, the servers stay as they are, and HAProxy's own checks go on.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any, Callable, Mapping

from ._balancer import BalancerError, Entry, plan_server
from ._cluster import Cluster
from ._endpoints import SERVICE_LABEL, endpoints, moves
from ._haproxy import Balancer
from ._manifest import MANAGER, OURS_LABEL, DeploymentError
from ._node import NodeError

AGAIN_SECONDS = 5  # between two looks at everything
TOGETHER_SECONDS = 0.02  # for changes that come in one go
SLICE = "EndpointSlice"
Say = Callable[[str], None]
SETTINGS: dict[str, Any] = {
    "kubeconfig": None, "context": None, "namespace": None, "api_server": None, "token": None, "ca_cert": None, "validate_certs": True, "request_seconds": 10,
}  # fmt: skip


class Follower:
    """One load balancer and the clusters that its services run on, by the name that the inventory has for them."""

    def __init__(self, balancer: Balancer, clusters: Mapping[str, Cluster], say: Say) -> None:
        self._balancer = balancer
        self._clusters = clusters
        self._say = say
        self._told: dict[str, str] = {}  # the trouble that was told last, by service

    def settle(self, only: set[str] | None = None) -> None:
        """Bring the servers of these services, of all where None, to what their clusters have now."""
        try:
            entries = self._balancer.entries()
        except (BalancerError, OSError) as error:
            self._trouble("", str(error))
            return
        for entry in entries:
            if entry.service.backend == "deployment" and (only is None or entry.name in only):
                try:
                    self._settle(entry)
                except (BalancerError, DeploymentError, NodeError, OSError) as error:
                    self._trouble(entry.name, str(error))
                else:
                    self._trouble(entry.name, "")

    def _settle(self, entry: Entry) -> None:
        cluster = self._clusters.get(str(entry.service.cluster))
        if cluster is None:
            raise DeploymentError("it runs on %s, and only these are known here: %s" % (entry.service.cluster, ", ".join(sorted(self._clusters))))
        wanted = endpoints(cluster.list(SLICE, "%s=%s" % (SERVICE_LABEL, entry.name)))
        for move in moves(entry.name, wanted, self._balancer.servers().get(entry.name, {})):
            with self._balancer.lock():
                now = self._balancer.entry(entry.name)
                if now is None:
                    return
                running = self._balancer.servers().get(entry.name, {})
                plan = plan_server(now, running, move.name, state=move.state, address=move.address, port=move.port, weight=None)
                if move.state == "absent":
                    self._balancer.end_sessions(entry.name, move.name)
                self._balancer.apply_server(now, move.name, plan)
            where = "" if move.address is None else " %s:%s" % (move.address, move.port)
            self._say("%s: %s%s is %s: %s" % (entry.name, move.name, where, move.state, move.why))

    def _trouble(self, service: str, text: str) -> None:
        """Say what is wrong once, and once that it is not any more."""
        before = self._told.get(service, "")
        if text != before:
            self._told[service] = text
            self._say("%s: %s" % (service or "the load balancer", text or "it is well again"))


def watch(cluster: Cluster, changed: queue.Queue[str], say: Say) -> None:
    """Put the names of services into the queue as their slices change, for ever."""
    while True:
        try:
            for _kind, event, thing in cluster.watch({SLICE: {"labelSelector": "%s=%s" % (OURS_LABEL, MANAGER)}}, lambda: time.monotonic() + 3600):
                name = "" if event == "GONE" else (thing["metadata"].get("labels") or {}).get(SERVICE_LABEL)
                if name:
                    changed.put(name)
        except DeploymentError as error:
            say("what changes is not watched, and looked at every %d s: %s" % (AGAIN_SECONDS, error))
        time.sleep(AGAIN_SECONDS)


def follow(balancer: Balancer, clusters: Mapping[str, Cluster], say: Say) -> None:
    """Follow for ever."""
    changed: queue.Queue[str] = queue.Queue()
    follower = Follower(balancer, clusters, say)
    for name, cluster in clusters.items():
        threading.Thread(target=watch, args=(cluster, changed, lambda text, name=name: say("%s: %s" % (name, text))), daemon=True).start()
    while True:
        follower.settle()
        again = time.monotonic() + AGAIN_SECONDS
        while (left := again - time.monotonic()) > 0:
            try:
                names = {changed.get(timeout=left)}
            except queue.Empty:
                break
            time.sleep(TOGETHER_SECONDS)
            while not changed.empty():
                names.add(changed.get())
            follower.settle(names)


def say(text: str) -> None:
    """Tell the journal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read the file that is named, {balancer: options, clusters: {NAME: options}} of the modules of these kinds, and follow."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: lepton-endpoints FILE")
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            given = json.load(file)
        clusters = {name: Cluster({**SETTINGS, **settings}) for name, settings in given["clusters"].items()}
        balancer = Balancer(**given["balancer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit("lepton-endpoints: %s: %s" % (sys.argv[1], error)) from error
    follow(balancer, clusters, say)


if __name__ == "__main__":
    main()
