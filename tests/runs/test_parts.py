# SPDX-License-Identifier: Apache-2.0
"""Runs on a part of the hosts: one first, only those that failed; and what a cancel takes back. Real playbooks on four hosts of this machine."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import eventually, write_playbook

from lepton_ai.access.freezes import Freeze
from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.operations.parsing import Command
from lepton_ai.runs.model import Run, State, failed_of
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import Runs
from lepton_ai.settings import Settings
from lepton_ai.slack.views import AGAIN, AGAIN_FAILED, run_message

pytestmark = pytest.mark.slow
OWNER = "os:0@here"
HOSTS = ["h1", "h2", "h3", "h4"]
KEYS = itertools.count()


@pytest.fixture
def farm(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> tuple[Intake, Path]:
    """Four hosts, each a folder; an operation that writes a word into each, and fails where there is a file `broken`."""
    inventory = tmp_path / "hosts.yml"
    hosts = {host: {"folder": str(tmp_path / host)} for host in HOSTS}
    common = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
    for host in HOSTS:
        (tmp_path / host).mkdir()
    write_playbook(site.playbooks, "farm", "write", "- name: Nothing\n  ansible.builtin.meta: noop", options="{word: {type: str, required: true}}",
                   lepton="{risk: change, rerun: safe, plan: check, per_host: true, targets: [farm]}")  # fmt: skip
    (site.playbooks / "farm" / "write.yml").write_text(
        "- name: Write\n  hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Is it well?\n      ansible.builtin.stat: {path: '{{ folder }}/broken'}\n      register: broken\n"
        "    - name: Refuse\n      ansible.builtin.fail: {msg: it is broken}\n      when: broken.stat.exists and not ansible_check_mode\n"
        "    - name: Write the word\n      ansible.builtin.copy: {content: '{{ word }}', dest: '{{ folder }}/word', mode: '0600'}\n"
    )
    runs = make_runs()
    runs.settings = site.model_copy(update={"inventory": inventory})
    return Intake(runs, OWNER), tmp_path


def ask(intake: Intake, word: str, **how: Any) -> Run:
    operation = intake.runs.catalog.operations["farm.write"]
    run, _ = intake.submit(Caller(OWNER), Command(operation, {"word": word}), key=f"key {next(KEYS)}", **how)
    return intake.runs.execute(run.id)


def words(folder: Path) -> dict[str, str]:
    return {host: (folder / host / "word").read_text() for host in HOSTS if (folder / host / "word").exists()}


def test_one_host_first_and_then_the_others(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    order: list[int] = []
    intake.runs.listeners.append(lambda _run, _progress: order.append(len(words(folder))))
    run = ask(intake, "a", canary=True)
    assert run.state is State.SUCCEEDED
    assert words(folder) == dict.fromkeys(HOSTS, "a")
    assert 1 in order, "there was a moment at which only the first had it"
    again = ask(intake, "a", canary=True)
    assert (again.state, again.result["changed_hosts"]) == (State.SUCCEEDED, [])


def test_what_fails_on_the_first_host_is_done_on_no_other(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    (folder / "h1" / "broken").touch()
    run = ask(intake, "a", canary=True)
    assert run.state is State.FAILED
    assert "it is broken" in run.error
    assert "h1 was to go first, and 3 other hosts left as they were" in run.error
    assert words(folder) == {}


def test_a_freeze_after_the_first_host_stops_the_others(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm

    def freeze(_run: Run, _progress: Progress) -> None:
        if len(words(folder)) == 1 and not intake.runs.store.freezes():
            intake.runs.store.freeze(Freeze("farm", None, "os:1@here", "smoke"))

    intake.runs.listeners.append(freeze)
    run = ask(intake, "a", canary=True)
    assert run.state is State.FAILED
    assert "farm is frozen by os:1@here: smoke" in run.error
    assert words(folder) == {"h1": "a"}


def test_again_only_where_it_failed(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    for host in ("h2", "h4"):
        (folder / host / "broken").touch()
    failed = ask(intake, "a")
    assert failed.state is State.FAILED
    assert failed_of(failed) == ["h2", "h4"]
    assert words(folder) == {"h1": "a", "h3": "a"}
    buttons = [element["action_id"] for block in run_message(failed, per_host=True).blocks if block["type"] == "actions" for element in block["elements"]]
    assert buttons == [AGAIN, AGAIN_FAILED]
    for host in HOSTS:
        (folder / host / "broken").unlink(missing_ok=True)
        (folder / host / "word").unlink(missing_ok=True)
    run = intake.again(Caller(OWNER), failed.id, failed_hosts=True)
    assert intake.again(Caller(OWNER), failed.id, failed_hosts=True).id == run.id, "a double press is one press"
    ended = intake.runs.execute(run.id)
    assert (ended.state, list(ended.hosts)) == (State.SUCCEEDED, ["h2", "h4"])
    assert words(folder) == {"h2": "a", "h4": "a"}
    assert "--limit localhost,h2,h4" in ended.command
    with pytest.raises(LeptonError, match="failed on no host"):
        intake.again(Caller(OWNER), ended.id, failed_hosts=True)


def test_a_plan_for_some_hosts_is_approved_for_those(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    plan = ask(intake, "a", hosts=["h2", "h3"], confirm=True)
    assert plan.check
    assert sorted(plan.result["changed_hosts"]) == ["h2", "h3"]
    assert words(folder) == {}
    released = intake.answer(Caller(OWNER), plan.id, approved=True)
    assert released is not None
    assert intake.runs.execute(released.id).state is State.SUCCEEDED
    assert words(folder) == {"h2": "a", "h3": "a"}


def test_a_host_that_is_there_no_more_is_no_success(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    run = ask(intake, "a", hosts=["h1", "h9"])
    assert run.state is State.FAILED
    assert "h9 took no part" in run.error
    assert words(folder) == {"h1": "a"}


def test_a_plan_asked_for_again_is_a_plan(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    plan = ask(intake, "a", check=True)
    waiting = ask(intake, "a", confirm=True)
    for run in (plan, waiting):
        again = intake.again(Caller(OWNER), run.id)
        assert again.check
        assert "approval" not in again.origin
        assert intake.runs.execute(again.id).state is State.SUCCEEDED
    queued, _ = intake.submit(Caller(OWNER), Command(intake.runs.catalog.operations["farm.write"], {"word": "a"}), key="queued")
    with pytest.raises(LeptonError, match="has not ended yet"):
        intake.again(Caller(OWNER), queued.id)
    assert words(folder) == {}


@pytest.mark.parametrize("host", ["h*", "!h1", "h1:h2", "~h.", "@/etc/passwd", "h1,h2", "", "-e"])
def test_no_host_is_a_pattern(farm: tuple[Intake, Path], host: str) -> None:
    intake, folder = farm
    run = ask(intake, "a", hosts=[host])
    assert run.state is State.FAILED, run
    assert words(folder) == {}


def test_what_is_one_thing_for_all_hosts_is_not_done_in_parts(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", "- name: Nothing\n  ansible.builtin.meta: noop")
    write_playbook(site.playbooks, "x", "z", "- name: Nothing\n  ansible.builtin.meta: noop", lepton="{risk: change, plan: none, per_host: true}")
    intake = Intake(make_runs(), OWNER)
    for name, how, reason in (
        ("x.y", {"hosts": ["h"]}, "one thing for all hosts"),
        ("x.y", {"canary": True}, "one thing"),
        ("x.z", {"canary": True}, "cannot begin"),
    ):
        with pytest.raises(LeptonError, match=reason):
            intake.submit(Caller(OWNER), Command(intake.runs.catalog.operations[name], {}), key="k", **how)
    assert intake.runs.store.runs() == []


@pytest.fixture
def builder(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> tuple[Runs, Path]:
    """An operation that makes a file, waits, and makes another; and one that takes the first back."""
    half, whole = tmp_path / "half", tmp_path / "whole"
    tasks = (
        f"- name: Half\n  ansible.builtin.copy: {{content: '{{{{ word }}}}', dest: {half}, mode: '0600'}}\n"
        f"- name: Wait\n  ansible.builtin.wait_for: {{path: {tmp_path / 'go'}, timeout: 60}}\n  when: not ansible_check_mode\n"
        f"- name: Whole\n  ansible.builtin.copy: {{content: x, dest: {whole}, mode: '0600'}}\n"
    )
    options = "{word: {type: str, default: w}, other: {type: int, default: 1}}"
    write_playbook(site.playbooks, "thing", "make", tasks, options=options, lepton="{risk: change, plan: check, undo: thing.unmake, targets: [thing]}")
    unmake = f"- name: Take back\n  ansible.builtin.file: {{path: {half}, state: absent}}\n  when: word == 'w'"
    write_playbook(site.playbooks, "thing", "unmake", unmake, options="{word: {type: str, required: true}}", lepton="{risk: change, plan: check}")
    return make_runs(), tmp_path


@pytest.mark.parametrize(("word", "said"), [("w", "taken back by thing.unmake: "), ("v", "seen afterwards, not done: ")])
def test_a_cancel_takes_back_what_was_half_done_where_the_operation_says_how(builder: tuple[Runs, Path], word: str, said: str) -> None:
    runs, folder = builder
    operation = runs.catalog.operations["thing.make"]
    run, _ = Intake(runs, OWNER).submit(Caller(OWNER), Command(operation, {"word": word, "other": 1}), key="k")
    worker = threading.Thread(target=runs.execute, args=(run.id,))
    worker.start()
    eventually((folder / "half").exists)
    runs.cancel(run.id, OWNER)
    worker.join(30)
    ended = runs.store.run(run.id)
    assert ended.state is State.CANCELED
    assert said in ended.error, ended.error
    assert (folder / "half").exists() == (word == "v")
    assert not (folder / "whole").exists()


def crashed(runs: Runs, run: Run) -> None:
    """Leave what a process leaves that is killed in the middle of a run."""
    runs.store.add_attempt("gone", run.id, f"{run.id}/gone", "another boot")


def test_a_cancel_of_what_was_begun_before_a_crash_takes_it_back_too(builder: tuple[Runs, Path]) -> None:
    runs, folder = builder
    run, _ = Intake(runs, OWNER).submit(Caller(OWNER), Command(runs.catalog.operations["thing.make"], {"word": "w", "other": 1}), key="k")
    crashed(runs, run)
    (folder / "half").write_text("w")
    assert runs.cancel(run.id, OWNER)
    ended = runs.execute(run.id)
    assert (ended.state, ended.error.partition(":")[0]) == (State.CANCELED, "canceled; taken back by thing.unmake")
    assert not (folder / "half").exists()


def test_an_undo_waits_for_no_freeze_to_be_lifted_and_says_so(builder: tuple[Runs, Path]) -> None:
    runs, folder = builder
    run, _ = Intake(runs, OWNER).submit(Caller(OWNER), Command(runs.catalog.operations["thing.make"], {"word": "w", "other": 1}), key="k")
    crashed(runs, run)
    (folder / "half").write_text("w")
    runs.store.freeze(Freeze("thing", None, "os:1@here", "smoke"))
    runs.cancel(run.id, OWNER)
    ended = runs.execute(run.id)
    assert "thing.unmake would take back what was half done, and was not done: thing is frozen by os:1@here: smoke" in ended.error
    assert (folder / "half").exists()


def test_what_was_approved_and_cut_short_goes_on_with_the_rest_of_it(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    plan = ask(intake, "a", confirm=True)
    released = intake.answer(Caller(OWNER), plan.id, approved=True)
    assert released is not None
    crashed(intake.runs, released)
    (folder / "h1" / "word").write_text("a")  # so far it had come
    (folder / "h1" / "word").chmod(0o600)
    assert intake.runs.execute(released.id).state is State.SUCCEEDED
    assert words(folder) == dict.fromkeys(HOSTS, "a")


def test_what_was_approved_and_cut_short_does_nothing_else_than_that(farm: tuple[Intake, Path]) -> None:
    intake, folder = farm
    (folder / "h2" / "word").write_text("a")
    plan = ask(intake, "a", confirm=True)
    released = intake.answer(Caller(OWNER), plan.id, approved=True)
    assert released is not None
    crashed(intake.runs, released)
    (folder / "h2" / "word").write_text("somebody's own")
    ended = intake.runs.execute(released.id)
    assert ended.state is State.FAILED
    assert "nothing more was done, since this is not what was approved: but now h2" in ended.error
    assert "seen afterwards, not done: " in ended.error
    assert words(folder) == {"h2": "somebody's own"}
