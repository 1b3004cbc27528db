# SPDX-License-Identifier: Apache-2.0
"""What Slack does on bad days, with the real Bolt app against the sandbox: late answers, lost lines, streams that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import eventually
from tests.end_to_end.test_survival import go, lepton, lines

from lepton_ai.sandbox.people import Person, text_of
from lepton_ai.sandbox.stand import Stand
from lepton_ai.slack.views import CANCEL, FILL_IN

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]


@pytest.fixture
def trace(workspace_stand: Stand) -> Iterator[Path]:
    """Where probes leave their trace; `trace.go` lets them end."""
    path = workspace_stand.folder / "trace"
    for file in (path, Path(f"{path}.go")):
        file.unlink(missing_ok=True)
    yield path
    go(path)
    eventually(lambda: not any(run["state"] in ("queued", "running") for run in lepton(workspace_stand, "runs", "--json")), 30)


@pytest.fixture
def ada(workspace_stand: Stand) -> Person:
    return Person(workspace_stand.base_url)


def fault(stand: Stand, **what: Any) -> None:
    httpx.post(f"{stand.base_url}people/fault", json=what).raise_for_status()


def calls(stand: Stand, method: str) -> int:
    return sum(call["method"] == method for call in stand.sandbox.workspace.calls)


def task_list(ada: Person) -> dict[str, Any] | None:
    return next((message for message in ada.answers() if "stream" in message), None)


def test_tasks_of_a_long_run_stand_in_its_thread_as_a_list(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    running = ada.wait(lambda text: "its tasks stand in the thread" in text)
    assert "[Cancel]" in text_of(running)
    listed = eventually(lambda: task_list(ada))
    assert listed["thread_ts"] == running["ts"]
    assert listed["stream"]["title"] == "probe slow"
    assert [(task["title"], task["status"]) for task in listed["stream"]["tasks"]] == [("Take a while", "in_progress")]
    # While nothing happens, nothing is sent.
    before = calls(workspace_stand, "chat.update"), calls(workspace_stand, "chat.appendStream")
    go(trace)
    ada.wait(lambda text: "*changed*" in text)
    ended = eventually(lambda: message if (message := task_list(ada)) and message.get("stream_ended") else None)
    assert [(task["status"], task["details"]) for task in ended["stream"]["tasks"]] == [("complete", "localhost changed")]
    assert calls(workspace_stand, "chat.update") - before[0] <= 2
    assert calls(workspace_stand, "chat.appendStream") - before[1] <= 2


def test_a_restart_goes_on_with_the_list_and_a_cancel_ends_it(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "its tasks stand in the thread" in text)
    workspace_stand.bot.kill()
    workspace_stand.start_bot()
    eventually(lambda: lines(trace) == ["begin", "begin"])
    running = ada.wait(lambda text: "running" in text and "[Cancel]" in text)
    ada.press(running, CANCEL)
    ada.wait(lambda text: "*canceled*" in text)
    listed = eventually(lambda: message if (message := task_list(ada)) and message.get("stream_ended") else None)
    assert len([message for message in ada.answers() if "stream" in message]) == 1
    assert {task["status"] for task in listed["stream"]["tasks"]} == {"error"}


def test_a_workspace_without_streams_sees_the_same_in_the_message(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    fault(workspace_stand, has_streams=False)
    try:
        before = calls(workspace_stand, "chat.startStream")
        ada.say("/lepton probe slow")
        eventually(lambda: calls(workspace_stand, "chat.startStream") > before)
        ada.wait(lambda text: "running ·" in text and "Take a while" in text)
        go(trace)
        ada.wait(lambda text: "*changed*" in text)
        assert task_list(ada) is None
    finally:
        fault(workspace_stand, has_streams=True)
        # That there are none is known until the next start.
        workspace_stand.bot.kill()
        workspace_stand.start_bot()


def test_an_acknowledgement_that_came_too_late_and_the_second_try_of_its_asker(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    """Slack says that it failed, though it was taken: the run exists and says so; whoever asks again waits behind it."""
    fault(workspace_stand, late_acknowledgements=1)
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "operation_timeout" in text)
    ada.wait(lambda text: "probe slow" in text and "running" in text)
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "queued: waiting for run" in text)
    eventually(lambda: lines(trace) == ["begin"])
    go(trace)
    ada.wait(lambda text: "*changed*" in text)
    eventually(lambda: lines(trace) == ["begin", "end", "begin", "end"])


def test_a_line_that_drops_without_a_word_is_opened_again_and_nothing_is_lost(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "running" in text)
    opened = calls(workspace_stand, "apps.connections.open")
    httpx.post(f"{workspace_stand.base_url}people/disconnect", json={"drop": True}).raise_for_status()
    eventually(lambda: calls(workspace_stand, "apps.connections.open") > opened and workspace_stand.sandbox.socket_mode.connected.is_set(), 60)
    go(trace)
    ada.wait(lambda text: "*changed*" in text)
    ada.say("/lepton help")
    ada.wait(lambda text: "What can be asked for" in text)


def test_what_was_typed_is_not_lost_with_its_trigger(workspace_stand: Stand, ada: Person) -> None:
    fault(workspace_stand, expired_triggers=1)
    ada.say("/lepton node create vcpus=2 memory=64MiB")
    said = ada.wait(lambda text: "did not open the form (expired_trigger_id)" in text and "[Fill in]" in text)
    ada.press(said, FILL_IN)
    view = eventually(lambda: next((view for view in ada.state()["views"].values() if view["title"]["text"] == "node create"), None))
    values = {block["block_id"]: block["element"].get("initial_value") for block in view["blocks"] if block["type"] == "input"}
    assert (values["vcpus"], values["memory"]) == ("2", "64MiB")


def test_500s_and_429s_in_a_row_delay_the_end_and_do_not_lose_it(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "its tasks stand in the thread" in text)  # else the end of its list would fail in a later test
    httpx.post(f"{workspace_stand.base_url}people/limit", json={"method": "chat.update", "times": 2, "retry_after": 1}).raise_for_status()
    fault(workspace_stand, method="chat.stopStream", times=1, status=500)
    go(trace)
    ada.wait(lambda text: "*changed*" in text)
    eventually(lambda: (message := task_list(ada)) and message.get("stream_ended"))


def test_a_button_of_another_workspace_and_one_of_last_week_change_nothing(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    workspace_stand.sandbox.workspace.users["U0ADA2"] = {"id": "U0ADA2", "team_id": "T0OTHER", "name": "<!channel>", "is_bot": False, "deleted": False}
    other = Person(workspace_stand.base_url, "U0ADA2")
    ada.say("/lepton probe slow")
    running = ada.wait(lambda text: "running" in text and "[Cancel]" in text)
    eventually(lambda: lines(trace) == ["begin"])
    other.seen = running["ts"]
    other.press(running, CANCEL)
    other.wait(lambda text: "this belongs to another workspace" in text)
    go(trace)
    ended = ada.wait(lambda text: "*changed*" in text)
    # The same press again, from a copy of the message as it was then.
    old = {**ended, "blocks": running["blocks"]}
    workspace_stand.sandbox.workspace.message(ended["channel"], ended["ts"])["blocks"] = running["blocks"]
    ada.press(old, CANCEL)
    ada.wait(lambda text: "*changed*" in text)
    eventually(lambda: lines(trace) == ["begin", "end"])
    assert not any("<!channel>" in str(message) for message in ada.answers()), "a name is never a mention"


def test_an_end_reaches_its_asker_though_the_bot_was_removed_from_the_channel(workspace_stand: Stand, ada: Person, trace: Path) -> None:
    ada.say("/lepton probe slow")
    ada.wait(lambda text: "running" in text)
    fault(workspace_stand, remove_from="C0OPS")
    try:
        go(trace)
        told = ada.wait(lambda text: "*changed*" in text)
        assert told["ephemeral_to"] == ada.user
    finally:
        fault(workspace_stand, invite_to="C0OPS")


def test_what_is_asked_for_later_on_the_command_line_waits_in_the_service(workspace_stand: Stand, trace: Path) -> None:
    written = lepton(workspace_stand, "run", "probe", "slow", "--at", "1d", "--json")
    assert (written["state"], lines(trace)) == ("queued", [])
    lepton(workspace_stand, "runs", "cancel", written["id"])
    ended = eventually(lambda: run if (run := lepton(workspace_stand, "runs", "show", written["id"], "--json"))["state"] != "queued" else None)
    assert (ended["state"], lines(trace)) == ("canceled", [])


def test_again_from_the_command_line(workspace_stand: Stand) -> None:
    failed = lepton(workspace_stand, "run", "node", "show", "nobody", "--json", expect=1)
    said = lepton(workspace_stand, "runs", "again", failed["id"])
    again = said.split()[1]
    ended = eventually(lambda: run if (run := lepton(workspace_stand, "runs", "show", again, "--json"))["state"] == "failed" else None)
    assert ended["why"] == f"again: {failed['id']}"
    assert "failed on no host" in lepton(workspace_stand, "runs", "again", failed["id"], "--failed-hosts", expect=2)
