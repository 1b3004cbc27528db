# SPDX-License-Identifier: Apache-2.0
"""One attempt with the real ansible-runner: what reaches the playbook, what is left of it, and how it ends."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import eventually, write_playbook

from lepton_ai.masking import MASK
from lepton_ai.paths import collections_path
from lepton_ai.runs import processes
from lepton_ai.runs.executor import Cancel, Job, command_line, execute
from lepton_ai.runs.model import EventKind, RunEvent, State
from lepton_ai.settings import Settings

pytestmark = pytest.mark.slow
OPTIONS = "{word: {type: str}}"


@pytest.fixture
def job(site: Settings) -> Job:
    return Job(
        run_id="run", token="token-" + os.urandom(4).hex(), playbook=site.playbooks / "x" / "y.yml", inventory=site.inventory, arguments={}, check=False,
        timeout=60, private_dir=site.state_dir / "private" / "t", output=site.state_dir / "output" / "run.txt", collections=collections_path(),
    )  # fmt: skip


def command(*argv: str) -> str:
    return f"- name: Do\n  ansible.builtin.command:\n    argv: {json.dumps(argv)}\n  changed_when: false"


def run(job: Job, cancel: Cancel | None = None) -> tuple[State, str, list[RunEvent]]:
    events: list[RunEvent] = []
    state, error = execute(job, events.append, cancel or Cancel())
    return state, error, events


def test_events_arrive_and_nothing_is_left(site: Settings, job: Job) -> None:
    write_playbook(site.playbooks, "x", "y", command("echo", "hello"))
    state, error, events = run(job)
    assert (state, error) == (State.SUCCEEDED, "")
    kinds = [event.kind for event in events]
    assert kinds[:2] == [EventKind.PLAY, EventKind.TASK]
    assert kinds[-1] is EventKind.STATS
    assert [event.result["stdout"] for event in events if event.kind is EventKind.OK] == ["hello"]
    assert not job.private_dir.exists()
    assert processes.of_attempt(job.token) == []
    assert "hello" not in job.output.read_text()  # Ansible shows no output of a task that went well
    assert job.output.stat().st_mode & 0o077 == 0


def test_what_somebody_typed_is_never_a_template(site: Settings, job: Job, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    write_playbook(
        site.playbooks, "x", "y", f"- name: Do\n  ansible.builtin.copy:\n    content: '{{{{ word }}}}'\n    dest: {seen}\n    mode: '0600'", options=OPTIONS
    )
    word = "{{ lookup('pipe', 'id') }} {% for i in range(3) %}x{% endfor %}"
    state, error, _ = run(replace(job, arguments={"word": word}))
    assert (state, error) == (State.SUCCEEDED, "")
    assert seen.read_text() == word


def test_the_playbooks_environment_is_ours_to_say(site: Settings, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-must-not-leak")
    monkeypatch.setenv("ANSIBLE_STRATEGY", "free")
    monkeypatch.setenv("PASSED", "on")
    write_playbook(site.playbooks, "x", "y", command("env"))
    _state, _error, events = run(replace(job, extra_environment=["PASSED"]))
    (environment,) = [event.result["stdout"] for event in events if event.kind is EventKind.OK]
    assert "SLACK" not in environment
    assert "ANSIBLE_STRATEGY" not in environment
    assert "PASSED=on" in environment
    assert "ANSIBLE_HOST_KEY_CHECKING=True" in environment


def test_secrets_are_masked_wherever_they_turn_up(site: Settings, job: Job) -> None:
    write_playbook(site.playbooks, "x", "y", command("sh", "-c", "echo it is s3cr3t-value; exit 3"))
    _state, _error, events = run(replace(job, secrets=["s3cr3t-value"]))
    assert "s3cr3t-value" not in str(events)
    assert MASK in str(events)
    assert "s3cr3t-value" not in job.output.read_text()


def test_cancel_ends_every_process_within_two_seconds(site: Settings, job: Job) -> None:
    write_playbook(site.playbooks, "x", "y", command("sh", "-c", "trap '' TERM; sleep 300 & wait; sleep 300"))
    cancel = Cancel()
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(run(job, cancel)))
    thread.start()
    eventually(lambda: any("sleep" in Path(f"/proc/{pid}/comm").read_text() for pid in processes.of_attempt(job.token)))
    begun = time.monotonic()
    cancel.set()
    eventually(lambda: not processes.of_attempt(job.token), 2)
    thread.join(10)
    assert done[0][:2] == (State.CANCELED, "canceled")
    assert time.monotonic() - begun < 4


def test_a_run_that_takes_too_long_is_ended(site: Settings, job: Job) -> None:
    write_playbook(site.playbooks, "x", "y", command("sleep", "300"))
    state, error, _ = run(replace(job, timeout=3))
    assert (state, error) == (State.TIMED_OUT, "not finished within 3 s")
    assert processes.of_attempt(job.token) == []


def test_a_failing_event_handler_does_not_hang_the_run(site: Settings, job: Job) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))

    def broken(_event: RunEvent) -> None:
        raise RuntimeError("handler")

    assert execute(job, broken, Cancel()) == (State.SUCCEEDED, "")


@pytest.mark.parametrize(
    ("playbook", "reason"),
    [("- name: Do\n  no.such.module:", "no.such.module"), ("- name: [", "YAML")],
)
def test_a_broken_playbook_is_said_in_a_sentence(site: Settings, job: Job, playbook: str, reason: str) -> None:
    write_playbook(site.playbooks, "x", "y", playbook)
    state, error, _ = run(job)
    assert state is State.FAILED
    assert reason in error
    assert "Traceback" not in error


def test_an_inventory_that_is_missing_is_said(site: Settings, job: Job) -> None:
    write_playbook(site.playbooks, "x", "y", command("true"))
    state, error, _ = run(replace(job, inventory=Path("/nowhere")))
    assert state is State.FAILED
    assert "inventory" in error.lower()


def test_the_line_for_doing_it_by_hand_is_quoted() -> None:
    line = command_line(Path("/p/x.yml"), Path("/i"), {"node": "web-1; rm -rf /", "none": None}, check=True)
    assert line == """ansible-playbook -i /i /p/x.yml -e '{"node": "web-1; rm -rf /"}' --check --diff"""
    assert "__ansible_unsafe" in command_line(Path("/p"), Path("/i"), {"node": "{{ 1 }}"}, check=False)
