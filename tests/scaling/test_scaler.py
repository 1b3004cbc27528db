# SPDX-License-Identifier: Apache-2.0
"""The live loop: what is asked for, what is kept, and that a back-test of the same samples decides the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT, write_playbook
from tests.scaling.test_policy import POLICY

from lepton_ai.errors import LeptonError
from lepton_ai.intake import SCALE
from lepton_ai.observing import sample_of
from lepton_ai.policies import undoing
from lepton_ai.runs import leases
from lepton_ai.runs.model import HERE, Request, Result, State
from lepton_ai.runs.store import Store
from lepton_ai.scaler import LOOK, RESIZE, Scaler, _Watched
from lepton_ai.scaling.backtest import by_policy, replay
from lepton_ai.scaling.decision import Decision
from lepton_ai.scaling.outlook import TICK_SECONDS, LoadHistory
from lepton_ai.scaling.policy import Signal, read_policy
from lepton_ai.scaling.series import Reading
from lepton_ai.settings import Settings

NOW = 1795780800.0
DECLARED = {"image": "m:1", "port": 8080, "listen_port": 8000, "cpus": 1, "memory": "1GiB"}


class Site:
    """Load balancers that do at once what is asked of them, and a Prometheus that says what a test wants."""

    def __init__(self, store: Store, folder: Path, *, refuses: bool = False) -> None:
        self.replicas, self.ready, self.refuses = 1, 1, refuses
        self.value: float | None = 5.0
        self.trouble = ""
        self.dead = 0
        self.sessions = 0
        self.cpus = 1.0
        self.site_asks = False  # whether the site's own rules ask for approval
        self.lazy = False  # whether what is asked for takes its time
        self.errors = 0.0
        self.past: list[float | None] = []
        self.asked: list[tuple[str, dict[str, Any], str, str]] = []
        self.begun: list[str] = []
        self.failures: dict[str, str] = {}
        self.settings = SimpleNamespace(zone=None)
        self.frozen: str | None = None
        self.room: dict[str, Any] = {}  # what hosts answer; nothing: they do not say
        self.looked: list[str] = []
        self.plans: list[dict[str, Any]] = []
        catalog = SimpleNamespace(operations={SCALE: SCALE, RESIZE: RESIZE})
        runs = SimpleNamespace(
            catalog=catalog, look=self.look, store=store, settings=self.settings, clear_dead_leases=lambda: None, frozen=lambda *_: self.frozen,
        )  # fmt: skip
        intake: Any = SimpleNamespace(runs=runs, submit_values=self.submit_values)
        self.folder = folder
        self.when = NOW
        self.scaler = Scaler(intake, self.begun.append, folder, self.read, lambda *_: self.past)

    def read(self, promql: str) -> Reading:
        if "5xx" in promql:
            return Reading([self.errors] if self.errors else [])
        return Reading([] if self.value is None else [self.value], trouble=self.trouble)

    def look(self, name: str) -> Result:
        self.looked.append(name)
        if self.failures:
            return Result(failures=self.failures)
        if name != LOOK:
            return Result(answers=self.room)
        up = ["UP"] * self.ready + ["DOWN"] * self.dead
        servers = [{"name": f"chat-{number}", "state": "ready", "status": status} for number, status in enumerate(up)]
        wanted = {"replicas": self.replicas, "version": 1, "declaration": {**DECLARED, "cpus": self.cpus}}
        entry = {"name": "chat", **wanted, "servers": servers, "counters": {"sessions": self.sessions}}
        return Result(answers={"lb": {"services": [entry]}}, failures=self.failures)

    def submit_values(self, caller: Any, operation: Any, values: dict[str, Any], *, key: str, why: str, own_rule: Any) -> tuple[Any, bool]:
        if self.refuses:
            raise LeptonError("no grant names policy:chat")
        new = key not in [asked[2] for asked in self.asked]
        self.asked.append((caller.principal, values, key, why))
        if own_rule is not None:
            self.plans.append({"approvers": own_rule.approvers, "values": values})
            return SimpleNamespace(id=f"plan-{len(self.asked)}", check=True), new
        if not self.lazy and operation == RESIZE:
            self.cpus = float(values["cpus"])
        elif not self.lazy:
            self.replicas = self.ready = int(values["replicas"])
        return SimpleNamespace(id=f"run-{len(self.asked)}", check=self.site_asks), new

    def policy(self, text: str) -> None:
        (self.folder / "chat.yml").write_text(text)

    def tick(self) -> Decision | None:
        self.when += TICK_SECONDS
        found = self.scaler.tick(self.when)
        return found[0] if found else None


ON = POLICY + "mode: live\nlead_seconds: 60\nhold_seconds: 60\n"


@pytest.fixture
def live(store: Store, tmp_path: Path) -> Site:
    site = Site(store, tmp_path)
    site.policy(ON)
    return site


def test_it_grows_is_kept_and_cuts_again(live: Site, store: Store) -> None:
    assert live.tick() is not None
    assert live.asked == []
    live.value = 30
    grown = live.tick()
    assert grown is not None
    assert (grown.outcome, grown.final) == ("grow", 4)
    principal, values, key, why = live.asked[0]
    assert (principal, values) == ("policy:chat", {"service": "chat", "replicas": "4"})
    assert key == f"policy:chat:1:replicas:4:{int(live.when // 15)}"
    assert why.startswith("chat 1 → 4 (+3).")
    assert live.begun == ["run-1"]
    live.value = 5
    outcomes = [decision.outcome for _number in range(12) if (decision := live.tick())]
    assert "cut" in outcomes
    assert live.replicas < 4
    records = store.scaling_records("chat", until=live.when, limit=100)
    assert len(records) == 14
    assert [record["outcome"] for record in store.scaling_records("chat", until=live.when, limit=9, outcomes=("grow",))][-1] == "grow"


def test_shadow_decides_and_does_nothing(live: Site, store: Store) -> None:
    live.policy(ON.replace("mode: live", "mode: shadow"))
    live.value = 30
    decision = live.tick()
    assert decision is not None
    assert decision.outcome == "grow"
    assert live.asked == []
    (record,) = store.scaling_records("chat", until=live.when, limit=1)
    assert (record["mode"], record["acted"]) == ("shadow", False)


def test_a_recorded_run_is_decided_the_same_again(live: Site, store: Store) -> None:
    loads: list[float | None] = [5.0, 5.0, 12.0, 30.0, 31.0, None, 28.0, 9.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    for load in loads:
        live.value = load
        live.tick()
    kept = list(reversed(store.scaling_records("chat", until=live.when, limit=100)))
    again: list[Decision] = []
    replay("again", loads, by_policy(read_policy(ON), 10, 60, again), lead_seconds=0.001, begin=1)
    assert [(record["outcome"], record["final"], record["raw"], record["limits"]) for record in kept] == [
        (decision.outcome, decision.final, decision.raw, list(decision.limits)) for decision in again
    ]


def test_what_it_may_not_do_is_kept_as_not_done(store: Store, tmp_path: Path) -> None:
    site = Site(store, tmp_path, refuses=True)
    site.policy(ON)
    site.value = 30
    site.tick()
    (record,) = store.scaling_records("chat", until=site.when, limit=1)
    assert (record["outcome"], record["acted"]) == ("grow", False)


def test_no_prometheus_no_change_and_it_says_so(live: Site) -> None:
    live.replicas = live.ready = 4
    live.value, live.trouble = None, "Prometheus at http://127.0.0.1:9090 does not answer: refused"
    decision = live.tick()
    assert decision is not None
    assert decision.outcome == "hold"
    assert "does not answer" in decision.reason


def test_nothing_is_cut_while_a_run_holds_the_service(live: Site, store: Store, site: Settings) -> None:
    live.replicas = live.ready = 4
    assert leases.try_acquire(store, leases.process_holder("run-x"), ["service/chat"]) == []
    decision = live.tick()
    assert decision is not None
    assert decision.reason == "no cut while a run holds service/chat"


def test_load_balancers_that_do_not_answer_and_a_service_that_is_not_there(live: Site) -> None:
    live.failures = {HERE: "no host"}
    assert live.tick() is None
    live.failures = {}
    live.policy(ON.replace("service: chat", "service: other"))
    assert live.tick() is None


def test_a_policy_that_cannot_be_read_leaves_the_old_one_in_force(live: Site) -> None:
    live.tick()
    live.policy("service: [")
    live.value = 30
    decision = live.tick()
    assert decision is not None
    assert decision.outcome == "grow"
    (live.folder / "twice.yml").write_text(ON)
    live.policy(ON)
    assert len(live.scaler.tick(live.when + 15)) == 1
    (live.folder / "chat.yml").unlink()
    (live.folder / "twice.yml").unlink()
    assert live.tick() is None


def test_the_lead_is_what_was_measured() -> None:
    watched = _Watched(read_policy(POLICY), "", {})
    assert watched.lead() == 60
    watched.leads = [20.0] * 18 + [90.0, 40.0]
    assert watched.lead() == 40
    assert _Watched(read_policy(POLICY + "lead_seconds: 7\n"), "", {}).lead() == 7


def test_it_learns_from_what_prometheus_knows_before_it_decides(live: Site) -> None:
    live.past = [20.0 + tick % 7 for tick in range(8000)]
    live.value = 20
    decision = live.tick()
    assert decision is not None
    assert decision.inputs["requests"]["days"] > 1
    assert decision.inputs["requests"]["peak"] < 1.3 * decision.inputs["requests"]["level"]


def test_a_policy_that_changes_is_in_the_audit_trail(live: Site, store: Store) -> None:
    live.tick()
    live.policy(ON.replace("max_replicas: 8", "max_replicas: 9"))
    live.tick()
    (entry,) = [entry for entry in store.audit() if entry["what"] == "policy changed"]
    assert (entry["principal"], entry["data"]) == ("policy:chat", {"changes": ["max_replicas: 8 → 9"]})


def test_growth_goes_only_where_hosts_have_room(live: Site) -> None:
    def host(memory: int) -> dict[str, Any]:
        return {"room": {"cpus_free": 8, "memory_free": memory << 30}, "ports_free": [1, 2, 3], "address": "10.0.0.1"}

    live.room = {"h1": host(0), "h2": host(1), "h3": host(1)}
    live.value = 5
    live.tick()
    assert live.looked == [LOOK]  # nobody asks hosts who wants nothing of them
    live.value = 60
    decision = live.tick()
    assert decision is not None
    assert (decision.outcome, decision.final) == ("grow", 3)
    assert "the hosts have room for 2 more on h2 and h3, and " in decision.limits[0]
    assert live.looked == [LOOK, LOOK, "container.list"]


def test_an_outage_is_no_reason_to_cut(live: Site) -> None:
    live.replicas = live.ready = 4
    live.value = 38
    for _number in range(8):
        live.tick()
    live.value, live.errors = 3, 0.4
    decisions = [decision for _number in range(12) if (decision := live.tick())]
    assert {decision.outcome for decision in decisions} == {"hold"}
    assert any("with 40% errors" in decision.reason for decision in decisions)
    live.errors, live.ready, live.dead = 0.0, 3, 1
    last = live.tick()
    assert last is not None
    assert "25% of the targets" in last.reason


def test_a_freeze_pauses_and_a_pin_holds_whatever_the_policy_wants(live: Site, store: Store) -> None:
    live.frozen, live.value = "service/chat is frozen by slack:T/U: a demo", 60
    decision = live.tick()
    assert decision is not None
    assert decision.reason == "paused: service/chat is frozen by slack:T/U: a demo"
    store.pin("chat", 9, live.when + 10, "slack:T/U", "never mind")
    frozen = live.tick()
    assert frozen is not None
    assert "frozen" in frozen.reason  # a freeze is stronger
    live.frozen = None
    store.pin("chat", 6, live.when + 40, "slack:T/U", "a launch")
    decision = live.tick()
    assert decision is not None
    assert (decision.outcome, decision.final) == ("grow", 6)
    assert "pinned to 6 by slack:T/U" in decision.reason
    assert live.replicas == 6
    live.value = 5
    held = live.tick()
    assert held is not None
    assert held.outcome == "hold"
    later = live.tick()
    assert later is not None
    assert "pinned" not in later.reason


def test_people_are_asked_once_for_what_a_policy_may_not_do_alone(live: Site) -> None:
    live.policy(ON + "approval: {grow_alone: 1, approvers: ['slack:T/ONCALL']}\n")
    live.value = 30
    first = live.tick()
    assert first is not None
    assert (first.outcome, live.replicas) == ("ask", 1)
    assert live.plans == [{"approvers": ["slack:T/ONCALL"], "values": {"service": "chat", "replicas": "5"}}]
    live.tick()
    assert {asked[2] for asked in live.asked} == {f"policy:chat:ask:1:replicas:5:{int(live.when // 1800)}"}
    assert len(live.begun) == 1


def test_what_somebody_does_by_hand_counts_as_growth(live: Site) -> None:
    live.tick()
    live.replicas = live.ready = 4
    decision = live.tick()
    assert decision is not None
    assert "would do, and there was growth 0 min ago" in decision.reason


def test_shadow_growth_is_no_growth(live: Site) -> None:
    live.policy(ON.replace("mode: live", "mode: shadow"))
    live.replicas = live.ready = 2
    live.value = 60
    live.tick()
    live.value = 5
    reasons = [decision.reason for _number in range(40) if (decision := live.tick())]
    assert not any("growth" in reason for reason in reasons)


def test_a_run_under_way_is_not_asked_for_again(live: Site, store: Store) -> None:
    written, _new = store.add_run("run-1", Request(SCALE, {}, "policy:chat", key="k"), risk="change", shown_arguments={})
    live.lazy = True
    live.value = 30
    live.tick()
    decision = live.tick()
    assert decision is not None
    assert (decision.outcome, decision.asked) == ("hold", 5)
    assert len(live.asked) == 1
    assert store.set_running(written.id, "")
    live.tick()
    record = store.scaling_records("chat", until=live.when, limit=1, outcomes=("grow",))[0]
    assert "stages" not in record
    store.finish(written.id, State.SUCCEEDED, Result())
    live.replicas = live.ready = 5
    live.tick()
    record = store.scaling_records("chat", until=live.when, limit=1, outcomes=("grow",))[0]
    assert record["stages"]["serving"] >= record["stages"]["begun"]
    (watched,) = live.scaler._watched.values()
    assert watched.under_way is None
    assert watched.leads == [record["stages"]["serving"]]


def test_a_sample_that_is_no_number_is_not_learned_from(live: Site) -> None:
    for _number in range(30):
        live.tick()
    live.value = float("nan")
    decision = live.tick()
    assert decision is not None
    assert (decision.outcome, decision.inputs["requests"]["missing"]) == ("hold", "its value is nan")
    live.value = 5
    after = live.tick()
    assert after is not None
    assert after.inputs["requests"]["level"] == pytest.approx(5)


def test_one_service_that_cannot_be_decided_on_keeps_no_other_waiting(live: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (live.folder / "aaa.yml").write_text(ON.replace("service: chat", "service: aaa"))
    decided = Scaler._decide

    def fails(scaler: Scaler, watched: Any, *others: Any) -> Any:
        if watched.policy.service == "aaa":
            raise ZeroDivisionError
        return decided(scaler, watched, *others)

    monkeypatch.setattr(Scaler, "_decide", fails)
    assert live.tick() is not None


def test_approval_by_the_sites_rules_is_waited_for_and_not_taken_for_a_start(live: Site, store: Store) -> None:
    live.site_asks, live.lazy, live.value = True, True, 30
    decision = live.tick()
    assert decision is not None
    assert decision.outcome == "grow"
    (record,) = store.scaling_records("chat", until=live.when, limit=1)
    assert (record["acted"], record["run"]) == (False, "run-1")
    live.scaler.intake.runs.store.open_plans = lambda: [SimpleNamespace(principal="policy:chat")]  # type: ignore[method-assign]
    live.tick()
    assert len(live.asked) == 1
    (watched,) = live.scaler._watched.values()
    assert (watched.under_way, watched.leads) == (None, [])


def test_what_is_refused_is_tried_less_and_less_often(store: Store, tmp_path: Path) -> None:
    site = Site(store, tmp_path, refuses=True)
    site.policy(ON)
    site.value = 30
    for _number in range(40):
        site.tick()
    (watched,) = site.scaler._watched.values()
    assert 3 <= watched.failures <= 6


def test_one_bot_decides_at_a_time_and_another_goes_on(live: Site, store: Store, tmp_path: Path) -> None:
    other = Site(store, tmp_path)
    assert live.tick() is not None
    assert other.tick() is None
    assert live.tick() is not None
    leases.release(store, live.scaler._holder.owner)
    assert other.tick() is not None
    assert live.tick() is None
    assert live.scaler._watched == {}  # it learns anew when it takes over


@pytest.mark.parametrize(
    ("kind", "reading", "value", "trouble"),
    [
        ("load", Reading([1, 2]), 3, ""),
        ("queue", Reading([1, 2]), 3, ""),
        ("utilisation", Reading([0.2, 0.4, 0.9, 0.5]), 0.5, ""),
        ("latency", Reading([1, 2]), 2, ""),
        ("load", Reading([], trouble="gone"), None, "gone"),
        ("load", Reading([]), None, "no sample"),
    ],
)
def test_series_are_one_value_by_what_they_mean(kind: Any, reading: Reading, value: float | None, trouble: str) -> None:
    sample = sample_of(Signal(name="s", kind=kind), reading, 4)
    assert (sample.value, sample.trouble) == (value, trouble)


def test_replicas_that_say_nothing_and_samples_that_are_old_are_seen() -> None:
    signal = Signal(name="s", kind="utilisation")
    assert sample_of(signal, Reading([0.5, 0.5]), 4).coverage == 0.5
    assert sample_of(signal, Reading([0.5]), 4).coverage == 1.0  # one series is the mean already
    assert sample_of(signal, Reading([0.5], age=70), 4).age == 70


def test_why_and_history_on_the_command_line(site: Settings) -> None:
    write_playbook(site.playbooks, "probe", "none", "- name: Nothing\n  ansible.builtin.meta: noop")
    store = Store(site.state_dir)
    live = Site(store, site.site)
    live.folder = live.scaler.folder = site.site / "policies"
    live.folder.mkdir()
    live.policy(ON)
    live.value = 30
    live.tick()
    live.tick()
    store.close()
    (site.site / "lepton.yml").write_text(yaml.safe_dump({**yaml.safe_load((site.site / "lepton.yml").read_text()), "time_zone": "UTC"}))

    def lepton(*words: str) -> str:
        done = subprocess.run([ROOT / ".venv/bin/lepton", "scaling", *words, "--site", str(site.site)], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "nothing was decided of chat until then" in lepton("why", "chat", "--at", "2020-01-01T00:00")
    assert "chat stays at 5, of which 5 serve." in lepton("why", "chat", "--at", "2026-11-27T12:01")
    assert "12:00:15: chat 1 → 5 (+4)." in lepton("why", "chat", "--at", "2026-11-27T12:00:20")
    assert "is no moment" in lepton("why", "chat", "--at", "noon")
    assert "other has no policy: there are chat" in lepton("pin", "other", "3", "--until", "2h")
    assert "noon is no time" in lepton("pin", "chat", "3", "--until", "noon")
    assert re.fullmatch(r"chat is pinned to 3 until .*: a launch\n", lepton("pin", "chat", "3", "--until", "2h", "--because", "a launch"))
    assert lepton("unpin", "chat") == "chat is its policy's again\n"
    assert lepton("unpin", "chat") == "chat is not pinned\n"
    assert "chat is pinned to 1 until " in lepton("undo", "chat")
    changed = site.site / "changed.yml"
    changed.write_text(ON.replace("max_replicas: 8", "max_replicas: 9") + "approval: {grow_alone: 2, approvers: [a]}\n")
    told = lepton("check", str(changed))
    assert "max_replicas: 8 → 9" in told
    assert "approval: " in told
    assert "hold_seconds" not in told
    assert "nothing was decided of other" in lepton("history", "other")


SLEEPY = ON.replace("min_replicas: 1", "min_replicas: 0").replace("hold_seconds: 60", "hold_seconds: 30")


def test_a_service_that_nobody_calls_has_no_replica_and_whoever_calls_wakes_it_between_two_ticks(live: Site, store: Store) -> None:
    live.policy(SLEEPY)
    live.value = 0.0
    live.tick()
    assert live.asked == []  # nobody has called for 15 s only
    live.sessions = 1
    live.tick()
    held = live.tick()
    assert held is not None
    assert (held.outcome, "1 requests are still under way" in held.reason) == ("hold", True)
    live.sessions = 0
    cut = live.tick()
    assert cut is not None
    assert (cut.outcome, cut.final, live.replicas) == ("cut", 0, 0)
    assert "nobody has called for" in cut.reason

    live.scaler.wake(live.when + 3)
    assert len(live.asked) == 1  # and nobody calls now
    live.sessions = 2
    live.trouble = "a service without replicas has no such series"  # and is woken all the same
    live.scaler.wake(live.when + 6)
    assert live.replicas == 1
    (record,) = store.scaling_records("chat", until=live.when + 6, limit=1)
    assert record["reason"] == "waiting: 2 requests wait, and nothing serves"
    live.trouble, live.value = "", 3.0
    assert live.tick() is not None
    assert live.replicas == 1
    live.scaler.wake(live.when + 3)
    assert len(live.asked) == 2


def test_in_shadow_nothing_is_woken(live: Site) -> None:
    live.policy(SLEEPY.replace("mode: live", "mode: shadow"))
    live.replicas = live.ready = 0
    live.value, live.sessions = 0.0, 1
    live.tick()
    live.scaler.wake(live.when + 3)
    assert live.asked == []


def test_replicas_are_made_bigger_before_there_are_more_and_fewer_before_they_are_smaller(live: Site, store: Store) -> None:
    live.policy(ON + "vertical: {cpus: 1, max_cpus: 4}\n")
    live.tick()
    live.value = 22  # a CPU is good for 9 of these
    live.tick()
    assert (live.replicas, live.cpus) == (1, 3)
    assert live.asked[-1][1] == {"service": "chat", "cpus": "3"}
    assert live.asked[-1][3].startswith("chat 1 → 3 CPUs for each of 1.")
    live.value = 50
    for _number in range(8):
        live.tick()
    assert (live.replicas, live.cpus) == (2, 4)
    assert [asked[1] for asked in live.asked[-2:]] == [{"service": "chat", "cpus": "4"}, {"service": "chat", "replicas": "2"}]
    live.value = 2
    for _number in range(30):
        live.tick()
    assert (live.replicas, live.cpus) == (1, 1)
    records = [record for record in store.scaling_records("chat", until=live.when, limit=100, outcomes=("cut",)) if record["acted"]]
    assert [(record["final"], record["cpus_wanted"]) for record in reversed(records)] == [(2, 3.0), (1, None), (1, 1.0)]


def test_where_a_bigger_replica_cannot_be_had_there_are_more(live: Site) -> None:
    live.policy(ON + "vertical: {cpus: 1, max_cpus: 4}\n")
    live.tick()
    live.value = 15
    live.refuses = True
    live.tick()
    live.refuses = False
    for _number in range(3):
        live.tick()
    assert (live.replicas, live.cpus) == (3, 1)


def test_a_cut_that_is_refused_keeps_nobody_from_growing(live: Site) -> None:
    live.policy(ON + "vertical: {cpus: 1, max_cpus: 4}\n")
    live.cpus = 4.0
    live.value, live.refuses = 1.0, True
    for _number in range(12):
        live.tick()
    live.value, live.refuses = 60.0, False
    live.tick()
    assert live.replicas > 1


def test_a_size_that_somebody_sets_by_hand_is_held_as_a_number_is(live: Site) -> None:
    live.policy(ON + "vertical: {cpus: 1, max_cpus: 4}\n")
    live.tick()
    live.cpus = 4.0
    held = live.tick()
    assert held is not None
    assert held.outcome == "hold"
    assert "there was growth 0 min ago" in held.reason


def test_a_caller_within_the_tick_of_the_cut_wakes_it_and_what_may_not_be_woken_fills_no_records(live: Site, store: Store) -> None:
    live.policy(SLEEPY)
    live.value = 0.0
    live.tick()
    live.tick()
    live.tick()
    assert live.replicas == 0
    live.sessions = 1
    live.scaler.wake(live.when + 3)
    assert live.replicas == 1
    assert len({asked[2] for asked in live.asked}) == len(live.asked)
    live.replicas = live.ready = 0
    live.tick()
    before = len(store.scaling_records("chat", until=live.when + 60, limit=100))
    live.frozen = "frozen by ada"
    for later in range(3, 15, 3):
        live.scaler.wake(live.when + later)
    assert len(store.scaling_records("chat", until=live.when + 60, limit=100)) == before


def test_one_that_cannot_be_woken_keeps_no_other_asleep(live: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    live.policy(SLEEPY)
    live.replicas = live.ready = 0
    live.value, live.sessions = 0.0, 0
    live.tick()
    live.sessions = 1
    monkeypatch.setattr(live.scaler, "_settle", lambda *_args, **_options: 1 / 0)
    live.scaler.wake(live.when + 3)  # and is in the log


def test_the_last_change_was_a_size_and_there_is_no_number_to_go_back_to(live: Site, store: Store) -> None:
    live.policy(ON + "vertical: {cpus: 1, max_cpus: 4}\n")
    live.tick()
    live.value = 22
    live.tick()
    with pytest.raises(LeptonError, match="changed the size of its replicas last"):
        undoing(store, "chat")


def test_a_single_call_at_night_is_not_the_morning() -> None:
    history = LoadHistory(lead_seconds=60, hold_seconds=1800, risk=0.002)
    for number in range(4 * 5760 + 23 * 240):  # until eleven in the evening
        busy = 8 <= (number % 5760) / 240 < 20
        history.add(50 + number % 5 if busy else 0.1 if number % 977 == 0 else 0.0)
    history.add(0.1)
    assert history.outlook().peak < 5


def test_what_was_not_seen_was_no_quiet_time() -> None:
    history = LoadHistory(lead_seconds=60, hold_seconds=1800, risk=0.002)
    for sample in [*[0.0] * 100, None, None, *[0.0] * 20]:
        history.add(sample)
    assert history.outlook().quiet_seconds == 120 * 15
    for sample in [*[None] * 20, 0.0]:
        history.add(sample)
    assert history.outlook().quiet_seconds == 15
