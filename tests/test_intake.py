# SPDX-License-Identifier: Apache-2.0
"""Approvals as every door meets them: who, how many, how long, how often; and what happens when the world moves on."""

from __future__ import annotations

import datetime
import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Rules
from lepton_ai.errors import LeptonError
from lepton_ai.intake import CONFIRMATION, Intake, RefusedError
from lepton_ai.operations.parsing import Command
from lepton_ai.runs import leases
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.service import Runs
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.settings import Settings
from tests.conftest import eventually, write_playbook

pytestmark = pytest.mark.slow
OWNER = "os:0@here"
ASKER, FIRST, SECOND, STRANGER = (Caller(f"slack:T/U{n}", (), "C1") for n in range(4))
KEYS = itertools.count()
OPTIONS = "{word: {type: str, default: one}, secret: {type: str, no_log: true}}"


@pytest.fixture
def intake(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> Intake:
    """One operation that writes its word into a file, in check mode truly, and that two people must agree to."""
    tasks = f"- name: Write\n  ansible.builtin.copy:\n    content: '{{{{ word }}}}'\n    dest: {tmp_path / 'file'}\n    mode: '0600'"
    write_playbook(site.playbooks, "x", "y", tasks, options=OPTIONS, lepton="{risk: change, rerun: safe, plan: check, locks: ['thing/{{ word }}']}")
    runs = make_runs()
    everybody = [caller.principal for caller in (ASKER, FIRST, SECOND)]
    access = {
        "roles": {"all": {"operations": ["*"]}},
        "grants": [{"role": "all", "principals": everybody}],
        "approvals": [{"name": "two", "approvers": everybody, "count": 2}],
    }
    runs.settings = site.model_copy(update={"access": Rules.model_validate(access)})
    return Intake(runs, OWNER)


def ask(intake: Intake, caller: Caller = ASKER, **arguments: Any) -> Run:
    operation = intake.runs.catalog.operations["x.y"]
    return intake.submit_values(caller, operation, arguments, key=f"key {next(KEYS)}")[0]


def plan(intake: Intake, **arguments: Any) -> Run:
    return intake.runs.execute(ask(intake, **arguments).id)


def test_nothing_happens_until_enough_have_agreed_and_then_once(intake: Intake, tmp_path: Path) -> None:
    planned = plan(intake, secret="hidden-thing")
    assert (planned.check, planned.state, standing(planned, [])) == (True, State.SUCCEEDED, Standing.WAITING)
    assert not (tmp_path / "file").exists()
    with pytest.raises(RefusedError, match="cannot approve it"):
        intake.answer(ASKER, planned.id, approved=True)
    with pytest.raises(RefusedError, match="may approve this"):
        intake.answer(STRANGER, planned.id, approved=True)
    assert intake.answer(FIRST, planned.id, approved=True) is None
    assert intake.answer(FIRST, planned.id, approved=True) is None  # the same person twice is one
    released = intake.answer(SECOND, planned.id, approved=True)
    assert released is not None
    assert (released.principal, released.approved_plan) == (ASKER.principal, planned.id)
    assert intake.runs.arguments(released)["secret"] == "hidden-thing"
    assert intake.runs.execute(released.id).state is State.SUCCEEDED
    assert (tmp_path / "file").read_text() == "one"
    with pytest.raises(LeptonError, match="nothing to decide"):
        intake.answer(SECOND, planned.id, approved=True)
    whats = [entry["what"] for entry in intake.runs.store.audit(planned.id)]
    assert whats.count("approved") == 2


def test_two_who_press_at_once_release_one_run(intake: Intake) -> None:
    planned = plan(intake)
    intake.answer(FIRST, planned.id, approved=True)
    released: list[Any] = []

    def press() -> None:
        try:
            released.append(intake.answer(SECOND, planned.id, approved=True))
        except LeptonError as error:
            released.append(error)

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.id for run in released if isinstance(run, Run)}) == 1


def test_a_crash_between_the_decision_and_its_run_is_mended(intake: Intake) -> None:
    planned = plan(intake)
    for caller in (FIRST, SECOND):
        intake.runs.store.decide(planned.id, caller.principal, approved=True)
    (run,) = intake.tend()
    assert run.approved_plan == planned.id
    assert intake.tend() == []


def test_expired_rejected_and_empty_plans_release_nothing(intake: Intake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late, no = plan(intake), plan(intake)
    assert intake.answer(ASKER, no.id, approved=False) is None  # whoever asked may take it back
    with pytest.raises(LeptonError, match="is rejected"):
        intake.answer(FIRST, no.id, approved=True)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda real=time.time: real() + 3601)
        with pytest.raises(LeptonError, match="is expired"):
            intake.answer(FIRST, late.id, approved=True)
        assert intake.tend() == []
        assert intake.runs.store.open_plans() == []
    (tmp_path / "file").write_text("one")
    (tmp_path / "file").chmod(0o600)
    with pytest.raises(LeptonError, match="would change nothing"):
        intake.answer(FIRST, plan(intake).id, approved=True)


def released(intake: Intake) -> Run:
    planned = plan(intake)
    intake.answer(FIRST, planned.id, approved=True)
    run = intake.answer(SECOND, planned.id, approved=True)
    assert run is not None
    return run


def test_a_playbook_that_changed_since_does_nothing(intake: Intake, site: Settings, tmp_path: Path) -> None:
    run = released(intake)
    playbook = site.playbooks / "x" / "y.yml"
    playbook.write_text(playbook.read_text() + "# another revision\n")
    ended = intake.runs.execute(run.id)
    assert "the playbook has changed since" in ended.error
    assert not (tmp_path / "file").exists()


def test_a_world_that_changed_since_does_nothing(intake: Intake, tmp_path: Path) -> None:
    run = released(intake)
    (tmp_path / "file").write_text("somebody's")
    ended = intake.runs.execute(run.id)
    assert "not what was approved" in ended.error
    assert (tmp_path / "file").read_text() == "somebody's"


def test_rights_that_were_taken_away_meanwhile_count(intake: Intake) -> None:
    planned = plan(intake)
    intake.answer(FIRST, planned.id, approved=True)
    approvals = intake.runs.settings.access.approvals
    intake.runs.settings = intake.runs.settings.model_copy(update={"access": Rules(approvals=approvals)})
    with pytest.raises(RefusedError, match="no grant names slack:T/U0"):
        intake.answer(SECOND, planned.id, approved=True)


def test_a_rule_on_the_number_of_hosts_lets_small_plans_go(intake: Intake, tmp_path: Path) -> None:
    rule = intake.runs.settings.access.approvals[0]
    for hosts_over, confirm, goes in ((1, False, True), (0, False, False), (1, True, False)):
        approvals = [rule.model_copy(update={"hosts_over": hosts_over})]
        intake.runs.settings = intake.runs.settings.model_copy(update={"access": intake.runs.settings.access.model_copy(update={"approvals": approvals})})
        planned, _ = intake.submit_values(ASKER, intake.runs.catalog.operations["x.y"], {}, key=f"key {next(KEYS)}", confirm=confirm)
        planned = intake.runs.execute(planned.id)
        assert [run.approved_plan for run in intake.tend()] == ([planned.id] if goes else [])
        # What destroys is confirmed by whoever asked, however few hosts it touches.
        assert (planned.origin["approval"]["rule"] == CONFIRMATION) is confirm
    assert not (tmp_path / "file").exists()


def test_a_freeze_stops_what_is_asked_and_what_waits_but_not_plans(intake: Intake, tmp_path: Path) -> None:
    run = released(intake)
    with pytest.raises(RefusedError, match="no grant names"):
        intake.freeze(STRANGER, "*", None, "")
    intake.freeze(ASKER, "thing/*", None, "release")
    with pytest.raises(RefusedError, match=r"thing/\* is frozen by slack:T/U0: release"):
        ask(intake)
    assert "is frozen" in intake.runs.execute(run.id).error
    operation = intake.runs.catalog.operations["x.y"]
    planned, _ = intake.submit(ASKER, Command(operation, {"word": "one", "secret": None}), key="a plan", check=True)
    assert intake.runs.execute(planned.id).state is State.SUCCEEDED
    assert not (tmp_path / "file").exists()
    assert intake.unfreeze(ASKER, "thing/*")
    assert not intake.unfreeze(ASKER, "thing/*")
    whats = [entry["what"] for entry in intake.runs.store.audit()]
    assert "frozen" in whats and "unfrozen" in whats  # noqa: PT018
    assert json.dumps(intake.runs.store.refusals(STRANGER.principal, 1))


def test_a_rule_that_only_shows_in_the_plan_brings_its_own_approvers(intake: Intake) -> None:
    two = intake.runs.settings.access.approvals[0]
    many = two.model_copy(update={"name": "many", "hosts_over": 5, "count": 1, "self_approval": True})
    access = intake.runs.settings.access.model_copy(update={"approvals": [many, two]})
    intake.runs.settings = intake.runs.settings.model_copy(update={"access": access})
    planned = plan(intake)
    assert planned.origin["approval"]["rule"] == "two"
    with pytest.raises(RefusedError, match="cannot approve it"):
        intake.answer(ASKER, planned.id, approved=True)


def test_what_cannot_be_planned_waits_for_a_decision_and_then_runs(intake: Intake, site: Settings, tmp_path: Path) -> None:
    tasks = f"- name: Write\n  ansible.builtin.command:\n    argv: [touch, {tmp_path / 'touched'}]\n  changed_when: true"
    write_playbook(site.playbooks, "x", "z", tasks, lepton="{risk: change}")
    intake.runs.catalog = site.catalog()
    rule = intake.runs.settings.access.approvals[0].model_copy(update={"hosts_over": 3, "count": 1})
    access = intake.runs.settings.access.model_copy(update={"approvals": [rule]})
    intake.runs.settings = intake.runs.settings.model_copy(update={"access": access})
    planned, _ = intake.submit_values(ASKER, intake.runs.catalog.operations["x.z"], {}, key="z")
    planned = intake.runs.execute(planned.id)
    assert intake.tend() == []  # an unknown number of hosts is not a small one
    run = intake.answer(FIRST, planned.id, approved=True)
    assert run is not None
    assert intake.runs.execute(run.id).state is State.SUCCEEDED
    assert (tmp_path / "touched").exists()


def test_a_yes_and_a_no_at_once_come_to_one_end(intake: Intake) -> None:
    planned = plan(intake)
    intake.answer(FIRST, planned.id, approved=True)
    assert intake.answer(FIRST, planned.id, approved=False) is None  # a second thought counts
    with pytest.raises(LeptonError, match="is rejected"):
        intake.answer(SECOND, planned.id, approved=True)
    other = plan(intake)
    intake.answer(FIRST, other.id, approved=True)
    intake.runs.store.decide(other.id, SECOND.principal, approved=True)
    assert intake.runs.store.decide(other.id, ASKER.principal, approved=False) is Standing.APPROVED


def test_a_freeze_that_comes_while_a_run_waits_for_its_lock_stops_it(intake: Intake, tmp_path: Path) -> None:
    run = released(intake)
    assert leases.try_acquire(intake.runs.store, leases.process_holder("somebody/1"), ["thing/one"]) == []
    thread = threading.Thread(target=intake.runs.execute, args=(run.id,))
    thread.start()
    eventually(lambda: "waiting for run somebody" in intake.runs.progress(run.id).task)
    intake.freeze(ASKER, "*", None, "")
    leases.release(intake.runs.store, "somebody/1")
    thread.join(30)
    assert "everything is frozen" in intake.runs.store.run(run.id).error
    assert not (tmp_path / "file").exists()


def test_what_is_due_later_is_judged_by_the_rules_and_rights_of_then(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.datetime.now()
    start, end = (now + datetime.timedelta(hours=hours) for hours in (2, 4))
    rule = intake.runs.settings.access.approvals[0].model_copy(update={"hours": f"{start:%H:%M}-{end:%H:%M}"})
    access = intake.runs.settings.access.model_copy(update={"approvals": [rule]})
    intake.runs.settings = intake.runs.settings.model_copy(update={"access": access})
    operation = intake.runs.catalog.operations["x.y"]
    later = now.timestamp() + 3 * 3600
    asked, _ = intake.submit_values(ASKER, operation, {}, key="then", origin={"due": later})
    assert asked.origin["approval"]["rule"] == "two"
    free, _ = intake.submit_values(ASKER, operation, {}, key="before", origin={"due": now.timestamp() + 3600})
    assert not free.origin.get("approval")
    assert intake.runs.execute(free.id).state is State.QUEUED
    intake.runs.settings = intake.runs.settings.model_copy(update={"access": Rules()})
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda real=time.time: real() + 3601)
        assert "no grant names" in intake.runs.execute(free.id).error


def test_a_rule_of_the_night_is_not_dropped_by_day_and_a_private_request_keeps_its_time(intake: Intake) -> None:
    now = datetime.datetime.now()
    start, end = (now + datetime.timedelta(hours=hours) for hours in (2, 4))
    rule = intake.runs.settings.access.approvals[0].model_copy(update={"hours": f"{start:%H:%M}-{end:%H:%M}", "name": "night"})
    slack = intake.runs.settings.slack.model_copy(update={"approvals_channel": "CAPPROVE"})
    access = intake.runs.settings.access.model_copy(update={"approvals": [rule]})
    intake.runs.settings = intake.runs.settings.model_copy(update={"access": access, "slack": slack})
    due = now.timestamp() + 3 * 3600
    origin = {"door": "slack", "team": "T", "channel": "U0", "due": due}
    planned, _ = intake.submit_values(ASKER, intake.runs.catalog.operations["x.y"], {}, key="n", origin=origin, confirm=True)
    planned = intake.runs.execute(planned.id)
    assert (planned.origin["approval"]["rule"], planned.origin["approval"]["count"]) == ("night", 2)
    assert (planned.origin["channel"], planned.origin["due"]) == ("CAPPROVE", due)
    intake.answer(FIRST, planned.id, approved=True)
    run = intake.answer(SECOND, planned.id, approved=True)
    assert run is not None
    assert run.due == due
    assert intake.runs.execute(run.id).state is State.QUEUED


def test_a_database_that_stumbles_loses_no_approval(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(intake, secret="hidden-thing")
    intake.answer(FIRST, planned.id, approved=True)
    with monkeypatch.context() as patch:
        patch.setattr(intake.runs.store, "add_run", lambda *_arguments, **_more: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            intake.answer(SECOND, planned.id, approved=True)
    (run,) = intake.tend()
    assert intake.runs.arguments(run)["secret"] == "hidden-thing"
