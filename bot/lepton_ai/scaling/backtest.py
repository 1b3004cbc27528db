# SPDX-License-Identifier: Apache-2.0
"""Replaying load through a policy, and through the rules of others: what would have been too few, what it would have cost. Pure.

The policy is asked by the very function that decides live. A replica is useful `lead` seconds after it was asked for, and is paid for from
then on when it was asked for. One too busy is a violation: load above `max_utilisation` of the capacity that is ready.
"""

from __future__ import annotations

import datetime
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lepton_ai.scaling.decision import RECENT, Action, Decision, Sample, Situation, decide
from lepton_ai.scaling.outlook import TICK_SECONDS, Array, LoadHistory
from lepton_ai.scaling.peers import Rule
from lepton_ai.scaling.policy import Policy

FLAP_SECONDS = 1800
SIGNAL = "load"
UTC = datetime.UTC
Step = Callable[[float, float | None, int, int], int]  # now, load (None: missing), ready, asked → wanted


@dataclass(frozen=True)
class Replay:
    """One rule over one history: how many replicas were asked for and ready at each tick, and what was done."""

    name: str
    asked: Array
    ready: Array
    actions: list[Action]


@dataclass(frozen=True)
class Report:
    """What came of it. `violations` and `unmet` are shares of time and of load, `cost` is replica hours by those of perfect foresight."""

    name: str
    violations: float
    unmet: float
    replica_hours: float
    cost: float
    actions_per_day: float
    reversals_per_day: float


def replay(name: str, loads: Sequence[float | None], step: Step, *, lead_seconds: float, begin: int) -> Replay:
    """Have a rule scale a service whose load this was, tick by tick."""
    asked = ready = begin
    starting: deque[list[float]] = deque()  # [ready at, how many]
    count = len(loads)
    all_asked, all_ready = np.zeros(count), np.zeros(count)
    actions: list[Action] = []
    for tick, load in enumerate(loads):
        now = tick * TICK_SECONDS
        while starting and starting[0][0] <= now:
            ready += int(starting.popleft()[1])
        all_asked[tick], all_ready[tick] = asked, ready
        wanted = step(now, load, ready, asked)
        if wanted > asked:
            starting.append([now + lead_seconds, wanted - asked])
        elif wanted < asked:
            less = asked - wanted
            while less and starting:  # those that do not serve yet go first
                some = min(less, int(starting[-1][1]))
                starting[-1][1] -= some
                less -= some
                if not starting[-1][1]:
                    starting.pop()
            ready -= less
        if wanted != asked:
            actions.append(Action(now, asked, wanted))
            asked = wanted
    return Replay(name, all_asked, all_ready, actions)


def by_policy(policy: Policy, capacity: float, lead_seconds: float, records: list[Decision] | None = None) -> Step:
    """Return the rule that a policy is, for one signal of kind load; with `records` each decision is kept there."""
    signal = policy.signals[0].model_copy(update={"name": SIGNAL, "kind": "load", "capacity": capacity})
    policy = policy.model_copy(update={"signals": [signal], "evidence": 1, "vertical": None, "max_replicas": _most(policy)})
    history = LoadHistory(lead_seconds=lead_seconds, hold_seconds=policy.hold_seconds, risk=policy.risk)
    actions: list[Action] = []

    def step(now: float, load: float | None, ready: int, asked: int) -> int:
        trouble = history.add(load)
        situation = Situation(
            now=now, asked=asked, ready=ready, samples={SIGNAL: Sample(None if trouble else load, trouble=trouble)}, outlooks={SIGNAL: history.outlook()},
            lead_seconds=lead_seconds, actions=actions[-RECENT:], zone=UTC, sessions=int(bool(load)),
        )  # fmt: skip
        decision = decide(policy, situation)
        if records is not None:
            records.append(decision)
        if decision.outcome in ("grow", "cut"):
            actions.append(decision.action())
            return decision.final
        return asked

    return step


def _most(policy: Policy) -> int:
    """Return the most that a service may have, in replicas of the first size: a back-test knows no others."""
    return policy.max_replicas if policy.vertical is None else int(policy.max_replicas * policy.vertical.max_cpus / policy.vertical.cpus)


def by_rule(rule: Rule, capacity: float) -> Step:
    """Return a peer's rule as a step. Where the metric is missing none of them acts, as HPA and KEDA do without a fallback."""

    def step(now: float, load: float | None, ready: int, asked: int) -> int:
        return asked if load is None else max(1, rule(now, load, ready, asked, capacity))

    return step


def needed(loads: Array, capacity: float, max_utilisation: float) -> Array:
    """Return how many replicas perfect foresight would have at each tick."""
    found: Array = np.maximum(1, np.ceil(loads / (max_utilisation * capacity) - 1e-9))
    return found


def bound(loads: Array, capacity: float, max_utilisation: float, lead_seconds: float) -> float:
    """Return the cost of an oracle that must ask for replicas as long before as everybody else, by that of one that need not."""
    ideal = needed(loads, capacity, max_utilisation)
    ahead = ideal.copy()
    for shift in range(1, int(lead_seconds / TICK_SECONDS) + 1):
        ahead[:-shift] = np.maximum(ahead[:-shift], ideal[shift:])
    return float(ahead.sum() / ideal.sum())


def judge(done: Replay, loads: Array, capacity: float, max_utilisation: float, *, after_seconds: float = 0.0) -> Report:
    """Count what came of a replay, of the ticks after `after_seconds`."""
    first = int(after_seconds / TICK_SECONDS)
    load, ready, asked = loads[first:], done.ready[first:] * capacity, done.asked[first:]
    days = len(load) * TICK_SECONDS / 86400
    actions = [action for action in done.actions if action.when >= after_seconds]
    flaps = sum((one.after > one.before) != (two.after > two.before) and two.when - one.when < FLAP_SECONDS for one, two in pairwise(actions))
    return Report(
        done.name,
        float((load > max_utilisation * ready).mean()),
        float(np.maximum(0, load - ready).sum() / max(load.sum(), 1e-9)),
        float(asked.sum() * TICK_SECONDS / 3600),
        float(asked.sum() / needed(load, capacity, max_utilisation).sum()),
        len(actions) / days,
        flaps / days,
    )


def first_size(load: float, capacity: float, max_utilisation: float) -> int:
    """Return how many replicas a replay begins with."""
    return max(1, math.ceil(load / (capacity * max_utilisation)) + 1)
