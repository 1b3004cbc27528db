# SPDX-License-Identifier: Apache-2.0
"""What scales services while it runs: asks for the signals, has it decided, keeps the record, and asks for `service scale`.

The decision is `lepton_ai.scaling.decision.decide`, which back-tests call too. Here is only what it is made from.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._sizing import usual

from lepton_ai.access.approvals import ApprovalRule
from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import SCALE, Intake
from lepton_ai.metrics import Metrics
from lepton_ai.observing import Stands, errors_of, room_of_hosts, sample_of, stands
from lepton_ai.runs import leases
from lepton_ai.runs.model import HERE, Run, State
from lepton_ai.scaling.decision import RECENT, Action, Decision, Pin, Sample, Situation, as_decision, decide, explain, load_of, size_of
from lepton_ai.scaling.outlook import TICK_SECONDS, WINDOW, LoadHistory
from lepton_ai.scaling.policy import FIRST_LEAD, Policy, Signal, differences, load_policy
from lepton_ai.scaling.series import Reading, from_prometheus, now_from_prometheus

log = structlog.get_logger()
LOOK, RESIZE = "service.list", "service.resize"
WRITER = "scaling"  # the lock of whoever decides; another bot on the same database stands by
KEEP_SECONDS = 14 * 86400.0  # of records
MEASURED = 20  # starts that the lead is taken from
MINUTES_AGO = 20  # ticks: what load is compared with to tell an outage
LOOKED_BACK = 300  # records that actions are read from when a bot starts
MOST_PATIENT = 32  # ticks between two tries of what fails
WAKE_SECONDS = 3.0  # between two looks at whether somebody calls a service that has no replica
ASK_SECONDS = 1800.0  # within which people are asked for the same only once
Now = Callable[[str], Reading]
Past = Callable[[str, float, float], list[float | None]]


@dataclass
class _Watched:
    """A service with its policy, and what was learned and done."""

    policy: Policy
    text: str
    histories: dict[str, LoadHistory]
    samples: dict[str, Sample] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    asked: int | None = None  # how many replicas were wanted last
    size: float = 1.0  # and of which size
    under_way: tuple[str, dict[str, Any]] | None = None  # our run that has not ended, and the record of its decision
    leads: list[float] = field(default_factory=list)
    failures: int = 0  # one after the other
    not_before: dict[bool, float] = field(default_factory=dict)  # nothing is cut (True) or grows before, after that failed
    hours: tuple[int, float] = (0, 0.0)  # day, and replica hours of it
    resizes_from: float = 0.0  # no size is asked for before, after one could not be had

    def lead(self) -> float:
        """Return how long a replica takes from being asked for until it serves, in seconds."""
        if self.policy.lead_seconds != "auto":
            return self.policy.lead_seconds
        return usual(self.leads) if self.leads else FIRST_LEAD

    def in_vain(self, when: float, record: Mapping[str, Any]) -> None:
        """Wait longer and longer after what failed or was refused. Where a size could not be had, more replicas are the other way."""
        self.failures += 1
        failed = as_decision(record)
        self.not_before[failed.cuts] = when + TICK_SECONDS * min(2**self.failures, MOST_PATIENT)
        if failed.cpus_wanted is not None:
            self.resizes_from = when + max(self.policy.hold_seconds, TICK_SECONDS)


@dataclass
class Scaler:
    """Decides every tick for each policy of a folder, which is read anew when it changes."""

    intake: Intake
    start: Callable[[str], None]  # what begins a run that was written
    folder: Path
    now: Now
    past: Past
    metrics: Metrics = field(default_factory=Metrics)
    _holder: leases.Holder = field(default_factory=lambda: leases.process_holder(f"{WRITER}/{time.time_ns()}"))
    _watched: dict[Path, _Watched] = field(default_factory=dict)
    _told: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, intake: Intake, start: Callable[[str], None], folder: Path, prometheus: str, metrics: Metrics) -> Scaler:
        """Return one whose signals come from a Prometheus."""
        return cls(
            intake, start, folder, lambda promql: now_from_prometheus(prometheus, promql),
            lambda promql, begin, end: from_prometheus(prometheus, promql, begin, end), metrics,
        )  # fmt: skip

    async def work(self) -> None:
        """Decide for ever, at whole multiples of a tick, so that two services of one site decide on the same."""
        due = _next_tick(time.time())
        while True:
            rest = due - time.time()
            do, seconds = (self.wake, WAKE_SECONDS) if self._asleep() and rest > 2 * WAKE_SECONDS else (self.tick, max(0.0, rest))
            await asyncio.sleep(seconds)
            if do == self.tick:
                due = _next_tick(time.time())
            try:
                await asyncio.to_thread(do, time.time())
            except Exception:
                log.exception("services could not be scaled")

    def tick(self, when: float) -> list[Decision]:
        """Decide once for every policy that is not paused, and return what was decided."""
        self._read(when)
        watched = [each for each in self._watched.values() if each.policy.mode != "paused"]
        if not watched:
            return []
        if not self._writes():
            self._stand_by()
            return []
        told = self.intake.runs.look(LOOK)
        if HERE in told.failures:
            log.warning("nothing is scaled, since the load balancers could not be asked", why=told.failures[HERE])
        held = {lock for lock, _owner in leases.locks(self.intake.runs.store)}
        found = []
        for each in watched:
            try:
                decision = self._decide(each, when, told.answers, held)
            except Exception:  # of one service; others must not wait for it
                log.exception("a service could not be scaled", service=each.policy.service)
            else:
                found += [] if decision is None else [decision]
        return found

    def _asleep(self) -> list[_Watched]:
        return [each for each in self._watched.values() if each.policy.mode == "live" and each.asked == 0]

    def wake(self, when: float) -> None:
        """Decide between two ticks on what has no replica and is called. HAProxy tells nobody by itself that requests wait."""
        if not self._writes():
            return
        told = self.intake.runs.look(LOOK)
        for each in self._asleep():
            try:
                now = stands(each.policy.service, told.answers)
                self._follow(each, when)
                if now is not None and now.sessions and not now.asked and each.loads:
                    self._settle(each, when, now, 0, set(), between=True)
            except Exception:  # of one service; others must not sleep on for it
                log.exception("a service could not be woken", service=each.policy.service)

    def _writes(self) -> bool:
        """Return whether it is this bot that decides: one at a time does, and another goes on when that one's lease has ended."""
        store = self.intake.runs.store
        if not leases.try_acquire(store, self._holder, [WRITER]):
            return True
        self.intake.runs.clear_dead_leases()
        if not leases.try_acquire(store, self._holder, [WRITER]):
            return True
        leases.leave_queue(store, self._holder.owner)
        return False

    def _stand_by(self) -> None:
        """Forget what was learned: whoever takes over later begins with what is known then."""
        for each in self._watched.values():
            self.metrics.scaled_no_more(each.policy.service)
        self._watched.clear()

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
                    if before is not None and before.policy.service != policy.service:
                        self.metrics.scaled_no_more(before.policy.service)
                        before = None
                    self._watched[path] = self._begin(policy, text, when, before)
                    changes = [] if before is None else differences(before.policy, policy)
                    log.info("a policy is in force", service=policy.service, mode=policy.mode, policy=str(path), changes=changes)
                    if changes:
                        self.intake.runs.store.record("", f"policy:{policy.service}", "policy changed", {"changes": changes})
                self._told.pop(path, None)
            except (LeptonError, OSError, UnicodeDecodeError) as error:
                if self._told.get(path) != str(error):
                    self._told[path] = str(error)
                    log.error("a policy cannot be used", policy=str(path), why=str(error))

    def _begin(self, policy: Policy, text: str, when: float, before: _Watched | None) -> _Watched:
        """Return a service to watch, that has learned from what Prometheus knows and from the records of earlier bots."""
        watched = self._remembered(policy, text, when) if before is None else replace(before, policy=policy, text=text, histories={})
        for signal in policy.signals:
            if signal.kind in ("load", "utilisation"):
                watched.histories[signal.name] = LoadHistory(lead_seconds=watched.lead(), hold_seconds=policy.hold_seconds, risk=policy.risk)
                if signal.kind == "load":  # of how many replicas an earlier utilisation was is not known
                    self._learn(watched, signal, when)
        return watched

    def _remembered(self, policy: Policy, text: str, when: float) -> _Watched:
        """Return a service to watch with what the records of earlier bots say was done."""
        store = self.intake.runs.store
        records = list(reversed(store.scaling_records(policy.service, until=when, limit=LOOKED_BACK)))
        grown = list(reversed(store.scaling_records(policy.service, until=when, limit=MEASURED, outcomes=("grow",))))
        return _Watched(
            policy, text, {}, asked=records[-1]["asked"] if records else None,
            actions=[
                Action(late["when"], before, after)
                for early, late in pairwise(records) if (before := _worth(early)) != (after := _worth(late))
            ],
            leads=[record["stages"]["serving"] for record in grown if record.get("stages") and record["final"] > record["asked"]],
        )  # fmt: skip

    def _learn(self, watched: _Watched, signal: Signal, when: float) -> None:
        """Learn from what Prometheus knows of a signal's past."""
        try:
            for sample in self.past(signal.promql, when - 2 * WINDOW * TICK_SECONDS, when):
                watched.histories[signal.name].add(sample)
        except LeptonError as error:
            log.warning("a signal has no past to learn from", service=watched.policy.service, signal=signal.name, why=str(error))

    def _decide(self, watched: _Watched, when: float, answers: Mapping[str, Mapping[str, Any]], held: set[str]) -> Decision | None:
        policy, service = watched.policy, watched.policy.service
        now = stands(service, answers)
        if now is None:  # of nobody's making, or nobody could be asked
            for history in watched.histories.values():
                history.add(None)
            self.metrics.scaled_no_more(service)
            return None
        self._follow(watched, when)
        size = size_of(policy, now.declaration.get("cpus"))
        if watched.under_way is None:
            if watched.asked is not None and (watched.asked, watched.size) != (now.asked, size):  # by somebody else, or ours that failed
                watched.actions = [*watched.actions, Action(when, watched.asked * watched.size, now.asked * size, "somebody")][-RECENT:]
            watched.asked, watched.size = now.asked, size
        asked = now.asked if watched.asked is None else watched.asked
        watched.samples = {signal.name: self._sample(watched, signal, now.ready, size) for signal in policy.signals}
        watched.loads = [*watched.loads[-MINUTES_AGO:], max((history.outlook().level for history in watched.histories.values()), default=0.0)]
        _count_hours(watched, when, asked * size)
        return self._settle(watched, when, now, asked, held)

    def _settle(self, watched: _Watched, when: float, now: Stands, asked: int, held: set[str], *, between: bool = False) -> Decision:
        """Decide on what was observed last, do that, and keep the record; between two ticks only where something is to be done."""
        policy, service = watched.policy, watched.policy.service
        situation = Situation(
            now=when, asked=asked, ready=now.ready, samples=watched.samples, outlooks={name: each.outlook() for name, each in watched.histories.items()},
            lead_seconds=watched.lead(), actions=watched.actions, hours_today=watched.hours[1],
            busy=f"a run holds service/{service}" if f"service/{service}" in held else "", vanished=now.vanished, per_host=now.per_host,
            before=watched.loads[0], pin=self._pin(service, when), paused=self._frozen(service), zone=self.intake.runs.settings.zone,
            sessions=now.sessions, cpus=now.declaration.get("cpus"), can_grow=when >= watched.resizes_from,
            can_shrink=when >= watched.resizes_from and now.declaration.get("backend") != "node",
        )  # fmt: skip
        decision = self._decided(policy, situation, now)
        record = {**decision.record(), "mode": policy.mode, "acted": False, "run": ""}
        if policy.mode == "live" and decision.acts and when >= watched.not_before.get(decision.cuts, 0.0):
            run = self._act(watched, decision)
            if run is not None:  # a plan waits for somebody's word, by the policy's limits or by the site's rules
                record["run"], record["acted"] = run.id, not run.check
        if record["acted"]:
            watched.actions = [*watched.actions, decision.action()][-RECENT:]
            watched.asked, watched.under_way = decision.final, (record["run"], record)
            watched.size = size_of(policy, decision.cpus_wanted or situation.cpus)
        if decision.acts or not between:
            self.intake.runs.store.keep_decision(record, KEEP_SECONDS)
            self.metrics.decided(decision)
        return decision

    def _decided(self, policy: Policy, situation: Situation, now: Stands) -> Decision:
        """Decide, and once more with what only growth or only a cut makes it worth to ask."""
        decision = decide(policy, situation)
        if decision.final > decision.asked:
            room = room_of_hosts(policy.service, now.declaration, decision.final - decision.asked, self.intake.runs.look)
            return decide(policy, replace(situation, room=room))
        if decision.cuts:
            return decide(policy, replace(situation, errors=errors_of(policy.service, self.now)))
        return decision

    def _sample(self, watched: _Watched, signal: Signal, ready: int, size: float) -> Sample:
        sample = sample_of(signal, self.now(signal.promql), ready)
        if signal.name in watched.histories:
            good = sample.value is not None and math.isfinite(sample.value) and sample.value >= 0
            usable = good and sample.age <= signal.max_age_seconds and sample.coverage >= signal.min_coverage
            doubt = watched.histories[signal.name].add(load_of(signal, sample.value or 0.0, ready * size) if usable else None)
            if doubt and usable:
                return sample._replace(value=None, trouble=doubt)
        return sample

    def _pin(self, service: str, when: float) -> Pin | None:
        found = self.intake.runs.store.pinned(service, when)
        return None if found is None else Pin(found.replicas, found.until, found.principal, found.why)

    def _frozen(self, service: str) -> str:
        frozen = self.intake.runs.frozen(self.intake.runs.catalog.operations[SCALE], {"service": service, "replicas": 1})
        return "" if frozen is None else str(frozen)

    # -- acting --------------------------------------------------------------------------------------------------

    def _act(self, watched: _Watched, decision: Decision) -> Run | None:
        """Ask for the number that was decided on, or ask people about it, and return the run; None where that could not be."""
        policy, resize = watched.policy, decision.cpus_wanted is not None
        name, option, wanted = (RESIZE, "cpus", f"{decision.cpus_wanted:g}") if resize else (SCALE, "replicas", str(decision.final))
        operation, caller = self.intake.runs.catalog.operations[name], Caller(f"policy:{policy.service}")
        values = {"service": policy.service, option: wanted}
        if watched.under_way is not None or any(plan.principal == caller.principal for plan in self.intake.runs.store.open_plans()):
            return None  # one after the other; or somebody has been asked, and has not answered
        key, rule = f"{caller.principal}:{decision.asked}:{option}:{wanted}:{int(decision.when // TICK_SECONDS)}", None
        if decision.outcome == "ask":
            key = f"{caller.principal}:ask:{decision.asked}:{option}:{wanted}:{int(decision.when // ASK_SECONDS)}"
            rule = ApprovalRule(name=f"policy {policy.service}", approvers=policy.approval.approvers, expires_minutes=int(ASK_SECONDS / 60))
        try:
            run, new = self.intake.submit_values(caller, operation, values, key=key, why=explain(decision), own_rule=rule)
        except LeptonError as error:
            log.warning("a service was to be scaled and was not", service=policy.service, decision=explain(decision), error=str(error))
            watched.in_vain(decision.when, decision.record())
            return None
        log.info("a service is scaled" if not run.check else "people are asked whether to scale", decision=explain(decision), run=run.id)
        if new:
            self.start(run.id)
        return run

    def _follow(self, watched: _Watched, when: float) -> None:
        """Take note of our run that has ended, of how long its stages took, and so of how long replicas take to serve."""
        if watched.under_way is None:
            return
        run_id, record = watched.under_way
        try:
            run = self.intake.runs.store.run(run_id)
        except LeptonError:  # of a database that was moved away
            watched.under_way = None
            return
        if not run.state.final:
            return
        watched.under_way = None
        if run.state is not State.SUCCEEDED:
            watched.in_vain(when, record)
            return
        watched.failures = 0
        if run.started is not None and run.finished is not None:
            # A run ends when HAProxy itself has found the new replicas up.
            stages = {"begun": run.started - record["when"], "serving": run.finished - record["when"]}
            self.intake.runs.store.keep_decision({**record, "stages": stages}, KEEP_SECONDS)
            if record["final"] > record["asked"]:
                watched.leads = [*watched.leads, stages["serving"]][-MEASURED:]


def _next_tick(now: float) -> float:
    """Return the next whole multiple of a tick."""
    return now + TICK_SECONDS - now % TICK_SECONDS


def _count_hours(watched: _Watched, when: float, worth: float) -> None:
    """Add one more tick of what so many replicas are worth to the replica hours of this day."""
    day, hours = int(when // 86400), watched.hours[1]
    watched.hours = (day, (hours if watched.hours[0] == day else 0.0) + worth * TICK_SECONDS / 3600)


def _worth(record: Mapping[str, Any]) -> float:
    """Return how many replicas of the first size were wanted when a record was made; those of earlier versions know one size only."""
    return float(record["asked"] * record.get("size", 1.0))
