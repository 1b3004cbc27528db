# SPDX-License-Identifier: Apache-2.0
"""A policy tried on the past beside others: what a terminal and Slack show of a back-test. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lepton_ai.errors import LeptonError
from lepton_ai.scaling.backtest import Replay, Report, Step, bound, by_policy, by_rule, first_size, judge, replay
from lepton_ai.scaling.decision import Decision, explain
from lepton_ai.scaling.outlook import TICK_SECONDS, Array
from lepton_ai.scaling.peers import fixed, hpa, keda
from lepton_ai.scaling.policy import FIRST_LEAD, Policy, Signal

PEER_TARGET = 0.7
LEAST_SECONDS = 86400.0  # of history that anything can be said of
SHOWN = 3  # limits, and decisions of each kind
HEADINGS = ("", "too busy", "unserved", "hours", "cost", "changes/d", "reversals/d")


@dataclass(frozen=True)
class Trial:
    """What came of it. `bound` is the least cost without a violation; the first of the replays and reports is the policy's own."""

    policy: Policy
    signal: Signal
    lead_seconds: float
    loads: Array
    missing: float  # share of the time
    bound: float
    replays: list[Replay]
    reports: list[Report]
    decisions: list[Decision] = field(repr=False)

    def title(self) -> str:
        """Return what it is a trial of, in a sentence or two."""
        days = f"{len(self.loads) * TICK_SECONDS / 86400:.1f} days, {self.missing:.1%} of them without a sample"
        return f"{self.policy.service}: {days}. A replica serves {self.lead_seconds:.0f} s after it is asked for."

    def table(self) -> str:
        """Return the reports as rows of a fixed width."""
        rows = [HEADINGS, *(_cells(report) for report in self.reports)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        return "\n".join(f"{row[0].ljust(widths[0])}  " + "  ".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)) for row in rows)

    def remarks(self) -> list[str]:
        """Return what limited the policy, what the least cost is, and examples of decisions."""
        limits = Counter(limit.partition(":")[0] for decision in self.decisions for limit in decision.limits)
        said = [f"Limited by {limit} in {count / len(self.decisions):.0%} of all moments." for limit, count in limits.most_common(SHOWN)]
        said.append(f"Nobody with this lead and without a violation can cost less than {self.bound:.2f}. Decisions such as:")
        for outcome in ("grow", "cut", "ask"):
            such = [each for each in self.decisions if each.outcome == outcome][-SHOWN:]
            said += [f"  day {decision.when / 86400:.2f}: {explain(decision)}" for decision in such]
        return said


def signal_of(policy: Policy) -> Signal:
    """Return the signal that a back-test replays, or raise LeptonError."""
    signal = next(signal for signal in policy.signals if signal.kind in ("load", "utilisation"))
    if signal.kind != "load":
        raise LeptonError(
            f"{signal.name} is of kind {signal.kind}, and how busy replicas would have been had there been others cannot be told from that",
            hint="a back-test needs a signal of kind load, such as requests per second",
        )
    return signal


def trial(policies: Sequence[Policy], past: Sequence[float | None], lead: float | None = None) -> Trial:
    """Replay the past through a policy, through further ones and through what others would do. Raises LeptonError for too little of it."""
    if len(past) * TICK_SECONDS < LEAST_SECONDS:
        raise LeptonError(f"there are {len(past) * TICK_SECONDS / 3600:.1f} hours of it, and a back-test needs a day")
    first = policies[0]
    signal, loads = signal_of(first), _whole(past)
    lead_seconds = lead if lead is not None else FIRST_LEAD if first.lead_seconds == "auto" else first.lead_seconds
    capacity, decisions = signal.capacity, list[Decision]()
    peak = int(np.ceil(loads.max() / (first.max_utilisation * capacity)))
    steps: list[tuple[str, Step]] = [("this policy", by_policy(first, capacity, lead_seconds, decisions))]
    steps += [(f"{other.service} (against)", by_policy(other, capacity, lead_seconds)) for other in policies[1:]]
    steps += [(f"{name} {PEER_TARGET:.0%}", by_rule(rule(PEER_TARGET), capacity)) for name, rule in (("HPA", hpa), ("KEDA", keda))]
    steps.append((f"always {peak}", by_rule(fixed(peak), capacity)))
    begin = min(max(first_size(float(loads[0]), capacity, first.max_utilisation), first.min_replicas), first.max_replicas)
    replays = [replay(name, past, step, lead_seconds=lead_seconds, begin=begin) for name, step in steps]
    half = len(past) * TICK_SECONDS / 2
    reports = [judge(done, loads, capacity, first.max_utilisation, after_seconds=half) for done in replays]
    missing = sum(load is None for load in past) / len(past)
    least = bound(loads, capacity, first.max_utilisation, lead_seconds)
    return Trial(first, signal, lead_seconds, loads, missing, least, replays, reports, decisions)


def _whole(past: Sequence[float | None]) -> Array:
    """Return the past with what is missing as the last value before it, since clients did not go away."""
    last = next((load for load in past if load is not None), 0.0)
    whole = []
    for load in past:
        last = last if load is None else load
        whole.append(last)
    return np.array(whole)


def _cells(report: Report) -> tuple[str, ...]:
    return (
        report.name, f"{report.violations:.3%}", f"{report.unmet:.4%}", f"{report.replica_hours:.0f}", f"{report.cost:.2f}",
        f"{report.actions_per_day:.0f}", f"{report.reversals_per_day:.1f}",
    )  # fmt: skip
