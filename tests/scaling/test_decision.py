# SPDX-License-Identifier: Apache-2.0
"""One decision: what grows, what cuts, and above all what does not. Pure."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from lepton_ai.scaling.decision import Action, Decision, Pin, Sample, Situation, decide, explain
from lepton_ai.scaling.outlook import Outlook
from lepton_ai.scaling.policy import Policy

NOON = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC).timestamp()  # a Friday
LOAD = {"name": "load", "kind": "load", "capacity": 10}
ASKED = {"approval": {"approvers": ["a"]}}
BASE: dict[str, Any] = {"service": "chat", "min_replicas": 1, "max_replicas": 10, "signals": [LOAD]}


def decided(*, load: float = 20, peak: float | None = None, keep: float | None = None, policy: dict[str, Any] | None = None, **situation: Any) -> Decision:
    outlook = Outlook(load, peak or load, keep or peak or load, 7.0)
    given: dict[str, Any] = {
        "now": NOON, "asked": 4, "ready": 4, "samples": {"load": Sample(load)}, "outlooks": {"load": outlook}, "zone": datetime.UTC, **situation,
    }  # fmt: skip
    return decide(Policy.model_validate({**BASE, **(policy or {})}), Situation(**given))


def test_growth_goes_to_what_is_expected_before_more_can_be_there() -> None:
    decision = decided(load=35, peak=60)
    assert (decision.outcome, decision.final, decision.wants) == ("grow", 7, {"load": 7})
    text = explain(decision)
    assert text.startswith("chat 4 → 7 (+3). Load: 35 now is 88% of 4, may be 60 within 60 s (as in 7 days before): that asks for 7.")
    assert "+72 replica hours a day" in text
    assert json.loads(json.dumps(decision.record()))["final"] == 7


def test_a_cut_keeps_what_may_be_wanted_soon() -> None:
    assert (decided(load=10, keep=17).outcome, decided(load=10, keep=17).final) == ("cut", 2)
    held = decided(load=10, peak=12, keep=36)
    assert (held.outcome, held.final) == ("hold", 4)


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (Sample(None, trouble="Prometheus does not answer"), "Prometheus does not answer"),
        (Sample(10, age=300), "its newest sample is 300 s old"),
        (Sample(10, coverage=0.5), "only 50% of its targets have a sample"),
        (Sample(float("nan")), "its value is nan"),
        (Sample(float("inf")), "its value is inf"),
        (Sample(-1), "its value is -1"),
    ],
)
def test_nothing_is_cut_nor_grown_on_what_is_not_known(sample: Sample, said: str) -> None:
    decision = decided(load=10, samples={"load": sample})
    assert (decision.outcome, decision.final) == ("hold", 4)
    assert said in decision.reason
    assert said in decision.inputs["load"]["missing"]


def test_one_signal_that_is_missing_does_not_keep_another_from_growing() -> None:
    policy = {"signals": [LOAD, {"name": "cpu", "kind": "utilisation"}]}
    samples = {"load": Sample(None, trouble="gone"), "cpu": Sample(0.95)}
    decision = decided(policy=policy, samples=samples, outlooks={"cpu": Outlook(3.8, 5.0, 5.0, 1.0)})
    assert (decision.outcome, decision.final) == ("grow", 6)
    low = decided(policy=policy, samples={**samples, "cpu": Sample(0.1)}, outlooks={"cpu": Outlook(0.4, 0.5, 0.5, 1.0)})
    assert (low.outcome, low.final) == ("hold", 4)


def test_an_outage_is_no_quiet_hour() -> None:
    assert "with 40% errors" in decided(load=5, before=30.0, errors=0.4).reason
    assert "25% of the targets are gone" in decided(load=10, vanished=0.25).reason
    assert decided(load=5, before=30.0).outcome == "cut"


def test_no_cut_so_soon_after_growth_nor_while_an_update_runs() -> None:
    grown = [Action(NOON - 600, 3, 4)]
    assert "there was growth 10 min ago (hold 30 min)" in decided(load=10, actions=grown).reason
    assert decided(load=10, actions=[Action(NOON - 1900, 3, 4)]).outcome == "cut"
    assert decided(load=10, busy="an update is under way").reason == "no cut while an update is under way"


def test_the_direction_changes_only_so_often() -> None:
    policy = {"flap_budget": {"reversals": 1, "within_seconds": 7200}, "hold_seconds": 0}
    flaps = [Action(NOON - 3000, 4, 5), Action(NOON - 2000, 5, 4), Action(NOON - 1000, 3, 4)]
    held = decided(load=10, actions=flaps, policy=policy)
    assert (held.outcome, held.limits) == ("hold", ("flap_budget: 1 reversals in 120 min",))
    assert decided(load=90, actions=flaps, policy=policy).outcome == "grow"


@pytest.mark.parametrize(
    ("policy", "situation", "outcome", "final", "limit"),
    [
        ({}, {"load": 200}, "grow", 10, "max_replicas 10: 23 are wanted"),
        ({"min_replicas": 6}, {"load": 1}, "grow", 6, ""),
        ({"max_step_up": 2}, {"load": 80}, "grow", 6, "max_step_up 2: 9 are wanted"),
        ({"max_step_down": 1}, {"load": 1}, "cut", 3, "max_step_down 1: 1 would do"),
        ({"dead_band": 1}, {"load": 25}, "hold", 4, ""),
        ({"max_replicas": 3}, {"load": 200}, "cut", 3, "max_replicas 3: 23 are wanted"),
        ({}, {"load": 80, "room": ("h2",)}, "grow", 5, "the hosts have room for 1 more on h2, and 5 are wanted"),
        ({}, {"load": 80, "room": ()}, "hold", 4, "the hosts have room for 0 more"),
        ({"approval": {"grow_alone": 2, "approvers": ["a"]}}, {"load": 80}, "ask", 9, "more than 2 more at once are asked for"),
        ({"approval": {"cut_alone": 0.3, "approvers": ["a"]}}, {"load": 1}, "ask", 1, "a cut of more than 30% is asked for"),
        (
            {"budget": {"replica_hours_per_day": 100}, "approval": {"approvers": ["a"]}},
            {"load": 80, "hours_today": 50.0},
            "ask",
            9,
            "with 9 it would be 158 (ask)",
        ),
        ({"budget": {"replica_hours_per_day": 100, "beyond": "freeze"}}, {"load": 80, "hours_today": 50.0}, "hold", 4, "(freeze)"),
        ({"budget": {"replica_hours_per_day": 100, "beyond": "warn"}}, {"load": 80, "hours_today": 50.0}, "grow", 9, "(warn)"),
        ({"floors": [{"days": ["fri"], "begin": "08:00", "end": "20:00", "replicas": 6}]}, {"load": 1}, "grow", 6, ""),
        ({"floors": [{"days": ["sat"], "begin": "08:00", "end": "20:00", "replicas": 6}]}, {"load": 1}, "cut", 1, ""),
        ({"signals": [LOAD, {"name": "p99", "kind": "latency", "capacity": 0.5}], "evidence": 2}, {"load": 1}, "cut", 1, ""),
    ],
)
def test_limits_are_kept_and_named(policy: dict[str, Any], situation: dict[str, Any], outcome: str, final: int, limit: str) -> None:
    samples = {"load": Sample(situation["load"]), "p99": Sample(0.1)}
    decision = decided(policy=policy, samples=samples, **situation)
    assert (decision.outcome, decision.final) == (outcome, final), decision
    assert limit in "; ".join(decision.limits)


def test_where_there_may_be_no_more_slow_answers_are_no_reason_to_cut() -> None:
    signals = [LOAD, {"name": "p99", "kind": "latency", "capacity": 0.5}]
    samples = {"load": Sample(20.0), "p99": Sample(5.0)}
    decision = decided(policy={"signals": signals, "max_replicas": 4}, samples=samples)
    assert (decision.outcome, decision.limits) == ("hold", ("max_replicas 4: 8 are wanted",))


def test_a_queue_and_a_latency_add_and_never_cut() -> None:
    policy = {"signals": [LOAD, {"name": "queue", "kind": "queue", "capacity": 5}, {"name": "p99", "kind": "latency", "capacity": 0.5}]}
    quiet = {"load": Sample(30), "queue": Sample(0), "p99": Sample(0.1)}
    assert decided(policy=policy, load=30, samples=quiet).outcome == "hold"
    assert decided(policy=policy, load=30, samples={**quiet, "queue": Sample(12)}).final == 7
    slow = decided(policy=policy, load=30, samples={**quiet, "p99": Sample(5)})
    assert slow.final == 8  # twice as many at most
    assert "answers take 5 s, and 0.5 is the objective" in slow.reason


def test_the_last_replica_stays_until_nobody_has_called_for_a_while() -> None:
    def quiet(seconds: float, **more: Any) -> Decision:
        outlooks = {"load": Outlook(1e-9, 7.0, 7.0, 7.0, seconds)}
        return decided(load=0, **{"policy": {"min_replicas": 0}, "asked": 1, "ready": 1, "outlooks": outlooks, **more})

    assert (quiet(1785).outcome, quiet(1785).final) == ("hold", 1)
    assert (quiet(1800).outcome, quiet(1800).final) == ("cut", 0)
    assert quiet(1800, sessions=1).outcome == "hold"
    assert quiet(1800, vanished=0.5).outcome == "hold"
    asleep = quiet(1800, asked=0, ready=0)
    assert (asleep.outcome, asleep.final) == ("hold", 0)  # whatever the forecast says
    woken = quiet(1800, asked=0, ready=0, sessions=3)
    assert (woken.outcome, woken.final) == ("grow", 1)
    assert quiet(1800, policy={"min_replicas": 0, "survive_host_loss": True}).final == 0
    assert quiet(1800, asked=0, ready=0, policy={"min_replicas": 0, "survive_host_loss": True}).outcome == "hold"
    assert quiet(1800, policy={"min_replicas": 0, "dead_band": 1}).final == 0
    slow = {"min_replicas": 0, "signals": [LOAD, {"name": "p99", "kind": "latency", "capacity": 1}]}
    unknown = {"load": Sample(0.0), "p99": Sample(float("nan"))}
    assert quiet(1800, policy=slow, samples=unknown).final == 0  # nobody who calls, nobody who waits
    assert quiet(60, policy=slow, samples=unknown).final == 1
    by_hand = quiet(60, asked=0, ready=0)
    assert (by_hand.outcome, by_hand.final) == ("hold", 0)  # what is expected wakes nobody
    assert "missing" not in quiet(1800, asked=0, ready=0, policy=slow, samples=unknown).inputs["p99"]
    assert decided(load=0, asked=1, ready=1, outlooks={"load": Outlook(1e-9, 1e-9, 1e-9, 7.0, 9999.0)}).final == 1


def test_bigger_replicas_are_worth_more_and_are_paid_for_as_such() -> None:
    vertical = {"vertical": {"cpus": 2, "max_cpus": 6, "step": 2}}
    grown = decided(load=30, policy=vertical, asked=2, ready=2, cpus=2.0)
    assert (grown.outcome, grown.final, grown.cpus_wanted, grown.cost_change) == ("grow", 2, 4.0, 48)
    assert explain(grown).startswith("chat 2 → 4 CPUs for each of 2.")
    assert decided(load=30, policy=vertical, asked=2, ready=2, cpus=4.0).outcome == "hold"
    assert decided(load=30, policy={**vertical, "budget": {"replica_hours_per_day": 40, "beyond": "freeze"}}, asked=2, ready=2, cpus=2.0).outcome == "hold"
    wide = decided(load=95, policy=vertical, asked=2, ready=2, cpus=6.0)
    assert (wide.outcome, wide.final, wide.cpus_wanted) == ("grow", 4, None)
    assert decided(load=95, policy=vertical, asked=2, ready=2, cpus=4.0, can_grow=False).final == 6
    floor = decided(load=10, policy={**vertical, "min_replicas": 3}, asked=2, ready=2, cpus=2.0)
    assert (floor.final, floor.cpus_wanted) == (3, None)  # a number of replicas is no amount of work
    smaller = decided(load=10, policy=vertical, asked=1, ready=1, cpus=6.0)
    assert (smaller.outcome, smaller.final, smaller.cpus_wanted) == ("cut", 1, 4.0)
    asked = decided(load=10, policy={**vertical, "approval": {"cut_alone": 0.1, "approvers": ["a"]}}, asked=1, ready=1, cpus=6.0)
    assert asked.outcome == "ask"
    busy = {"load": Sample(0.95)}
    full = decided(load=3.8, policy={**vertical, "signals": [{**LOAD, "kind": "utilisation", "capacity": 1}]}, samples=busy, asked=2, ready=2, cpus=4.0)
    assert (full.outcome, full.cpus_wanted) == ("grow", 6.0)  # a share of replicas as they are, and not of small ones
    only = decided(load=30, policy={**vertical, "max_replicas": 1}, asked=1, ready=1, cpus=2.0)
    assert (only.outcome, only.cpus_wanted) == ("grow", 6.0)  # where there may be no more, all the more
    few = {**vertical, "max_step_up": 2, "max_step_down": 2}
    assert decided(load=60, policy=few, asked=2, ready=2, cpus=2.0).cpus_wanted == 4.0
    alone = {**vertical, "approval": {"grow_alone": 1, "approvers": ["a"]}}
    assert decided(load=30, policy=alone, asked=2, ready=2, cpus=2.0).outcome == "ask"
    assert decided(load=10, policy=vertical, asked=1, ready=1, cpus=6.0, can_shrink=False).outcome == "hold"
    assert decided(load=10, policy={**vertical, "dead_band": 1}, asked=1, ready=1, cpus=4.0).outcome == "hold"
    unsaid = decided(load=30, policy=vertical, asked=2, ready=2)
    assert (unsaid.final, unsaid.cpus_wanted) == (4, None)  # how big replicas are is not known


def test_a_person_s_word_goes_before_all() -> None:
    pin = Pin(6, NOON + 3600, "slack:T1/U1", "the launch")
    pinned = decided(load=1, pin=pin)
    assert (pinned.outcome, pinned.final) == ("grow", 6)
    assert pinned.reason == "pinned to 6 by slack:T1/U1 until Fri 13:00: the launch"
    assert decided(load=1, pin=pin._replace(until=NOON)).outcome == "cut"
    assert decided(load=200, paused="by U1").final == 4


@pytest.mark.parametrize(("per_host", "final"), [((4,), 8), ((2, 2), 8), ((2, 1, 1), 6), ((1, 1, 1, 1), 6)])
def test_those_on_one_host_can_be_lost_where_that_is_asked_for(per_host: tuple[int, ...], final: int) -> None:
    decision = decided(load=36, policy={"survive_host_loss": True}, per_host=per_host)
    assert (decision.outcome, decision.final) == ("grow", final)
    assert decision.without_a_host == 4 - max(per_host)
    kept = decided(load=36, policy={"survive_host_loss": True, "hold_seconds": 0}, per_host=per_host, asked=final, ready=final)
    assert kept.outcome == "hold"


def test_what_would_be_left_without_a_host_is_said() -> None:
    assert explain(decided(per_host=(3, 1))).endswith("Without its fullest host 1 would serve.")
    assert explain(decided(per_host=(4,))).endswith("Without its fullest host none would serve.")
    assert "fullest" not in explain(decided())
