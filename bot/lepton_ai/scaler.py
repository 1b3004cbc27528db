# SPDX-License-Identifier: Apache-2.0
"""What scales services while it runs: asks for the signals, has it decided, keeps the record, and asks for `service scale`.

The decision is `lepton_ai.scaling.decision.decide`, which back-tests call too. Here is only what it is made from.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import is_up

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.metrics import Metrics
from lepton_ai.runs import leases
from lepton_ai.runs.model import HERE
from lepton_ai.scaling.decision import RECENT, Action, Decision, Sample, Situation, decide, explain
from lepton_ai.scaling.outlook import TICK_SECONDS, WINDOW, LoadHistory
from lepton_ai.scaling.policy import Policy, Signal, load_policy
from lepton_ai.scaling.series import from_prometheus, now_from_prometheus

log = structlog.get_logger()
LOOK, SCALE = "service.list", "service.scale"
KEEP_SECONDS = 14 * 86400.0  # of records
FIRST_LEAD = 60.0  # seconds, until it was measured
MEASURED = 20  # starts that the lead is taken from
LEAD_QUANTILE = 0.95
MINUTES_AGO = 20  # ticks: what load is compared with to tell an outage
Now = Callable[[str, float], tuple[float | None, str]]
Past = Callable[[str, float, float], list[float | None]]


@dataclass
class _Watched:
    """A service with its policy, and what was learned and done."""

    policy: Policy
    text: str
    histories: dict[str, LoadHistory]
    loads: list[float] = field(default_factory=list)
    growing: list[tuple[float, int]] = field(default_factory=list)  # asked when, and for how many, that are not all ready
    leads: list[float] = field(default_factory=list)
    hours: tuple[int, float] = (0, 0.0)  # day, and replica hours of it

    def lead(self) -> float:
        """Return how long a replica takes from being asked for until it serves, in seconds."""
        if self.policy.lead_seconds != "auto":
            return self.policy.lead_seconds
        if not self.leads:
            return FIRST_LEAD
        ordered = sorted(self.leads)
        return ordered[min(len(ordered) - 1, math.ceil(LEAD_QUANTILE * len(ordered)) - 1)]


@dataclass
class Scaler:
    """Decides every tick for each policy of a folder, which is read anew when it changes."""

    intake: Intake
    start: Callable[[str], None]  # what begins a run that was written
    folder: Path
    now: Now
    past: Past
    metrics: Metrics = field(default_factory=Metrics)
    _watched: dict[Path, _Watched] = field(default_factory=dict)
    _told: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, intake: Intake, start: Callable[[str], None], folder: Path, prometheus: str, metrics: Metrics) -> Scaler:
        """Return one whose signals come from a Prometheus."""
        return cls(
            intake, start, folder, lambda promql, age: now_from_prometheus(prometheus, promql, age),
            lambda promql, begin, end: from_prometheus(prometheus, promql, begin, end), metrics,
        )  # fmt: skip

    async def work(self) -> None:
        """Decide for ever, at whole multiples of a tick, so that two services of one site decide on the same."""
        while True:
            await asyncio.sleep(TICK_SECONDS - time.time() % TICK_SECONDS)
            try:
                await asyncio.to_thread(self.tick, time.time())
            except Exception:
                log.exception("services could not be scaled")

    def tick(self, when: float) -> list[Decision]:
        """Decide once for every policy that is not paused, and return what was decided."""
        self._read(when)
        watched = [each for each in self._watched.values() if each.policy.mode != "paused"]
        if not watched:
            return []
        told = self.intake.runs.look(LOOK)
        if HERE in told.failures:
            log.warning("nothing is scaled, since the load balancers could not be asked", why=told.failures[HERE])
            return []
        held = {lock for lock, _owner in leases.locks(self.intake.runs.store)}
        return [decision for each in watched if (decision := self._decide(each, when, told.answers, held)) is not None]

    def _read(self, when: float) -> None:
        """Take in policies that are new or have changed, and drop those that are gone; one that cannot be read leaves the old one in force."""
        paths = sorted(self.folder.glob("*.yml")) if self.folder.is_dir() else []
        for path in list(self._watched):
            if path not in paths or self._watched[path].policy.mode == "paused":
                self.metrics.scaled_no_more(self._watched[path].policy.service)
            if path not in paths:
                del self._watched[path]
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
                before = self._watched.get(path)
                if before is None or before.text != text:
                    policy = load_policy(path)
                    other = next((each for at, each in self._watched.items() if at != path and each.policy.service == policy.service), None)
                    if other is not None:
                        raise LeptonError(f"{path}: {policy.service} has a policy already, and one service has one")
                    self._watched[path] = self._begin(policy, text, when, before)
                    log.info("a policy is in force", service=policy.service, mode=policy.mode, policy=str(path))
                self._told.pop(path, None)
            except (LeptonError, OSError, UnicodeDecodeError) as error:
                if self._told.get(path) != str(error):
                    self._told[path] = str(error)
                    log.error("a policy cannot be used", policy=str(path), why=str(error))

    def _begin(self, policy: Policy, text: str, when: float, before: _Watched | None) -> _Watched:
        """Return a service to watch, that has learned from what Prometheus knows."""
        watched = _Watched(policy, text, {}, leads=[] if before is None else before.leads)
        for signal in policy.signals:
            if signal.kind in ("load", "utilisation"):
                history = LoadHistory(lead_seconds=watched.lead(), hold_seconds=policy.hold_seconds, risk=policy.risk)
                try:
                    for sample in self.past(signal.promql, when - 2 * WINDOW * TICK_SECONDS, when):
                        history.add(sample)
                except LeptonError as error:
                    log.warning("a signal has no past to learn from", service=policy.service, signal=signal.name, why=str(error))
                watched.histories[signal.name] = history
        return watched

    def _decide(self, watched: _Watched, when: float, answers: Mapping[str, Mapping[str, Any]], held: set[str]) -> Decision | None:
        policy = watched.policy
        sizes = _sizes(policy.service, answers)
        if sizes is None:
            return None
        asked, ready = sizes
        _measure(watched, when, ready)
        samples = {signal.name: self._sample(watched, signal) for signal in policy.signals}
        outlooks = {name: history.outlook() for name, history in watched.histories.items()}
        watched.loads = [*watched.loads[-MINUTES_AGO:], max((outlook.level for outlook in outlooks.values()), default=0.0)]
        store = self.intake.runs.store
        changes = store.scaling_records(policy.service, until=when, limit=RECENT, outcomes=("grow", "cut"))
        decision = decide(
            policy,
            Situation(
                now=when, asked=asked, ready=ready, samples=samples, outlooks=outlooks, lead_seconds=watched.lead(),
                actions=[Action(record["when"], record["asked"], record["final"]) for record in reversed(changes)],
                hours_today=_hours(watched, when, asked), busy=f"a run holds service/{policy.service}" if f"service/{policy.service}" in held else "",
                before=watched.loads[0], zone=self.intake.runs.settings.zone,
            ),
        )  # fmt: skip
        acting = policy.mode == "live" and decision.outcome in ("grow", "cut")
        if acting:
            acting = self._act(watched, decision)
        store.keep_decision({**decision.record(), "mode": policy.mode, "acted": acting}, KEEP_SECONDS)
        self.metrics.decided(decision)
        return decision

    def _sample(self, watched: _Watched, signal: Signal) -> Sample:
        value, trouble = self.now(signal.promql, signal.max_age_seconds)
        if signal.name in watched.histories:
            doubt = watched.histories[signal.name].add(value)
            trouble = trouble or doubt
        return Sample(None if trouble else value, trouble=trouble)

    def _act(self, watched: _Watched, decision: Decision) -> bool:
        """Ask for the number that was decided on, and return whether that could be asked for."""
        policy, operation = watched.policy, self.intake.runs.catalog.operations[SCALE]
        values = {"service": policy.service, "replicas": str(decision.final)}
        key = f"policy:{policy.service}:{int(decision.when // TICK_SECONDS)}"
        try:
            run, new = self.intake.submit_values(Caller(f"policy:{policy.service}"), operation, values, key=key, why=explain(decision))
        except LeptonError as error:
            log.warning("a service was to be scaled and was not", service=policy.service, decision=explain(decision), error=str(error))
            return False
        log.info("a service is scaled", service=policy.service, decision=explain(decision), run=run.id)
        if new:
            self.start(run.id)
            if decision.outcome == "grow":
                watched.growing.append((decision.when, decision.final))
        return True


def _sizes(service: str, answers: Mapping[str, Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return how many replicas are wanted, and how many serve at the load balancer that has fewest; None where there is no such service."""
    entries = [entry for answer in answers.values() for entry in answer.get("services", ()) if entry["name"] == service]
    if not entries:
        return None
    newest = max(entries, key=lambda entry: int(entry["version"]))
    serving = min(sum(server["state"] == "ready" and is_up(server) for server in entry["servers"]) for entry in entries)
    return int(newest["replicas"]), serving


def _measure(watched: _Watched, when: float, ready: int) -> None:
    """Take note of how long those replicas took that serve by now."""
    done = [asked for asked, count in watched.growing if ready >= count]
    watched.growing = [(asked, count) for asked, count in watched.growing if ready < count]
    watched.leads = [*watched.leads, *(when - asked for asked in done)][-MEASURED:]


def _hours(watched: _Watched, when: float, asked: int) -> float:
    """Return the replica hours of this day so far, with one more tick of so many replicas."""
    day, hours = int(when // 86400), watched.hours[1]
    watched.hours = (day, (hours if watched.hours[0] == day else 0.0) + asked * TICK_SECONDS / 3600)
    return watched.hours[1]
