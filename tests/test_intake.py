# SPDX-License-Identifier: Apache-2.0
"""Approvals as every door meets them: who, how many, how long, how often; and what happens when the world moves on."""

from __future__ import annotations

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
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.operations.parsing import Command
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.service import Runs
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.settings import Settings
from tests.conftest import write_playbook

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


def test_a_crash_between_the_decision_and_its_run_is_mended_by_the_next_press(intake: Intake) -> None:
    planned = plan(intake)
    for caller in (FIRST, SECOND):
        intake.runs.store.decide(planned.id, caller.principal, approved=True)
    assert isinstance(intake.answer(SECOND, planned.id, approved=True), Run)


def test_expired_rejected_and_empty_plans_release_nothing(intake: Intake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late, no = plan(intake), plan(intake)
    assert intake.answer(ASKER, no.id, approved=False) is None  # whoever asked may take it back
    with pytest.raises(LeptonError, match="is rejected"):
        intake.answer(FIRST, no.id, approved=True)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda real=time.time: real() + 3601)
        with pytest.raises(LeptonError, match="is expired"):
            intake.answer(FIRST, late.id, approved=True)
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
    for hosts_over, goes in ((1, True), (0, False)):
        approvals = [rule.model_copy(update={"hosts_over": hosts_over})]
        intake.runs.settings = intake.runs.settings.model_copy(update={"access": intake.runs.settings.access.model_copy(update={"approvals": approvals})})
        run = intake.planned(plan(intake))
        assert (run is not None) is goes
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
