# SPDX-License-Identifier: Apache-2.0
"""What becomes of a service at one moment: a pure function of its policy, of what is known now, and of what was done before.

The same function decides live, in shadow and in a back-test. Its answer is a record that says what went in, what each rule wanted, which
limits applied and what comes of it; `explain` says that in sentences, of a moment at which nothing was done too.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from lepton_ai.hours import DAYS
from lepton_ai.scaling.outlook import TICK_SECONDS, Outlook
from lepton_ai.scaling.policy import Floor, Policy, Signal

RECENT = 20  # actions that a decision looks back on
LATENCY_STEP = 2.0  # times as many replicas at most, for a latency that is too high
ROUNDING = 1e-6  # of a replica
LAST = 0.01  # replicas: the last one stays until nobody has called for a while
OUTAGE_DROP = 0.5  # of the load within a few ticks, with errors or vanished targets: that is no quiet hour


class Sample(NamedTuple):
    """A signal's value as it was read: None where nothing usable came, for the reason in `trouble`."""

    value: float | None
    age: float = 0.0
    coverage: float = 1.0
    trouble: str = ""


class Action(NamedTuple):
    """A change that was asked for, by whom, and when (seconds since the epoch): replicas, and bigger ones for as many as they are worth."""

    when: float
    before: float
    after: float
    by: str = "policy"


class Pin(NamedTuple):
    """A number that a person has set, until when, and why."""

    replicas: int
    until: float
    by: str
    why: str


@dataclass(frozen=True)
class Situation:
    """What is known of a service now. `asked` is how many replicas are wanted, `ready` how many serve."""

    now: float
    asked: int
    ready: int
    samples: Mapping[str, Sample]
    outlooks: Mapping[str, Outlook] = field(default_factory=dict)  # of the signals that are learned from
    lead_seconds: float = 60.0
    actions: Sequence[Action] = ()  # of the past, the newest last
    room: Sequence[str] | None = None  # the host of each further replica that there is room for; None: nobody knows
    hours_today: float = 0.0  # of replicas, since midnight
    sessions: int = 0  # that load balancers have now; where no replica is, they wait
    cpus: float | None = None  # that each replica has, where that is known
    can_grow: bool = True  # whether replicas can be made bigger; it may just have failed
    can_shrink: bool = True  # and smaller, which nodes cannot while they run
    busy: str = ""  # what is under way, such as an update
    errors: float = 0.0  # share of answers
    vanished: float = 0.0  # share of targets
    per_host: Sequence[int] = ()  # how many serve on each host, where that is known
    before: float | None = None  # the load some minutes ago
    pin: Pin | None = None
    paused: str = ""
    zone: datetime.tzinfo | None = None


@dataclass(frozen=True)
class Decision:
    """One tick's record. `outcome` is grow, cut, hold or ask; `final` is the number that is wanted from now on, or asked for."""

    service: str
    when: float
    asked: int
    ready: int
    outcome: str
    reason: str
    raw: int
    final: int
    wants: dict[str, int]
    limits: tuple[str, ...]
    inputs: dict[str, dict[str, Any]]
    lead_seconds: float
    cost_change: float  # replica hours per day
    next_check: float
    without_a_host: int | None = None  # how many would serve if the host with most of them were lost
    cpus: float | None = None  # that each replica has now
    cpus_wanted: float | None = None  # and is to have, where that is what changes
    size: float = 1.0  # of a replica now, by one with as many CPUs as the policy's capacities are said for

    def record(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**self.__dict__, "limits": list(self.limits)}

    @property
    def acts(self) -> bool:
        """Return whether anything is to change."""
        return self.final != self.asked or self.cpus_wanted is not None

    @property
    def cuts(self) -> bool:
        """Return whether less is wanted than there is."""
        action = self.action()
        return action.after < action.before

    def action(self) -> Action:
        """Return what changes."""
        grown = 1.0 if self.cpus_wanted is None or not self.cpus else self.cpus_wanted / self.cpus
        return Action(self.when, self.asked * self.size, self.final * self.size * grown)


class Make(Protocol):
    """What makes a record of an outcome, its reason, the final number, and the CPUs of each replica where those change."""

    def __call__(self, outcome: str, reason: str, final: int, cpus: float | None = None) -> Decision: ...


def as_decision(record: Mapping[str, Any]) -> Decision:
    """Return the decision that a record is of; what else was kept with it is left out."""
    values = {each.name: record[each.name] for each in fields(Decision) if each.name in record}
    return Decision(**{**values, "limits": tuple(values["limits"])})


class Want(NamedTuple):
    """What one rule wants: at least `up`, and no fewer than `keep` for a cut to be worth it. Of replicas, which are whole ones in the end."""

    up: float
    keep: float
    why: str

    @property
    def replicas(self) -> int:
        return _ceil(self.up)

    @property
    def kept(self) -> int:
        return _ceil(self.keep)


def decide(policy: Policy, situation: Situation) -> Decision:
    """Return what the policy makes of a situation."""
    asked = situation.asked
    idle = _idle(policy, situation)
    missing = {signal.name: trouble for signal in policy.signals if _counts(signal, situation, idle=idle) and (trouble := _missing(signal, situation))}
    size = size_of(policy, situation.cpus)
    wants = {signal.name: _want(policy, signal, situation, size, idle=idle) for signal in policy.signals if not _missing(signal, situation)}
    raised = max((want.replicas for want in wants.values()), default=0)
    if not situation.asked and situation.sessions:
        wants["waiting"] = Want(1.0, 1.0, f"{situation.sessions} requests wait, and nothing serves")
        raised = max(raised, 1)
    floor = _floor(policy, situation)
    limits: list[str] = []

    def made(outcome: str, reason: str, final: int, cpus: float | None = None) -> Decision:
        change = (final * size_of(policy, cpus or situation.cpus) - asked * size) * 24.0
        return Decision(
            policy.service, situation.now, asked, situation.ready, outcome, reason, raised, final, {name: want.replicas for name, want in wants.items()},
            tuple(limits), _inputs(policy, situation, missing), situation.lead_seconds, change, situation.now + TICK_SECONDS,
            situation.ready - max(situation.per_host) if situation.per_host else None, situation.cpus if policy.vertical else None, cpus, size,
        )  # fmt: skip

    if situation.paused:
        return made("hold", f"paused: {situation.paused}", asked)
    if situation.pin is not None and situation.now < situation.pin.until:
        pin = situation.pin
        why = f"pinned to {pin.replicas} by {pin.by} until {_clock(pin.until, situation)}: {pin.why}"
        return made("hold" if pin.replicas == asked else "grow" if pin.replicas > asked else "cut", why, pin.replicas)

    least = max(policy.min_replicas, floor.replicas if floor else 0)
    target = _spared(policy, situation, max(raised, least))
    capped = f"max_replicas {policy.max_replicas}: {target} are wanted"
    if asked > policy.max_replicas:
        limits += [capped] if target > policy.max_replicas else []
        return made("cut", f"max_replicas is {policy.max_replicas}", policy.max_replicas)
    if target <= asked:
        return _cut(policy, situation, least, wants, missing, limits, made)
    why = _why_up(wants, raised, floor, least)
    bigger = None if _spared(policy, situation, least) > asked else _bigger(policy, situation, [want.up for want in wants.values()])
    if bigger is not None:
        return _resize(policy, situation, bigger, limits, made, why)
    if target > policy.max_replicas:
        limits.append(capped)
        target = policy.max_replicas
    return _grow(policy, situation, target, limits, made, why) if target > asked else made("hold", f"{why}, and there may be no more", asked)


def _spared(policy: Policy, situation: Situation, needed: int) -> int:
    """Return how many there must be so that `needed` are left when one host is lost, spread as evenly as new ones are."""
    if not policy.survive_host_loss or not needed:
        return needed
    hosts = max(2, len(situation.per_host))
    return next(count for count in itertools.count(needed + 1) if count - math.ceil(count / hosts) >= needed)


def _grow(policy: Policy, situation: Situation, target: int, limits: list[str], made: Make, why: str) -> Decision:
    asked = situation.asked
    if policy.max_step_up is not None and target - asked > policy.max_step_up:
        limits.append(f"max_step_up {policy.max_step_up}: {target} are wanted")
        target = asked + policy.max_step_up
    if situation.room is not None and target - asked > len(situation.room):
        on = f" on {' and '.join(sorted(set(situation.room)))}" if situation.room else ""
        limits.append(f"the hosts have room for {len(situation.room)} more{on}, and {target - asked} are wanted")
        target = asked + len(situation.room)
    ask = policy.approval.grow_alone is not None and target - asked > policy.approval.grow_alone
    if ask:
        limits.append(f"more than {policy.approval.grow_alone} more at once are asked for")
    beyond = _beyond_budget(policy, situation, target * size_of(policy, situation.cpus), limits)
    if beyond == "freeze":
        return made("hold", f"{why}, and the budget is spent", asked)
    if target <= asked:
        return made("hold", f"{why}, and there is no room", asked)
    return made("ask" if ask or beyond == "ask" else "grow", why, target)


def _resize(policy: Policy, situation: Situation, cpus: float, limits: list[str], made: Make, why: str) -> Decision:
    """Bigger replicas in place of more."""
    more = situation.asked * (size_of(policy, cpus) - size_of(policy, situation.cpus))
    ask = policy.approval.grow_alone is not None and more > policy.approval.grow_alone + ROUNDING
    if ask:
        limits.append(f"what is worth more than {policy.approval.grow_alone} more at once is asked for")
    beyond = _beyond_budget(policy, situation, situation.asked * size_of(policy, cpus), limits)
    if beyond == "freeze":
        return made("hold", f"{why}, and the budget is spent", situation.asked)
    return made("ask" if ask or beyond == "ask" else "grow", why, situation.asked, cpus)


def _beyond_budget(policy: Policy, situation: Situation, worth: float, limits: list[str]) -> str:
    """Return what becomes of growth to what so many replicas are worth, "" where there is budget for it."""
    budget = policy.budget
    if budget is None or (foreseen := situation.hours_today + worth * _hours_left(situation)) <= budget.replica_hours_per_day:
        return ""
    limits.append(f"the budget of {budget.replica_hours_per_day:g} replica hours a day: with {worth:g} it would be {foreseen:.0f} ({budget.beyond})")
    return budget.beyond


def size_of(policy: Policy, cpus: float | None) -> float:
    """Return how much a replica with so many CPUs is worth: 1 is one with what the policy's capacities are said for."""
    return 1.0 if policy.vertical is None or cpus is None else cpus / policy.vertical.cpus


def _bigger(policy: Policy, situation: Situation, wanted: Sequence[float]) -> float | None:
    """Return how many CPUs each replica is to have in place of more replicas; None where they have all that they may have."""
    vertical, now = policy.vertical, situation.cpus
    if vertical is None or now is None or not situation.can_grow or not situation.asked:
        return None
    cpus = min(_cpus_for(policy, situation, wanted), vertical.max_cpus)
    if policy.max_step_up is not None:
        most = now + policy.max_step_up * vertical.cpus / situation.asked
        cpus = min(cpus, now + vertical.step * math.floor((most - now) / vertical.step + ROUNDING))
    return cpus if cpus > now else None


def _smaller(policy: Policy, situation: Situation, wanted: Sequence[float]) -> float | None:
    """Return how few CPUs are enough for each replica, None where no fewer are."""
    vertical, now = policy.vertical, situation.cpus
    if vertical is None or now is None or not situation.can_shrink or not situation.asked:
        return None
    cpus = max(_cpus_for(policy, situation, wanted), vertical.cpus)
    if policy.max_step_down is not None:
        least = now - policy.max_step_down * vertical.cpus / situation.asked
        cpus = max(cpus, now - vertical.step * math.floor((now - least) / vertical.step + ROUNDING))
    return cpus if situation.asked * (now - cpus) / vertical.cpus > policy.dead_band + ROUNDING else None


def _cpus_for(policy: Policy, situation: Situation, wanted: Sequence[float]) -> float:
    """Return how many CPUs each replica needs for the work of so many as they are now."""
    assert policy.vertical is not None
    assert situation.cpus is not None
    asked, vertical = situation.asked, policy.vertical
    left = max((count for count in range(1, asked + 1) if _spared(policy, situation, count) <= asked), default=asked)
    needed = situation.cpus * max(wanted, default=0.0) / left
    return vertical.cpus + vertical.step * _ceil((needed - vertical.cpus) / vertical.step)


def _cut(policy: Policy, situation: Situation, least: int, wants: Mapping[str, Want], missing: Mapping[str, str], limits: list[str], made: Make) -> Decision:
    """Fewer replicas, if all that speaks against it is silent."""
    asked = situation.asked
    if missing:
        return made("hold", f"nothing is cut while something is not known: {'; '.join(f'{name}: {why}' for name, why in missing.items())}", asked)
    keep = _spared(policy, situation, max([least, *(want.kept for want in wants.values())]))
    smaller = None if keep < asked else _smaller(policy, situation, [want.keep for want in wants.values()])
    if keep >= asked and smaller is None:
        wanting = max(wants.items(), key=lambda item: item[1].keep)
        return made("hold", "nothing to do" if least >= asked else f"{wanting[0]}: {wanting[1].why}", asked)
    would_do = f"{keep} would do" if smaller is None else f"{smaller:g} CPUs each would do"
    left = asked - 1 if smaller is None else asked * smaller / (situation.cpus or smaller)  # of what there is now, at most
    agreeing = sum(want.keep <= left + ROUNDING for want in wants.values())
    if agreeing < policy.evidence:
        limits.append(f"evidence: {agreeing} of {policy.evidence} signals agree")
        return made("hold", f"fewer would do for {agreeing} signals, and {policy.evidence} must agree", asked)
    if situation.busy:
        return made("hold", f"no cut while {situation.busy}", asked)
    outage = _outage(policy, situation)
    if outage:
        return made("hold", outage, asked)
    grown = next((action for action in reversed(situation.actions) if action.after > action.before), None)
    if grown is not None and situation.now - grown.when < policy.hold_seconds:
        minutes = (situation.now - grown.when) / 60
        return made("hold", f"{would_do}, and there was growth {minutes:.0f} min ago (hold {policy.hold_seconds / 60:g} min)", asked)
    if not keep and situation.sessions:
        return made("hold", f"nobody has called for a while, and {situation.sessions} requests are still under way", asked)
    if _reversals([*situation.actions, Action(situation.now, 1, 0)], situation.now, policy) > policy.flap_budget.reversals:
        limits.append(f"flap_budget: {policy.flap_budget.reversals} reversals in {policy.flap_budget.within_seconds / 60:g} min")
        return made("hold", f"{would_do}, and the direction has changed often enough", asked)
    why = "; ".join(f"{name}: {want.why}" for name, want in wants.items())
    if smaller is not None:
        return made(_or_ask("cut", 1 - left / asked, policy, limits), why, asked, smaller)
    target = keep
    if policy.max_step_down is not None and asked - target > policy.max_step_down:
        limits.append(f"max_step_down {policy.max_step_down}: {target} would do")
        target = asked - policy.max_step_down
    if target and asked - target <= policy.dead_band:
        return made("hold", f"{target} would do, which is within the dead band of {policy.dead_band}", asked)
    return made(_or_ask("cut", (asked - target) / asked, policy, limits), why, target)


def _or_ask(outcome: str, share: float, policy: Policy, limits: list[str]) -> str:
    """Return the outcome of a cut by such a share, or that people are asked."""
    if share <= policy.approval.cut_alone:
        return outcome
    limits.append(f"a cut of more than {policy.approval.cut_alone:.0%} is asked for")
    return "ask"


def _idle(policy: Policy, situation: Situation) -> bool:
    """Return whether nobody has called for so long that no replica is needed."""
    learned = [(signal.name, situation.outlooks.get(signal.name)) for signal in policy.signals if signal.kind in ("load", "utilisation")]
    quiet = [0.0 if outlook is None else outlook.quiet_seconds for _name, outlook in learned]
    return not policy.min_replicas and bool(quiet) and min(quiet) > 0 and min(quiet) >= policy.hold_seconds


def _counts(signal: Signal, situation: Situation, *, idle: bool) -> bool:
    """Return whether it matters that a signal is not known: replicas that are not there, or that nobody calls, have nothing to say."""
    if not situation.asked:
        return signal.kind == "load"
    return not idle or signal.kind in ("load", "utilisation")


def _missing(signal: Signal, situation: Situation) -> str:
    """Return why a signal says nothing now, "" where it does."""
    sample = situation.samples.get(signal.name, Sample(None, trouble="it was not asked"))
    if sample.value is None:
        return sample.trouble or "no sample"
    if not math.isfinite(sample.value) or sample.value < 0:
        return f"its value is {sample.value}"
    if sample.age > signal.max_age_seconds:
        return f"its newest sample is {sample.age:.0f} s old"
    if sample.coverage < signal.min_coverage:
        return f"only {sample.coverage:.0%} of its targets have a sample"
    return ""


def _want(policy: Policy, signal: Signal, situation: Situation, size: float, *, idle: bool) -> Want:
    value = situation.samples[signal.name].value or 0.0
    if signal.kind == "queue":
        up = situation.ready + value / signal.capacity if value > signal.capacity else 0.0
        return Want(up, 0.0, f"{value:g} wait, and {signal.capacity:g} may")
    if signal.kind == "latency":
        factor = min(LATENCY_STEP, value / signal.capacity)
        return Want(situation.ready * factor if factor > 1 else 0.0, 0.0, f"answers take {value:.2g} s, and {signal.capacity:g} is the objective")
    capacity = signal.capacity * size
    useful = capacity * policy.max_utilisation
    load = load_of(signal, value, situation.ready * size)
    outlook = situation.outlooks.get(signal.name, Outlook(load, load, load, 0.0))
    if idle or (not policy.min_replicas and not situation.asked and not load):  # what is expected wakes nobody
        return Want(0.0, 0.0, f"nobody has called for {round(outlook.quiet_seconds / 60, 1):g} min")
    up = max(outlook.peak, load) / useful
    share = load / (situation.ready * capacity) if situation.ready else math.inf
    known = f"as in {outlook.days:.0f} days before" if outlook.days else "not learned yet, so with a margin"
    growth = f"may be {outlook.peak:.3g} within {situation.lead_seconds:.0f} s ({known})"
    keep = max(up, outlook.keep / useful, LAST if not policy.min_replicas else 0.0)
    return Want(up, keep, f"{load:.3g} now is {share:.0%} of {situation.ready}, {growth}: that asks for {_ceil(up)}")


def _ceil(value: float) -> int:
    return math.ceil(value - ROUNDING)


def _why_up(wants: Mapping[str, Want], raised: int, floor: Floor | None, least: int) -> str:
    if raised < least:
        return f"at least {least} at this time" if floor is not None and floor.replicas == least else f"min_replicas {least}"
    name, want = max(wants.items(), key=lambda item: item[1].replicas)
    return f"{name}: {want.why}"


def _floor(policy: Policy, situation: Situation) -> Floor | None:
    """Return the highest floor that holds now."""
    if not policy.floors:
        return None
    local = datetime.datetime.fromtimestamp(situation.now, situation.zone)
    day, clock = DAYS[local.weekday()], local.strftime("%H:%M")
    holding = [floor for floor in policy.floors if day in floor.days and floor.begin <= clock < floor.end]
    return max(holding, key=lambda floor: floor.replicas, default=None)


def load_of(signal: Signal, value: float, worth: float) -> float:
    """Return a signal's value as load of all replicas together, which are worth so many of the first size."""
    return value * worth if signal.kind == "utilisation" else value


def _outage(policy: Policy, situation: Situation) -> str:
    """Return why less load is no reason to cut: it fell at once, and with errors or without targets."""
    told = ((signal, situation.samples[signal.name].value) for signal in policy.signals if signal.name in situation.outlooks)
    worth = situation.ready * size_of(policy, situation.cpus)
    now = max((load_of(signal, value, worth) for signal, value in told if value is not None), default=0.0)
    if situation.before and now < situation.before * OUTAGE_DROP and (situation.errors > 0 or situation.vanished > 0):
        return f"load fell to {now / situation.before:.0%} at once, with {situation.errors:.0%} errors and {situation.vanished:.0%} of the targets gone"
    if situation.vanished > 0:
        return f"{situation.vanished:.0%} of the targets are gone"
    return ""


def _reversals(actions: Sequence[Action], now: float, policy: Policy) -> int:
    recent = [action for action in actions if action.before != action.after and now - action.when <= policy.flap_budget.within_seconds]
    return sum((one.after > one.before) != (two.after > two.before) for one, two in pairwise(recent))


def _hours_left(situation: Situation) -> float:
    local = datetime.datetime.fromtimestamp(situation.now, situation.zone)
    return 24 - local.hour - local.minute / 60


def _clock(moment: float, situation: Situation) -> str:
    return datetime.datetime.fromtimestamp(moment, situation.zone).strftime("%a %H:%M")


def _inputs(policy: Policy, situation: Situation, missing: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for signal in policy.signals:
        sample = situation.samples.get(signal.name, Sample(None))
        shown: dict[str, Any] = {"value": sample.value, "age": sample.age, "coverage": sample.coverage}
        if signal.name in missing:
            shown["missing"] = missing[signal.name]
        if signal.name in situation.outlooks:
            shown.update(situation.outlooks[signal.name]._asdict())
        found[signal.name] = shown
    return found


def explain(decision: Decision) -> str:
    """Return a decision in two or three sentences."""
    change = f"{decision.asked} → {decision.final} ({decision.final - decision.asked:+d})"
    if decision.cpus_wanted is not None:
        change = f"{decision.cpus:g} → {decision.cpus_wanted:g} CPUs for each of {decision.asked}"
    heads = {
        "grow": f"{decision.service} {change}.",
        "cut": f"{decision.service} {change}.",
        "ask": f"{decision.service} would go {change}, and waits for a person's word.",
        "hold": f"{decision.service} stays at {decision.asked}, of which {decision.ready} serve.",
    }
    reason = decision.reason[:1].upper() + decision.reason[1:]
    limited = f" Limited by {'; '.join(decision.limits)}." if decision.limits else ""
    cost = f" That is {decision.cost_change:+.0f} replica hours a day." if decision.acts else ""
    left = decision.without_a_host
    lost = f" Without its fullest host {left or 'none'} would serve." if left is not None and decision.asked > 1 else ""
    return f"{heads[decision.outcome]} {reason}.{limited}{cost}{lost}"
