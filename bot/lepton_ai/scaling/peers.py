# SPDX-License-Identifier: Apache-2.0
"""How others would have scaled: models of their published rules, to compare a policy with. Pure. Sources stand with each.

Each is a function that makes a rule, and a rule takes (now, load, ready, asked, capacity of a replica) and returns how many are wanted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from lepton_ai.scaling.outlook import TICK_SECONDS

Rule = Callable[[float, float, int, int, float], int]
TOLERANCE = 0.1
STABLE_SECONDS = 300.0
MINUTE = int(60 / TICK_SECONDS)


def hpa(target: float) -> Rule:
    """Kubernetes' HorizontalPodAutoscaler with its defaults, on the share of each pod's capacity in use.

    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details: pods that are not ready count as idle
    when there are to be more, a tolerance of 10 %, the highest wish of five minutes when there are to be fewer, at most twice as many or
    four more in 15 s.
    """
    recent: deque[tuple[float, int]] = deque()

    def rule(now: float, load: float, ready: int, asked: int, capacity: float) -> int:
        ratio = load / (max(1, ready) * capacity * target)
        want = asked if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * max(1, ready))
        if ratio > 1 and asked > ready:
            with_idle = load / (asked * capacity * target)
            want = math.ceil(with_idle * asked) if with_idle > 1 + TOLERANCE else asked
        return _stabilised(recent, now, want, asked)

    return rule


def keda(target: float) -> Rule:
    """KEDA: an external metric, read every 30 s, for an HPA by average value. https://keda.sh/docs/latest/reference/scaledobject-spec/."""
    recent: deque[tuple[float, int]] = deque()
    read: list[tuple[float, float]] = []

    def rule(now: float, load: float, _ready: int, asked: int, capacity: float) -> int:
        if not read or now - read[0][0] >= 30:
            read[:] = [(now, load)]
        value = read[0][1]
        ratio = value / (asked * capacity * target)
        return _stabilised(recent, now, asked if abs(1 - ratio) <= TOLERANCE else math.ceil(value / (capacity * target)), asked)

    return rule


def _stabilised(recent: deque[tuple[float, int]], now: float, want: int, asked: int) -> int:
    recent.append((now, max(1, want)))
    while recent[0][0] < now - STABLE_SECONDS:
        recent.popleft()
    highest = max(wanted for _when, wanted in recent)
    return min(asked, highest) if want < asked else min(want, max(2 * asked, asked + 4))


def kpa(target: float) -> Rule:
    """Knative's pod autoscaler: a minute's mean, and in panic (twice what is ready) never fewer. knative/serving, pkg/autoscaler/scaling."""
    recent: deque[float] = deque(maxlen=MINUTE)
    panic = {"until": -1.0, "most": 0.0}

    def rule(now: float, load: float, ready: int, asked: int, capacity: float) -> int:
        recent.append(load)
        stable = max(math.ceil(sum(recent) / len(recent) / (capacity * target)), ready // 2)
        at_once = math.ceil(load / (capacity * target))
        if ready and at_once / ready >= 2:
            panic["until"] = now + 60
        if now < panic["until"]:
            panic["most"] = max(panic["most"], at_once, asked)
            return int(panic["most"])
        panic["most"] = 0.0
        return max(1, stable)

    return rule


def target_tracking(target: float) -> Rule:
    """AWS target tracking: out after three minutes above the target, in after fifteen below nine tenths of it, five minutes of cooldown."""
    minutes: deque[float] = deque(maxlen=15)
    ticks: list[float] = []
    free = {"at": -math.inf}

    def rule(now: float, load: float, ready: int, asked: int, capacity: float) -> int:
        ticks.append(load / (max(1, ready) * capacity))
        if len(ticks) < MINUTE:
            return asked
        minutes.append(sum(ticks) / len(ticks))
        ticks.clear()
        last = list(minutes)
        want = asked
        if len(last) >= 3 and min(last[-3:]) > target:
            want = max(asked, math.ceil(ready * last[-1] / target))
        elif len(last) == minutes.maxlen and max(last) < 0.9 * target:
            want = min(asked, math.ceil(ready * max(last) / target))
        if want == asked or now < free["at"]:
            return asked
        free["at"] = now + 300
        return max(1, want)

    return rule


def alert_step(high: float = 0.8, low: float = 0.5) -> Rule:
    """What ChatOps articles show: an alert after five minutes (and 30 s of group_wait) adds one, another takes one away, five minutes of rest."""
    since = {"high": 0.0, "low": 0.0, "free": -math.inf}

    def rule(now: float, load: float, ready: int, asked: int, capacity: float) -> int:
        share = load / (max(1, ready) * capacity)
        since["high"] = since["high"] + TICK_SECONDS if share > high else 0.0
        since["low"] = since["low"] + TICK_SECONDS if share < low else 0.0
        step = 1 if since["high"] >= 330 else -1 if since["low"] >= 330 and asked > 1 else 0
        if not step or now < since["free"]:
            return asked
        since["free"] = now + 300
        return asked + step

    return rule


def fixed(replicas: int) -> Rule:
    """The same number always."""
    return lambda _now, _load, _ready, _asked, _capacity: replicas
