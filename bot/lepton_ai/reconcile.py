# SPDX-License-Identifier: Apache-2.0
"""What brings services back to what is wanted of them with nobody awake: look, and ask for `service reconcile` where something is amiss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import is_up

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.runs import leases
from lepton_ai.runs.model import HERE, NO_HOST

log = structlog.get_logger()
PRINCIPAL = "schedule:reconcile"  # needs a grant like everybody
LOOK, MEND = "service.list", "service.reconcile"
MOST_PATIENT = 32  # looks between two tries to mend what does not get well


def amiss(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what is wrong with services, by name, from what the load balancers answered."""
    found: dict[str, str] = {}
    versions: dict[str, set[int]] = {}
    for balancer, answer in sorted(answers.items()):
        for service in answer.get("services", ()):
            name = str(service["name"])
            versions.setdefault(name, set()).add(int(service["version"]))
            serving = [server["name"] for server in service["servers"] if server["state"] == "ready" and is_up(server)]
            down = sorted({server["name"] for server in service["servers"]} - set(serving))
            up = len(serving)
            if down or len(service["servers"]) != service["replicas"]:
                found[name] = f"{up} of {service['replicas']} replicas serve at {balancer}" + (f"; not: {', '.join(down)}" if down else "")
    for name, seen in versions.items():
        if len(seen) > 1:
            found.setdefault(name, "the load balancers do not agree on what is wanted")
    return found


@dataclass
class Reconciler:
    """Looks again and again. A service in the midst of a change is amiss for a while, so one that somebody holds the lock of does not
    count, and only what two looks found amiss is mended.
    """

    intake: Intake
    start: Callable[[str], None]  # what begins a run that was written
    seconds: float
    latest: Mapping[str, Mapping[str, Any]] | None = None  # what the load balancers told last, None before that
    _before: dict[str, str] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)  # in vain, one after the other
    _rests: dict[str, int] = field(default_factory=dict)  # looks until the next try

    async def work(self) -> None:
        """Look for ever; a site without load balancers has nothing to reconcile."""
        while self.seconds and LOOK in self.intake.runs.catalog.operations:
            await asyncio.sleep(self.seconds)
            try:
                if not await asyncio.to_thread(self.tick):
                    return
            except Exception:
                log.exception("services could not be looked at")

    def tick(self) -> bool:
        """Look once and ask for what is needed; return whether there are load balancers at all."""
        told = self.intake.runs.look(LOOK)
        if HERE in told.failures:
            log.warning("services could not be looked at", why=told.failures[HERE])
            return NO_HOST not in told.failures[HERE]
        self.latest = told.answers or self.latest
        held = {lock for lock, _owner in leases.locks(self.intake.runs.store)}
        found = amiss(told.answers)
        now = {name: reason for name, reason in found.items() if f"service/{name}" not in held}
        for name in list(self._tries):
            if name not in found:  # what is being mended is not well yet
                del self._tries[name], self._rests[name]
        for name, reason in now.items():
            if name not in self._before or self._resting(name):
                continue
            self._mend(name, reason)
        self._before = now
        return True

    def _resting(self, name: str) -> bool:
        rest = self._rests.get(name, 0)
        self._rests[name] = max(0, rest - 1)
        return rest > 0

    def _mend(self, name: str, reason: str) -> None:
        tries = self._tries[name] = self._tries.get(name, 0) + 1
        self._rests[name] = min(2**tries, MOST_PATIENT)
        operation = self.intake.runs.catalog.operations[MEND]
        key = f"{PRINCIPAL}:{name}:{int(time.time() / self.seconds)}"  # several services of one site look at the same things
        try:
            run, new = self.intake.submit_values(Caller(PRINCIPAL), operation, {"service": name}, key=key, why=reason)
        except LeptonError as error:
            log.warning("a service is amiss and was not mended", service=name, amiss=reason, error=str(error))
            return
        log.info("a service is amiss and is mended", service=name, amiss=reason, run=run.id)
        if new:
            self.start(run.id)
