# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The steps of a service whose replicas are the pods of a Deployment. Pure. PRIVATE to the collection and to the Lepton bot.

Kubernetes places, starts, replaces and ends them, and the load balancers follow its EndpointSlices (see M(lepton.cloud.load_balancer_info)
for how far they are). So a plan says what is wanted to the one, and waits until the others have it.
"""

from __future__ import annotations

import re
from typing import Any

from ._planner import Planner
from ._service import Service, deployment_options

# Pods of a Deployment are called after it: NAME-REPLICASET-POD.
POD = r"-[a-z0-9]{1,10}-[a-z0-9]{5}"
ROLLOUT_SECONDS = 1500  # for all of its pods, within the time of an operation
FOLLOW_SECONDS = 60  # for a load balancer to have what the cluster has, HAProxy's own check included


def is_pod(service: str, server: str) -> bool:
    """Return whether a server of a service is a pod of its Deployment, by its name."""
    return re.fullmatch(re.escape(service) + POD, server) is not None


class PodPlanner(Planner):
    """Collects the steps of one plan."""

    def up(self, count: int) -> None:
        """Deploy so many pods; where they do not come up, or not into the load balancers, nothing of them is left."""
        self._deploy(count)
        self._followed(count)
        if self.scene.deployment is None:
            self.end(undo=True)

    def mend(self, target: int, _other: object = ()) -> None:
        """Have the Deployment be as it is wanted. What becomes of its pods after that is Kubernetes' to mend."""
        live = self.scene.deployment
        if live is None or live["image"] != self.service.image:
            self._deploy(target)
        elif live["replicas"] != target:
            args = {"name": self.scene.name, "replicas": target, "wait_seconds": ROLLOUT_SECONDS}
            self._deployment("have %d pods" % target, args, before={"replicas": live["replicas"]}, after={"replicas": target})
        else:
            return
        self._followed(target)

    def roll(self, count: int, *, again: bool) -> None:
        """Roll out the service's declaration; what was declared before comes back where that fails."""
        live, before = self.scene.deployment, self.scene.wanted
        if again and live is not None and before == self.service and live["image"] == self.service.image:
            self._deployment("make all pods anew", {"name": self.scene.name, "state": "restarted", "wait_seconds": ROLLOUT_SECONDS})
        else:
            self._deploy(count)
        self._followed(count)
        if live is not None and before is not None:
            self._deploy(live["replicas"], before, undo=True)

    def end(self, *, undo: bool = False) -> None:
        """Delete the Deployment, whose pods serve on until the load balancers have let go of them."""
        live = self.scene.deployment
        if undo or live is not None:
            shown = {} if undo or live is None else {"image": live["image"]}
            args = {"name": self.scene.name, "state": "absent", "wait_seconds": ROLLOUT_SECONDS}
            after = dict.fromkeys(shown)
            self._deployment("end the pods, and delete the deployment", args, before=shown, after=after, undo=undo)
        self._followed(0, undo=undo)

    def _deploy(self, count: int, service: Service | None = None, *, undo: bool = False) -> None:
        wanted, live = service or self.service, self.scene.deployment
        args: dict[str, Any] = {**(wanted.deployment or {}), **deployment_options(wanted), "name": self.scene.name, "replicas": count, "complete": True}
        args.update(rollback_on_failure=True, wait_seconds=ROLLOUT_SECONDS)
        now = {"image": None, "replicas": None} if live is None else {"image": live["image"], "replicas": live["replicas"]}
        after = {"image": wanted.image, "replicas": count}
        differing = [] if undo else [field for field in after if now[field] != after[field]]
        title = "deploy %s%s" % (wanted.image, " again" if undo else "")
        self._deployment(title, args, before={field: now[field] for field in differing}, after={field: after[field] for field in differing}, undo=undo)

    def _deployment(self, title: str, args: dict[str, Any], *, before: Any = None, after: Any = None, undo: bool = False) -> None:
        self.add(title, str(self.service.cluster), "model_deployment", args, before=before, after=after, group=self.scene.name, undo=undo)

    def _followed(self, count: int, *, undo: bool = False) -> None:
        """Wait until so many pods get requests at every load balancer."""
        for balancer in self.scene.balancers:
            title = "see that %d pods get requests" % count
            args = {"name": self.scene.name, "pods": count, "wait_seconds": FOLLOW_SECONDS + self.service.drain_seconds}
            self.add(title, balancer, "load_balancer_info", args, group=self.scene.name, undo=undo)
