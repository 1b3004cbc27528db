# SPDX-License-Identifier: Apache-2.0
"""The life of a run where things go wrong: secrets, slots, a store that fails, claims of the living and the dead."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import eventually, write_playbook

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.masking import MASK
from lepton_ai.operations.parsing import Command
from lepton_ai.runs import leases
from lepton_ai.runs.model import Request, Result, Run, State
from lepton_ai.runs.service import Runs
from lepton_ai.settings import Settings

pytestmark = pytest.mark.slow
OWNER = "os:0@here"
KEYS = itertools.count()
SECRET = "s3cr3t-value"
SECRET_OPTIONS = "{password: {type: str, no_log: true}, word: {type: str, default: w}}"


def command(*argv: str) -> str:
    return f"- name: Do\n  ansible.builtin.command:\n    argv: {json.dumps(argv)}\n  changed_when: true"


def ask(runs: Runs, name: str = "x.y", **arguments: Any) -> Run:
    operation = runs.catalog.operations[name]
    return Intake(runs, OWNER).submit(Caller(OWNER), Command(operation, arguments), key=f"key {next(KEYS)}")[0]


def test_a_secret_reaches_the_playbook_and_nothing_else(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    tasks = f"- name: Do\n  ansible.builtin.copy:\n    content: '{{{{ password }}}}'\n    dest: {seen}\n    mode: '0600'\n" + command("echo", "{{ password }}")
    write_playbook(site.playbooks, "x", "y", tasks, options=SECRET_OPTIONS)
    runs = make_runs()
    run = ask(runs, password=SECRET)
    assert run.arguments["password"] == MASK
    ended = runs.execute(run.id)
    assert (ended.state, ended.error) == (State.SUCCEEDED, "")
    assert seen.read_text() == SECRET
    assert SECRET not in str(ended) + str(runs.store.audit())
    for file in site.state_dir.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_a_run_whose_secrets_are_gone_is_not_run_with_a_mask(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"), options=SECRET_OPTIONS)
    runs = make_runs()
    run = ask(runs, password=SECRET)
    runs.forget_secrets(run.id)
    ended = runs.execute(run.id)
    assert ended.state is State.FAILED
    assert "ask again" in ended.error
    assert ended.command == ""


def test_a_request_that_could_not_be_written_leaves_no_secret(site: Settings, make_runs: Callable[[], Runs], monkeypatch: pytest.MonkeyPatch) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"), options=SECRET_OPTIONS)
    runs = make_runs()

    def full(*_args: Any, **_more: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(runs.store, "add_run", full)
    with pytest.raises(OSError, match="No space left"):
        ask(runs, password=SECRET)
    assert list((site.state_dir / "secrets").iterdir()) == []


def test_a_store_that_fails_at_the_end_leaks_no_lock_and_the_run_is_taken_up_again(
    site: Settings, make_runs: Callable[[], Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"), lepton="{risk: change, rerun: never, plan: check, locks: [l]}")
    runs = make_runs()
    run = ask(runs)
    real = runs.store.finish

    def broken(*_args: Any, **_more: Any) -> bool:
        raise OSError("No space left on device")

    monkeypatch.setattr(runs.store, "finish", broken)
    with pytest.raises(OSError, match="No space left"):
        runs.execute(run.id)
    assert leases.holders(runs.store) == []
    monkeypatch.setattr(runs.store, "finish", real)
    assert [orphan.id for orphan in runs.orphans()] == [run.id]
    assert runs.execute(run.id).state is State.INTERRUPTED


def test_a_run_that_waits_for_its_lock_takes_no_place_and_can_be_canceled(site: Settings, make_runs: Callable[[], Runs], store: Any) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"), lepton="{risk: change, rerun: safe, plan: check, locks: [l]}")
    write_playbook(site.playbooks, "x", "free", command("true"))
    runs = Runs(replace_settings(site, max_runs=1), site.catalog(), store)
    assert leases.try_acquire(store, leases.process_holder("somebody/1"), ["l"]) == []
    blocked = ask(runs)
    thread = threading.Thread(target=runs.execute, args=(blocked.id,))
    thread.start()
    eventually(lambda: "waiting for run somebody" in runs.progress(blocked.id).task)
    assert runs.execute(ask(runs, "x.free").id).state is State.SUCCEEDED
    assert runs.cancel(blocked.id, OWNER)
    thread.join(10)
    assert runs.store.run(blocked.id).state is State.CANCELED


def replace_settings(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


def test_what_another_living_process_runs_is_left_to_it_and_taken_up_when_it_is_dead(site: Settings, make_runs: Callable[[], Runs], store: Any) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))
    runs = make_runs()
    run = ask(runs)
    other = subprocess.Popen(["sleep", "60"])
    assert leases.try_acquire(store, leases.process_holder(f"{run.id}/other", other.pid), [f"run/{run.id}"]) == []
    assert runs.execute(run.id).state is State.QUEUED
    assert runs.orphans() == []
    other.kill()
    other.wait()
    assert [orphan.id for orphan in runs.orphans()] == [run.id]
    assert runs.execute(run.id).state is State.SUCCEEDED


def test_two_threads_at_one_run_run_it_once(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_playbook(site.playbooks, "x", "y", command("sh", "-c", f"echo once >> {trace}"))
    runs = make_runs()
    run = ask(runs)
    threads = [threading.Thread(target=runs.execute, args=(run.id,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trace.read_text() == "once\n"
    assert runs.execute(run.id).state is State.SUCCEEDED


def test_a_refusal_is_written_down(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))
    runs = make_runs()
    operation = runs.catalog.operations["x.y"]
    with pytest.raises(RefusedError, match="no grant names slack:T/U"):
        Intake(runs, OWNER).submit(Caller("slack:T/U"), Command(operation, {}), key="k")
    (entry,) = runs.store.audit()
    assert (entry["what"], entry["principal"]) == ("refused", "slack:T/U")
    assert runs.store.runs() == []


def test_what_cannot_be_planned_is_said_before_anything_runs(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"), lepton="{risk: destroy, locks: ['thing/1']}")
    runs = make_runs()
    operation = runs.catalog.operations["x.y"]
    intake = Intake(runs, OWNER)
    with pytest.raises(LeptonError, match="cannot be planned"):
        intake.submit(Caller(OWNER), Command(operation, {}), key="a", check=True)
    # Asked for in Slack, its confirmation says what it is about instead.
    run, _ = intake.submit(Caller(OWNER), Command(operation, {}), key="b", confirm=True, origin={"door": "slack"})
    ended = runs.execute(run.id)
    assert ended.state is State.SUCCEEDED
    assert "thing/1" in ended.result["warnings"][0]
    assert ended.command == ""


def test_an_operation_that_is_gone_fails_its_run(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))
    runs = make_runs()
    run = ask(runs)
    runs.catalog = replace(runs.catalog, operations={})
    assert "no longer exists" in runs.execute(run.id).error


def test_the_same_key_is_the_same_run(make_runs: Callable[[], Runs], site: Settings) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))
    runs = make_runs()
    first = runs.submit(Request("x.y", {}, OWNER, key="same"))
    assert runs.submit(Request("x.y", {}, OWNER, key="same")) == (first[0], False)


def test_a_cancel_asked_of_another_process_ends_the_run(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> None:
    write_playbook(site.playbooks, "x", "y", command("sleep", "60"))
    runs, elsewhere = make_runs(), make_runs()
    run = ask(runs)
    ended = threading.Event()
    threading.Thread(target=runs.keep, args=(ended,), daemon=True).start()
    thread = threading.Thread(target=runs.execute, args=(run.id,))
    thread.start()
    eventually(lambda: runs.store.run(run.id).state is State.RUNNING)
    assert elsewhere.cancel(run.id, OWNER)
    thread.join(10)
    ended.set()
    assert runs.store.run(run.id).state is State.CANCELED
    assert not elsewhere.cancel(run.id, OWNER)


def test_a_run_that_was_asked_to_end_before_anybody_was_at_it_never_begins(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_playbook(site.playbooks, "x", "y", command("touch", str(trace)))
    runs = make_runs()
    run = ask(runs)
    assert runs.cancel(run.id, OWNER)
    assert runs.execute(run.id).state is State.CANCELED
    assert not trace.exists()


def test_who_lost_its_claim_writes_nothing(site: Settings, make_runs: Callable[[], Runs], store: Any) -> None:
    write_playbook(site.playbooks, "x", "y", command("sleep", "60"))
    runs = make_runs()
    run = ask(runs)
    thread = threading.Thread(target=runs.execute, args=(run.id,))
    thread.start()
    eventually(lambda: runs.store.run(run.id).state is State.RUNNING)
    (claim,) = {holder.owner for holder in leases.holders(store)}
    leases.release(store, claim)
    assert leases.try_acquire(store, leases.process_holder(f"{run.id}/successor"), [f"run/{run.id}"]) == []
    assert not store.finish(run.id, State.SUCCEEDED, Result(), claim=claim)
    assert not store.set_running(run.id, "again", claim)
    runs.keep_leases()
    thread.join(10)
    assert store.run(run.id).state is State.RUNNING


def test_what_a_cancel_left_undone_is_seen_and_said(site: Settings, make_runs: Callable[[], Runs], tmp_path: Path) -> None:
    copy = "- name: NAME\n  ansible.builtin.copy:\n    content: new\n    dest: FOLDER/NAME\n    mode: '0600'".replace("FOLDER", str(tmp_path))
    first, second = copy.replace("NAME", "first"), copy.replace("NAME", "second")
    tasks = [first, command("sh", "-c", "sleep 60") + "\n  when: not ansible_check_mode", second]
    write_playbook(site.playbooks, "x", "y", "\n".join(tasks))
    runs = make_runs()
    run = ask(runs)
    thread = threading.Thread(target=runs.execute, args=(run.id,))
    thread.start()
    eventually(lambda: (tmp_path / "first").exists() and runs.progress(run.id).task == "Do")
    runs.cancel(run.id, OWNER)
    thread.join(30)
    ended = runs.store.run(run.id)
    assert ended.state is State.CANCELED
    assert "seen afterwards, not done" in ended.error
    assert f"{tmp_path}/second" in ended.error
    assert f"{tmp_path}/first" not in ended.error


def test_what_is_due_later_is_nobodys_orphan_until_then(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))
    runs = make_runs()
    for due, waits in ((time.time() + 60, True), (time.time() - 1, False)):
        run, _ = runs.submit(Request("x.y", {}, OWNER, key=f"due {due}", origin={"due": due}))
        assert (run.id in [orphan.id for orphan in runs.orphans()]) is not waits


def test_ten_megabytes_of_output_are_borne_and_bounded(site: Settings, make_runs: Callable[[], Runs]) -> None:
    write_playbook(site.playbooks, "x", "y", command("python3", "-c", "print('a line of output\\n' * 600_000); raise SystemExit('the last word')"))
    runs = make_runs()
    ended = runs.execute(ask(runs).id)
    assert ended.state is State.FAILED
    assert len(json.dumps(ended.result)) < 100_000
