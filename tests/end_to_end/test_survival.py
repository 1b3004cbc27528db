# SPDX-License-Identifier: Apache-2.0
"""What happens when things break in the middle: the bot killed, Slack away, a second service, a press twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, eventually

from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand, serving
from lepton_ai.slack.views import APPROVE, CANCEL

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


@pytest.fixture
def trace(workspace_stand: Stand) -> Iterator[Path]:
    """Where probes leave their trace; `trace.go` lets them end."""
    path = workspace_stand.folder / "trace"
    for file in (path, Path(f"{path}.go")):
        file.unlink(missing_ok=True)
    yield path
    Path(f"{path}.go").touch()
    eventually(lambda: not any(run["state"] in ("queued", "running") for run in lepton(workspace_stand, "runs", "--json")), 30)


@pytest.fixture
def ada(workspace_stand: Stand) -> Person:
    return Person(workspace_stand.base_url)


def lepton(stand: Stand, *words: str, expect: int = 0) -> Any:
    """Run the command on the stand's site and return what it printed, read as JSON where it is."""
    done = subprocess.run(
        [sys.executable, "-m", "lepton_ai", *words, "--site", str(stand.site)],
        capture_output=True, text=True, check=False, timeout=120, cwd="/", env={**os.environ, "LEPTON_SANDBOX": str(stand.folder)},
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    try:
        return json.loads(done.stdout)
    except ValueError:
        return done.stdout + done.stderr


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def go(trace: Path) -> None:
    Path(f"{trace}.go").touch()


def restart(stand: Stand) -> None:
    stand.bot.kill()
    stand.start_bot()


def test_killed_in_the_middle_a_safe_run_is_done_again_and_never_twice_at_once(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    workspace_stand.bot.kill()
    assert lines(trace) == ["begin"]
    workspace_stand.start_bot()
    # The first attempt was ended before the second began: it can never write its end.
    eventually(lambda: lines(trace) == ["begin", "begin"])
    go(trace)
    ada.wait(lambda text: "*changed*" in text)
    assert lines(trace) == ["begin", "begin", "end"]
    assert len([message for message in ada.answers() if "probe slow" in text_of(message) and "stream" not in message]) == 1


def test_killed_in_the_middle_an_unsafe_run_is_reported_and_not_repeated(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe once")
    eventually(lambda: lines(trace) == ["begin"])
    restart(workspace_stand)
    ada.wait(lambda text: "*interrupted*" in text)
    go(trace)
    assert lines(trace) == ["begin"]
    (run,) = lepton(workspace_stand, "runs", "--json", "--limit", "1")
    assert (run["operation"], run["state"]) == ("probe.once", "interrupted")
    # Its lock is free again.
    ada.say("/lepton probe once")
    ada.wait(lambda text: "*changed*" in text)


def test_stopped_in_order_the_run_goes_on_at_the_next_start(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    workspace_stand.bot.stop()
    workspace_stand.start_bot()
    eventually(lambda: lines(trace)[:2] == ["begin", "begin"], 30)
    go(trace)
    ada.wait(lambda text: "*changed*" in text)


def test_an_upgrade_in_between_loses_nothing(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    workspace_stand.bot.kill()
    upgrade = workspace_stand.folder / "upgrade"
    upgrade.mkdir(exist_ok=True)
    # Other code than before: DBOS's default version would be another, and leave the run behind.
    (upgrade / "sitecustomize.py").write_text("import lepton_ai.runs.queue as q\ndef extra():\n    pass\nq.upgraded = extra\n")
    workspace_stand.bot.environment["PYTHONPATH"] = str(upgrade)
    try:
        workspace_stand.start_bot()
        eventually(lambda: lines(trace) == ["begin", "begin"])
        go(trace)
        ada.wait(lambda text: "*changed*" in text)
    finally:
        del workspace_stand.bot.environment["PYTHONPATH"]
        restart(workspace_stand)


def test_a_second_service_is_refused_and_the_first_goes_on(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    refused = lepton(workspace_stand, "serve", expect=2)
    assert "another lepton serve" in refused
    go(trace)
    ada.wait(lambda text: "*changed*" in text)
    assert lines(trace) == ["begin", "end"]


def test_the_command_line_asks_the_service_and_waits_for_the_same_lock(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    beside = subprocess.Popen(
        [sys.executable, "-m", "lepton_ai", "run", "probe", "slow", "--site", str(workspace_stand.site)], cwd="/", stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: [run["state"] for run in lepton(workspace_stand, "runs", "--json", "--limit", "2")] == ["queued", "running"])
    assert lines(trace) == ["begin"]
    go(trace)
    assert beside.wait(60) == 0
    assert "waiting for run" in (beside.stderr.read() if beside.stderr else "")
    assert lines(trace) == ["begin", "end", "begin", "end"]


def test_a_foreground_run_and_a_service_that_starts_beside_it_do_not_meet(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    workspace_stand.bot.stop()
    alone = subprocess.Popen(
        [sys.executable, "-m", "lepton_ai", "run", "probe", "slow", "--site", str(workspace_stand.site)], cwd="/", stderr=subprocess.DEVNULL
    )
    eventually(lambda: lines(trace) == ["begin"])
    workspace_stand.start_bot()
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "waiting for run" in text)
    assert lines(trace) == ["begin"]
    go(trace)
    assert alone.wait(60) == 0
    ada.wait(lambda text: "*changed*" in text)
    assert lines(trace) == ["begin", "end", "begin", "end"]


def test_plain_ansible_playbook_meets_the_same_lock(workspace_stand: Stand, ada: Person) -> None:
    # Its target does not exist, which is found out after the lock was asked for.
    from lepton_ai.runs.leases import process_holder, release, try_acquire
    from lepton_ai.runs.store import Store

    store = Store(workspace_stand.folder / "state")
    root = Path(__file__).resolve().parents[2]
    command = [root / ".venv/bin/ansible-playbook", "playbooks/node/start.yml", "-e", "node=locked"]
    environment = {**os.environ, "LEPTON_SANDBOX": str(workspace_stand.folder), "LEPTON_SOCKET": str(workspace_stand.folder / "state" / "lepton.sock")}
    try:
        assert try_acquire(store, process_holder("somebody"), ["node/locked"]) == []
        refused = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert "node/locked is locked by somebody" in refused.stdout + refused.stderr
        release(store, "somebody")
        free = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert "no host has a node locked" in free.stdout + free.stderr
        eventually(lambda: try_acquire(store, process_holder("next"), ["node/locked"]) == [])
        release(store, "next")
    finally:
        store.close()


def test_a_duplicate_delivery_and_a_double_press_run_once(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    go(trace)
    ada.say("/lepton probe slow", copies=3)
    ada.wait(lambda text: "*changed*" in text)
    assert lines(trace) == ["begin", "end"]


def test_cancel_from_slack_is_quick_and_ends_the_task(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    running = ada.wait(lambda text: "running ·" in text)
    mallory = Person(workspace_stand.base_url, "U0MALLORY", seen=ada.seen)
    mallory.press(running, CANCEL)
    mallory.wait(lambda text: "may not cancel" in text)
    pressed = time.monotonic()
    ada.press(running, CANCEL)
    ada.wait(lambda text: "*canceled*" in text)
    assert time.monotonic() - pressed < 10
    go(trace)
    assert lines(trace) == ["begin"]


def test_a_run_that_takes_too_long_is_ended(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe short")
    assert "not finished within 2 s" in text_of(ada.wait(lambda text: "*timed out*" in text))


def test_slack_away_in_the_middle_of_a_run_gets_the_end_when_it_is_back(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "running ·" in text)
    workspace_stand.sandbox.web_api.limit("chat.update", 1_000_000, 1)
    go(trace)
    eventually(lambda: lines(trace) == ["begin", "end"])
    eventually(lambda: lepton(workspace_stand, "runs", "--json", "--limit", "1")[0]["state"] == "succeeded")
    limited = [call for call in workspace_stand.sandbox.workspace.calls if call["limited"]]
    assert limited
    workspace_stand.sandbox.web_api.limit("chat.update", 0, 0)
    ada.wait(lambda text: "*changed*" in text)


def test_slack_not_there_at_the_start_is_waited_for(workspace_stand: Stand) -> None:
    stand = workspace_stand
    stand.bot.stop()
    settings = stand.site / "lepton.yml"
    before = settings.read_text()
    from lepton_ai.sandbox.stand import free_port

    port = free_port()
    settings.write_text(before.replace(stand.base_url, f"http://127.0.0.1:{port}/"))
    stand.bot.start()
    try:
        eventually(lambda: "Failed to connect" in stand.bot.log.read_text())
        assert stand.bot.process is not None
        assert stand.bot.process.poll() is None
        from lepton_ai.sandbox.server import Sandbox
        from lepton_ai.sandbox.workspace import sandbox_workspace

        with serving(Sandbox(sandbox_workspace(), f"http://127.0.0.1:{port}/"), port):
            eventually(stand.bot.connected, 30)
            late = Person(f"http://127.0.0.1:{port}/")
            late.say("/lepton node list")
            late.wait(lambda text: "There is none" in text)
            stand.bot.stop()
    finally:
        stand.bot.stop()
        settings.write_text(before)
        stand.start_bot()


def test_only_who_asked_can_confirm_and_once(workspace_stand: Stand, ada: Person) -> None:
    ada.say("/lepton node create gone-1 image=guest memory=64MiB network=none")
    ada.wait(lambda text: "*changed*" in text, 90)
    ada.say("/lepton node release gone-1")
    plan = ada.wait(lambda text: "[Do it]" in text)
    grace = Person(workspace_stand.base_url, "U0GRACE", seen=plan["ts"])
    grace.press(plan, APPROVE)
    grace.wait(lambda text: "may approve this" in text)
    ada.seen = plan["ts"]
    ada.press(plan, APPROVE, copies=2)
    ada.wait(lambda text: "*changed*" in text)
    assert len([message for message in ada.answers() if "node release" in text_of(message) and "stream" not in message]) == 1
    ada.say("/lepton node show gone-1")
    ada.wait(lambda text: "no host has a node gone-1" in text)


def test_a_channel_without_the_bot_is_answered_through_the_commands_own_address(workspace_stand: Stand) -> None:
    ada = Person(workspace_stand.base_url, channel="C0RANDOM")
    ada.say("/lepton node list")
    answer = ada.wait(lambda text: "*done*" in text)
    assert answer["ephemeral_to"] == ada.user


def test_a_groups_grant_holds_in_its_channel_only(workspace_stand: Stand) -> None:
    grace = Person(workspace_stand.base_url, "U0GRACE", "C0MODELS")
    grace.say("/lepton node list")
    grace.wait(lambda text: "*done*" in text)
    grace.say("/lepton node resize db-1 vcpus=2")
    grace.wait(lambda text: "reaches only node/web-*" in text)
    grace.say("/lepton help")
    assert "release" not in text_of(grace.wait(lambda text: "What can be asked for" in text))
    elsewhere = Person(workspace_stand.base_url, "U0GRACE", "C0OPS")
    elsewhere.say("/lepton node list")
    elsewhere.wait(lambda text: "only in the channels C0MODELS" in text)


def test_the_connection_that_slack_closes_is_opened_again(workspace_stand: Stand, ada: Person) -> None:
    import httpx

    httpx.post(f"{workspace_stand.base_url}people/disconnect")
    eventually(lambda: workspace_stand.sandbox.socket_mode.connected.is_set(), 30)

    def answered() -> bool:
        ada.say("/lepton help")
        return any("What can be asked for" in text_of(message) for message in ada.answers())

    eventually(answered, 30)


def test_a_lock_can_be_stolen_by_who_may_freeze_and_is_written_down(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    eventually(lambda: lines(trace) == ["begin"])
    assert "probe/slow" in lepton(workspace_stand, "locks")
    assert "nobody holds the lock node/x" in lepton(workspace_stand, "locks", "steal", "node/x", "--why", "test", expect=2)
    assert "taken from" in lepton(workspace_stand, "locks", "steal", "probe/slow", "--why", "it hangs")
    ada.wait(lambda text: "*canceled*" in text)
    eventually(lambda: "probe/slow" not in lepton(workspace_stand, "locks"))
    assert '"why": "it hangs"' in subprocess.check_output(
        [sys.executable, "-m", "lepton_ai", "audit", "export", "--site", str(workspace_stand.site)], text=True, cwd="/"
    )


def test_a_plain_playbook_that_asks_for_locks_does_nothing_without_them(workspace_stand: Stand, trace: Path) -> None:
    playbook = workspace_stand.site / "playbooks" / "probe" / "echo.yml"
    for address in ({}, {"LEPTON_SOCKET": "/nowhere.sock"}):
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", playbook, "-e", "word=w"], capture_output=True, text=True, check=False, cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LEPTON_LOCKS": "required", **address},
        )  # fmt: skip
        assert done.returncode
        assert "LEPTON_LOCKS asks for locks" in done.stdout + done.stderr
