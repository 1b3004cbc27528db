# SPDX-License-Identifier: Apache-2.0
"""From a notification to a run: once for an episode, by the site's rules, with an end to everything."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_ai import alerting as alerting_module
from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Rules
from lepton_ai.alerting import MOST_ASKED, Alerting
from lepton_ai.alerts.groups import Group, key_of
from lepton_ai.alerts.rules import AlertRule, Notification
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.runs import inbox
from lepton_ai.runs.service import Runs
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.settings import Settings
from tests.alerts.test_groups import alert, said
from tests.conftest import write_playbook

RULE: dict[str, Any] = {"name": "more", "matchers": ["alertname=High"], "operation": "x.y", "arguments": {"word": {"label": "node"}}}
ONCALL, OTHER = Caller("slack:T/ONCALL"), Caller("slack:T/OTHER")
ACCESS = {
    "roles": {"machine": {"operations": ["x.y"], "targets": ["thing/*"]}, "oncall": {"operations": ["alert"], "targets": ["node/*"]}},
    "grants": [{"role": "machine", "principals": ["alert:lepton"]}, {"role": "oncall", "principals": [ONCALL.principal]}],
}


@pytest.fixture
def make_alerting(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> Callable[..., Alerting]:
    """Return a function that makes what works alerts off by such rules; what is begun stands in `begun`."""
    tasks = f"- name: Write\n  ansible.builtin.copy:\n    content: '{{{{ word }}}}'\n    dest: {tmp_path / 'file'}\n    mode: '0600'"
    lepton = "{risk: change, rerun: safe, plan: check, locks: ['thing/{{ word }}']}"
    write_playbook(site.playbooks, "x", "y", tasks, options="{word: {type: str, required: true}}", lepton=lepton)

    def make(*rules: dict[str, Any], begun: list[str] | None = None, **settings: Any) -> Alerting:
        runs = make_runs()
        alerts = [AlertRule.model_validate(rule) for rule in rules or (RULE,)]
        runs.settings = site.model_copy(update={"access": Rules.model_validate(ACCESS), "alerts": alerts, **settings})
        return Alerting(Intake(runs, "os:0@here"), (begun if begun is not None else []).append)

    return make


def body(*alerts: dict[str, Any], **how: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(said(*alerts, **how).model_dump_json(by_alias=True))
    return told


def tell(alerting: Alerting, *alerts: dict[str, Any], **how: Any) -> Group:
    """Post a notification, have it worked off, and return the group."""
    told = body(*alerts, **how)
    assert alerting.take("alertmanager", told)
    alerting.work_off(time.time())
    document = inbox.group(alerting.intake.runs.store, key_of(Notification.model_validate(told)))
    assert document is not None
    return Group.model_validate(document)


def asked(alerting: Alerting) -> list[str]:
    return [str(run.arguments["word"]) for run in reversed(alerting.intake.runs.store.runs(100))]


def test_an_alert_asks_once_whoever_says_it(make_alerting: Callable[..., Alerting]) -> None:
    begun: list[str] = []
    one, other = make_alerting(begun=begun), make_alerting(begun=begun)  # two Alertmanagers, and two bots on one database
    group = tell(one, alert(node="web-1"))
    tell(other, alert(node="web-1"))
    tell(one, alert(node="web-1"))
    assert asked(one) == ["web-1"]
    assert begun == [group.episodes["a"].run]
    run = one.intake.runs.store.run(begun[0])
    assert (run.principal, run.origin) == ("alert:lepton", {"door": "alert", "group": group.key})
    assert run.why == "High: alertname=High, node=web-1"
    tell(one, alert(node="web-1", ends=5))
    tell(one, alert(node="web-1", starts=6))
    assert asked(one) == ["web-1", "web-1"]


def test_the_end_of_an_alert_asks_for_nothing(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    tell(alerting, alert(node="web-1", ends=5))
    assert asked(alerting) == []


def test_what_was_taken_survives_a_crash_at_any_point(make_alerting: Callable[..., Alerting], monkeypatch: pytest.MonkeyPatch) -> None:
    alerting = make_alerting()
    assert alerting.take("alertmanager", body(alert(node="web-1")))
    # The process dies once before anything is worked off, once when the group is known, once when the run is written.
    for name in ("_work_off", "_ask", "_change"):
        with monkeypatch.context() as patched:
            patched.setattr(Alerting, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                make_alerting().work_off(time.time())
    begun: list[str] = []
    make_alerting(begun=begun).work_off(time.time())
    assert asked(alerting) == ["web-1"]
    assert begun == []  # it was begun when it was written, and what was not is found by whoever takes up orphans


def test_a_template_is_a_name_with_braces(make_alerting: Callable[..., Alerting], tmp_path: Path) -> None:
    alerting = make_alerting()
    group = tell(alerting, alert(node="{{ lookup('pipe', 'id') }}"))
    alerting.intake.runs.execute(group.episodes["a"].run)
    assert (tmp_path / "file").read_text() == "{{ lookup('pipe', 'id') }}"


@pytest.mark.parametrize(
    ("rule", "labels", "result"),
    [
        ({}, {}, "refused: word comes from the label node, which the alert does not have"),
        ({}, {"node": "n" * 1_000_000}, "refused: word comes from the label node, which is longer than 1000 characters"),
        ({"matchers": ["alertname=Low"]}, {"node": "web-1"}, "no rule fits it"),
        ({"operation": "x.z"}, {"node": "web-1"}, "refused: x z: unknown verb; expected one of y"),
        ({"arguments": {"wort": "a"}}, {"node": "web-1"}, "refused: x.y: wort: unknown parameter"),
        ({"days": ["mon"], "hours": "00:00-00:01"}, {"node": "web-1"}, "rule more holds only mon 00:00-00:01"),
    ],
)
def test_what_is_not_asked_for_is_said(make_alerting: Callable[..., Alerting], rule: dict[str, Any], labels: dict[str, str], result: str) -> None:
    alerting = make_alerting({**RULE, **rule})
    group = tell(alerting, alert(**labels))
    assert group.episodes["a"].result.startswith(result), group.episodes["a"].result
    assert asked(alerting) == []


def test_without_a_grant_it_is_refused_and_said(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    group = tell(alerting, alert(node="web-1"), receiver="other")
    assert group.episodes["a"].result == "refused: alert:other may not x.y thing/web-1: no grant names alert:other"
    assert asked(alerting) == []


def test_the_same_is_asked_for_only_so_often(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting({**RULE, "throttle_minutes": 30})
    tell(alerting, alert(node="web-1"))
    tell(alerting, alert(node="web-1", ends=1))
    group = tell(alerting, alert(node="web-1", starts=2), alert("b", node="web-2"))
    assert group.episodes["a"].result == "not again so soon: rule more asked for the same 0 min ago (throttle 30 min)"
    assert asked(alerting) == ["web-1", "web-2"]


def test_a_rule_may_ask_for_approval(make_alerting: Callable[..., Alerting], tmp_path: Path) -> None:
    alerting = make_alerting({**RULE, "approvers": [ONCALL.principal]})
    group = tell(alerting, alert(node="web-1"))
    runs = alerting.intake.runs
    plan = runs.execute(group.episodes["a"].run)
    assert (plan.check, standing(plan, [])) == (True, Standing.WAITING)
    assert not (tmp_path / "file").exists()
    released = alerting.intake.answer(ONCALL, plan.id, approved=True)
    assert released is not None
    runs.execute(released.id)
    assert (tmp_path / "file").read_text() == "web-1"


def test_a_thousand_alerts_at_once_are_for_a_person(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    group = tell(alerting, *(alert(str(number), node=f"web-{number}") for number in range(1000)))
    assert len(asked(alerting)) == MOST_ASKED
    assert sum("for a person" in episode.result for episode in group.episodes.values()) == 1000 - MOST_ASKED
    alerting.work_off(time.time())
    assert len(asked(alerting)) == MOST_ASKED


def test_there_is_room_for_so_many_and_then_the_sender_keeps_them(make_alerting: Callable[..., Alerting], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting_module, "MOST_WAITING", 3)
    alerting = make_alerting()
    taken = [alerting.take("alertmanager", body(alert(node=f"web-{number}"), group=str(number))) for number in range(4)]
    assert taken == [True, True, True, False]
    alerting.work_off(time.time())
    assert asked(alerting) == ["web-0", "web-1", "web-2"]
    assert alerting.take("alertmanager", body(alert(node="web-3"), group="3"))


def test_what_is_no_notification_is_refused(make_alerting: Callable[..., Alerting]) -> None:
    with pytest.raises(LeptonError, match="not what Alertmanager or Grafana post: alerts: "):
        make_alerting().take("alertmanager", {"receiver": "lepton"})


def test_silence_of_alertmanager_is_an_alert_of_our_own(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    alerting.take("alertmanager", body(alert("w", alertname="Watchdog")))
    now = time.time()
    alerting.work_off(now)
    store = alerting.intake.runs.store
    assert inbox.unshown(store, 10) == []
    alerting.work_off(now + 400)
    ((_key, document, _message, _changed),) = inbox.unshown(store, 10)
    group = Group.model_validate(document)
    assert [episode.alert.name for episode in group.firing] == ["AlertmanagerSilent"]
    inbox.set_shown(store, group.key, {}, _changed)
    alerting.work_off(now + 405)
    assert inbox.unshown(store, 10) == []  # nothing new
    alerting.take("alertmanager", body(alert("w", alertname="Watchdog")))
    alerting.work_off(now + 410)
    ((_key, document, _message, _changed),) = inbox.unshown(store, 10)
    assert Group.model_validate(document).firing == []


def test_what_is_over_is_forgotten_after_a_while_and_what_fires_is_not(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    tell(alerting, alert(node="web-1"), group="fires")
    tell(alerting, alert(node="web-1"), group="over")
    tell(alerting, alert(node="web-1", ends=1), group="over")
    alerting.take("alertmanager", body(alert(node="web-1"), group="fires"))  # again and again meanwhile
    alerting.work_off(time.time() + 15 * 86400)
    store = alerting.intake.runs.store
    known = [inbox.group(store, key_of(said(group=name))) for name in ("fires", "over")]
    assert [document is not None for document in known] == [True, False]


def test_an_end_that_was_never_said_comes_after_a_while(make_alerting: Callable[..., Alerting]) -> None:
    """Alertmanager does not say the end of what was silenced or inhibited meanwhile."""
    alerting = make_alerting()
    group = tell(alerting, alert(node="web-1"))
    alerting.work_off(time.time() + 8 * 3600)
    assert Group.model_validate(inbox.group(alerting.intake.runs.store, group.key)).firing
    alerting.work_off(time.time() + 10 * 3600)
    assert not Group.model_validate(inbox.group(alerting.intake.runs.store, group.key)).firing
    tell(alerting, {**alert(node="web-1"), "startsAt": "2030-01-01T00:00:00Z"})
    assert asked(alerting) == ["web-1", "web-1"]


def test_a_storm_of_groups_is_for_a_person_too(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    groups = [tell(alerting, alert(node=f"web-{number}"), group=str(number)) for number in range(MOST_ASKED + 2)]
    assert len(asked(alerting)) == MOST_ASKED
    assert "for a person" in groups[-1].episodes["a"].result


def test_approvers_of_a_rule_are_asked_where_the_sites_own_rule_falls_away(make_alerting: Callable[..., Alerting]) -> None:
    """The site asks for approval of what changes many hosts; the plan changes one, and still the rule's own approvers must agree."""
    alerting = make_alerting({**RULE, "approvers": [ONCALL.principal]})
    runs = alerting.intake.runs
    access = {**ACCESS, "approvals": [{"name": "many", "hosts_over": 5, "approvers": [OTHER.principal]}]}
    runs.settings = runs.settings.model_copy(update={"access": Rules.model_validate(access)})
    group = tell(alerting, alert(node="web-1"))
    plan = runs.execute(group.episodes["a"].run)
    now = runs.store.run(plan.id)
    assert standing(now, []) == Standing.WAITING
    assert now.origin["approval"]["approvers"] == [ONCALL.principal]


@pytest.mark.parametrize("starts", ["9999-12-31T23:59:59", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_no_clock_has_stops_nobody(make_alerting: Callable[..., Alerting], starts: str) -> None:
    alerting = make_alerting()
    alerting.take("alertmanager", body({**alert("odd", node="web-1"), "startsAt": starts}, group="odd"))
    tell(alerting, alert(node="web-2"))
    assert asked(alerting)[-1] == "web-2"


def test_a_rule_names_an_operation_as_rights_do() -> None:
    with pytest.raises(ValidationError, match="operation"):
        AlertRule.model_validate({**RULE, "operation": "node resize"})


def test_a_restart_does_not_end_the_silence_of_alertmanager(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    alerting.take("alertmanager", body(alert("w", alertname="Watchdog")))
    now = time.time()
    alerting.work_off(now)
    alerting.work_off(now + 400)
    again = make_alerting()
    again._since = now + 500
    again.work_off(now + 501)
    documents = [document for _key, document, _message, _changed in inbox.unshown(alerting.intake.runs.store, 10)]
    assert [len(Group.model_validate(document).firing) for document in documents] == [1]


def test_what_another_version_has_taken_and_nobody_understands_is_dropped(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    assert inbox.take(alerting.intake.runs.store, "alertmanager", {"alarms": []}, 10)
    alerting.take("alertmanager", body(alert(node="web-1")))
    alerting.work_off(time.time())
    assert asked(alerting) == ["web-1"]


def test_only_those_may_answer_whom_a_role_names(make_alerting: Callable[..., Alerting]) -> None:
    alerting = make_alerting()
    group = tell(alerting, alert(node="web-1"))
    with pytest.raises(RefusedError, match="may not answer this alert"):
        alerting.acknowledge(OTHER, group.key)
    with pytest.raises(RefusedError, match="reaches only"):
        alerting.acknowledge(ONCALL, group.key)  # the group names no node, so only who may answer for all
    by_node = tell(alerting, alert("n", node="web-1"), group="by node")
    document = by_node.model_copy(update={"labels": {"node": "web-1"}}).model_dump(mode="json")
    inbox.change(alerting.intake.runs.store, by_node.key, lambda _before: document)
    alerting.acknowledge(ONCALL, by_node.key)
    known = inbox.group(alerting.intake.runs.store, by_node.key)
    assert known is not None
    assert known["acknowledged"] == ONCALL.principal
    with pytest.raises(LeptonError, match="nobody knows which Alertmanager"):
        alerting.silence(ONCALL, by_node.key, 60)
    away = make_alerting(alertmanager="http://127.0.0.1:9")
    with pytest.raises(LeptonError, match=r"Alertmanager at http://127\.0\.0\.1:9 does not answer"):
        away.silence(ONCALL, by_node.key, 60)
    with pytest.raises(LeptonError, match="nothing is known of this alert"):
        alerting.acknowledge(ONCALL, "gone")
