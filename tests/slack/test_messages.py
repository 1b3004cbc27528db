# SPDX-License-Identifier: Apache-2.0
"""Run messages: what they say, what they hide, and how they reach a Slack that refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from lepton_ai.runs.model import Decision, EventKind, Request, Result, Run, RunEvent, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.slack.checks import message_trouble, text_length
from lepton_ai.slack.limits import MESSAGE_LIMIT
from lepton_ai.slack.messages import LiveMessages
from lepton_ai.slack.views import APPROVE, CANCEL, REJECT, plain_text, run_message, runs_text

RUN = Run(
    id="abc", operation="node.resize", arguments={"node": "web-1", "vcpus": 3, "memory": None, "restart": False}, principal="slack:T1/U1", check=False,
    state=State.RUNNING, risk="change", why="", origin={"door": "slack", "channel": "C1", "response_url": "http://127.0.0.1:9/x"}, created=0.0, started=0.0,
    finished=None, result={}, error="", command="ansible-playbook x.yml", message={}, delivered=False,
)  # fmt: skip
ENDED = replace(RUN, state=State.SUCCEEDED, finished=2.0)


def actions(blocks: list[dict[str, Any]]) -> list[str]:
    return [element["action_id"] for block in blocks if block["type"] == "actions" for element in block["elements"]]


def test_a_running_run_can_be_canceled_and_an_ended_one_cannot() -> None:
    assert actions(run_message(RUN).blocks) == [CANCEL]
    assert actions(run_message(ENDED).blocks) == []


def test_a_plan_of_what_destroys_asks_until_it_is_answered() -> None:
    approval = {"rule": "confirmation", "approvers": [RUN.principal], "count": 1, "self": True, "expires": time.time() + 60, "plannable": True}
    plan = replace(ENDED, check=True, risk="destroy", origin={**RUN.origin, "approval": approval}, result={"changed_hosts": ["h"]})
    assert actions(run_message(plan).blocks) == [APPROVE, REJECT]
    decided = run_message(plan, decisions=[Decision("slack:T1/U1", True, 1.0)]).blocks
    assert actions(decided) == []
    assert "approved by <@U1>" in plain_text(decided)
    assert actions(run_message(replace(plan, state=State.FAILED)).blocks) == []
    assert actions(run_message(replace(plan, result={})).blocks) == []
    late = replace(plan, origin={**plan.origin, "approval": {**approval, "expires": 1.0}})
    assert actions(run_message(late).blocks) == []
    assert "*expired*" in plain_text(run_message(late).blocks)


def test_what_changed_and_what_waits_is_said() -> None:
    change = {"host": "h", "field": "vcpus", "before": 1, "after": 3, "effective": "at the next start"}
    text = plain_text(run_message(replace(ENDED, result={"changes": [change], "changed_hosts": ["h"], "warnings": ["careful"]})).blocks)
    assert "*changed*" in text
    assert "h: `vcpus` 1 → *3* (at the next start)" in text
    assert "careful" in text
    assert "ansible-playbook x.yml" in text


@pytest.mark.parametrize("foreign", ["<!channel> <@U2> & *x*", "x" * 10_000, "`" * 50, "\u202e", "<http://evil|click>"])
def test_foreign_text_is_data_and_fits(foreign: str) -> None:
    run = replace(ENDED, state=State.FAILED, error=foreign, arguments={"node": foreign}, command=foreign, result={"warnings": [foreign] * 100, "changes": []})
    message = run_message(run)
    text, blocks = message.text, message.blocks
    assert message_trouble(text, blocks) is None
    assert "<!channel>" not in str(blocks)
    assert "<@U2>" not in str(blocks)
    assert "<http" not in str(blocks)
    assert message_trouble(runs_text([run] * 10)[:3500], None) is None


def test_a_big_answer_fits(store: Store) -> None:
    nodes = [{"name": f"n{n}", "state": "running", "vcpus": 1, "max_vcpus": 2, "memory": "1GiB", "max_memory": "2GiB"} for n in range(2000)]
    for result in ({"answers": {"h": {"nodes": nodes}}}, {"answers": {"h": {"console": "line & <x>\n" * 5000}}}):
        message = run_message(replace(ENDED, risk="read", result=result))
        assert message_trouble(message.text, message.blocks) is None
        assert message.files


def test_progress_shows_hosts_and_task() -> None:
    progress = Progress()
    progress.add(RunEvent(EventKind.TASK, task="Change CPU"))
    progress.add(RunEvent(EventKind.OK, host="host1"))
    assert "Change CPU\nhost1 ok" in plain_text(run_message(RUN, progress).blocks)


class FakeSlack:
    """Slack's Web API as far as it is called here, with a refusal for a channel at will. The real wire is the sandbox's part."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.updates: list[str] = []
        self.refuse: Callable[[str, str], tuple[int, str] | None] = lambda _method, _channel: None

    async def chat_postMessage(self, *, channel: str, text: str, blocks: list[Any]) -> dict[str, str]:  # noqa: N802 - slack_sdk's name
        self._maybe(("post"), channel)
        self.posted.append(channel)
        return {"channel": channel, "ts": str(len(self.posted))}

    async def chat_update(self, *, channel: str, ts: str, text: str, blocks: list[Any]) -> None:
        self._maybe("update", channel)
        self.updates.append(text)

    def _maybe(self, method: str, channel: str) -> None:
        refused = self.refuse(method, channel)
        if refused:
            status, error = refused
            answer = {"ok": False, "error": error}
            headers = {"Retry-After": "0.2"}
            raise SlackApiError(
                error, AsyncSlackResponse(client=None, http_verb="POST", api_url="", req_args={}, data=answer, headers=headers, status_code=status)
            )


def written(store: Store, key: str, channel: str) -> Run:
    origin = {"door": "slack", "channel": channel, "response_url": ""}
    run, _ = store.add_run(key, Request("node.list", {}, "slack:T1/U1", key=key, origin=origin), risk="read", shown_arguments={})
    return run


def deliver(make_runs: Callable[[], Runs], slack: FakeSlack, until: Callable[[], bool]) -> None:
    async def work() -> None:
        messages = LiveMessages(make_runs(), slack, 0.01)  # type: ignore[arg-type]
        task = asyncio.create_task(messages.work())
        async with asyncio.timeout(10):
            while not until():  # noqa: ASYNC110 - what is waited for is the database's
                await asyncio.sleep(0.02)
        task.cancel()

    asyncio.run(work())


def test_what_was_not_delivered_before_a_crash_is_delivered_after_it(make_runs: Callable[[], Runs], store: Store) -> None:
    written(store, "a", "C1")
    store.finish("a", State.SUCCEEDED, Result())
    slack = FakeSlack()
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert slack.posted == ["C1"]


def test_one_channel_that_refuses_holds_up_no_other(make_runs: Callable[[], Runs], store: Store) -> None:
    for key, channel in (("bad", "CBAD"), ("good", "CGOOD")):
        written(store, key, channel)
        store.finish(key, State.SUCCEEDED, Result())
    slack = FakeSlack()
    slack.refuse = lambda _method, channel: (200, "restricted_action_read_only_channel") if channel in ("CBAD", "U1") else None
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert slack.posted == ["CGOOD"]
    assert [entry["run"] for entry in store.audit() if entry["what"] == "undeliverable"] == ["bad"]


def test_what_no_channel_takes_comes_as_a_direct_message(make_runs: Callable[[], Runs], store: Store) -> None:
    written(store, "a", "CBAD")
    store.finish("a", State.SUCCEEDED, Result())
    slack = FakeSlack()
    slack.refuse = lambda _method, channel: (200, "not_in_channel") if channel == "CBAD" else None
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert slack.posted == ["U1"]


def test_a_pause_that_slack_asks_for_is_kept_and_the_end_arrives(make_runs: Callable[[], Runs], store: Store) -> None:
    written(store, "a", "C1")
    store.set_message("a", {"channel": "C1", "ts": "1"})
    store.finish("a", State.SUCCEEDED, Result())
    slack = FakeSlack()
    refusals = [(429, "ratelimited")]
    slack.refuse = lambda _method, _channel: refusals.pop() if refusals else None
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert slack.updates == ["node list : succeeded"]


def test_a_message_that_was_deleted_is_posted_anew_when_the_run_has_ended(make_runs: Callable[[], Runs], store: Store) -> None:
    written(store, "a", "C1")
    store.set_message("a", {"channel": "C1", "ts": "1"})
    store.finish("a", State.SUCCEEDED, Result())
    slack = FakeSlack()
    slack.refuse = lambda method, _channel: (200, "message_not_found") if method == "update" else None
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert slack.posted == ["C1"]


def test_many_hosts_are_counted_and_those_that_went_wrong_named() -> None:
    hosts = {f"host{number:03}": "unreachable" if number % 10 == 0 else "ok" for number in range(200)}
    shown = plain_text(run_message(RUN, Progress(task="Do", tasks=4, tasks_begun=2, hosts=hosts)).blocks)
    assert "200 hosts: 180 ok, 20 unreachable" in shown
    assert "host000, host010" in shown
    assert "and 10 more" in shown
    assert "`██░░░░░░░░` 2/4 Do" in shown


def test_what_has_no_room_stands_whole_in_files() -> None:
    changes = [{"host": f"h{number}", "field": "vcpus", "before": 1, "after": number, "effective": "now"} for number in range(200)]
    message = run_message(replace(ENDED, result={"changes": changes, "changed_hosts": ["h1"]}, error=""))
    assert "170 more of 200 _(all of it in the thread: changes.txt)_" in plain_text(message.blocks)
    ((name, content),) = message.files
    assert name == "changes.txt"
    assert content.splitlines()[199] == "h199: vcpus 1 -> 199"
    nodes = [{"name": f"n{number}", "state": "running", "vcpus": 1, "max_vcpus": 2, "memory": "1GiB", "max_memory": "2GiB"} for number in range(300)]
    for answer, expected in (({"nodes": nodes}, {"answer.txt": 300}), ({"console": "line\n" * 2000}, {"h-console.txt": 2000})):
        read = run_message(replace(ENDED, risk="read", result={"answers": {"h": answer}}))
        assert {name: content.count("\n") for name, content in read.files} == expected
        assert "(all of it in the thread: " in plain_text(read.blocks)
    assert run_message(ENDED).files == []


LONG = "<&> " * 3000  # three times as long when it is escaped


@pytest.mark.parametrize(
    ("run", "file"),
    [
        (replace(RUN, arguments={"node": LONG}), "request.txt"),
        (replace(ENDED, command=LONG), "command.txt"),
        (replace(ENDED, state=State.FAILED, error=LONG), "error.txt"),
        (replace(ENDED, result={"warnings": [LONG]}), ""),
        (replace(ENDED, result={"warnings": ["w" * 500] * 30}), "warnings.txt"),
        (replace(ENDED, result={"changes": [{"host": "h", "field": "f", "before": LONG, "after": 1, "effective": "now"}]}), "changes.txt"),
        (replace(ENDED, risk="read", result={"answers": {"h": {"console": LONG}}}), "h-console.txt"),
        (replace(ENDED, risk="read", result={"answers": {f"h{number}": {"console": LONG} for number in range(60)}}), "h59-console.txt"),
    ],
)
def test_nothing_is_cut_silently(run: Run, file: str) -> None:
    message = run_message(run)
    assert message_trouble(message.text, message.blocks) is None
    if file:
        assert any(LONG in content or content.count("w" * 500) == 30 for name, content in message.files if name == file), message.files
        assert file in plain_text(message.blocks) or "more consoles stand in the thread" in plain_text(message.blocks)
    else:
        assert any(LONG in content for _name, content in message.files)


def test_who_holds_the_lock_and_when_it_begins_is_said() -> None:
    waiting = replace(RUN, state=State.QUEUED)
    text = plain_text(run_message(waiting, Progress(task="waiting for run abc, node.stop by slack:T1/U7 (number 2 in the queue)")).blocks)
    assert "queued: waiting for run abc, node.stop by <@U7> (number 2 in the queue)" in text
    later = replace(waiting, origin={**RUN.origin, "due": time.time() + 3600})
    assert "scheduled for" in plain_text(run_message(later).blocks)


def test_a_message_keeps_within_what_slack_takes_in_all() -> None:
    warning = ["w" * 550] * 30
    change = [{"host": "h", "field": f"f{number}", "before": "b" * 80, "after": "a" * 80, "effective": "now"} for number in range(30)]
    steps = [{"host": "h", "title": "t" * 500} for _ in range(30)]
    run = replace(
        ENDED, check=True, arguments={"node": "n" * 1000}, command="c" * 1900, result={"warnings": warning, "changes": change, "plan": {"steps": steps}}
    )
    message = run_message(run)
    assert text_length(message.blocks) <= MESSAGE_LIMIT
    assert {name for name, _content in message.files} == {"steps.txt", "changes.txt", "warnings.txt"}
    assert message_trouble("", [{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 2900}}] * 4) is not None


def test_the_notification_is_data_too() -> None:
    assert "<!channel>" not in run_message(replace(RUN, arguments={"node": "<!channel> <https://evil|ok>"})).text


def test_what_slack_does_not_take_of_a_message_comes_as_words_and_files(make_runs: Callable[[], Runs], store: Store) -> None:
    written(store, "a", "C1")
    store.finish("a", State.FAILED, Result(), "why")

    class Picky(FakeSlack):
        uploaded: Any = None

        async def chat_postMessage(self, *, channel: str, text: str, blocks: list[Any]) -> dict[str, str]:  # noqa: N802
            self.refuse = lambda _method, _channel: (200, "invalid_blocks") if blocks else None
            return await super().chat_postMessage(channel=channel, text=text, blocks=blocks)

        async def files_upload_v2(self, **given: Any) -> None:
            self.uploaded = given

    slack = Picky()
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert slack.posted == ["C1"]
    assert (slack.uploaded["channel"], slack.uploaded["thread_ts"]) == ("C1", "1")
    (file,) = slack.uploaded["file_uploads"]
    assert "why" in file["content"]


def test_files_follow_the_message_to_whoever_asked(make_runs: Callable[[], Runs], store: Store) -> None:
    origin = {"door": "slack", "channel": "CGONE", "thread_ts": "7", "response_url": ""}
    store.add_run("a", Request("node.list", {}, "slack:T1/U1", key="a", origin=origin), risk="change", shown_arguments={})
    store.finish("a", State.FAILED, Result(), "e" * 5000)
    uploads: list[dict[str, Any]] = []

    class Removed(FakeSlack):
        async def chat_postMessage(self, *, channel: str, text: str, blocks: list[Any], thread_ts: str = "") -> dict[str, str]:  # noqa: N802
            self._maybe("post", channel)
            return {"channel": "D1", "ts": "9"}

        async def files_upload_v2(self, **given: Any) -> None:
            uploads.append(given)

    slack = Removed()
    slack.refuse = lambda _method, channel: (200, "not_in_channel") if channel == "CGONE" else None
    deliver(make_runs, slack, lambda: not store.undelivered())
    assert [(given["channel"], given["thread_ts"]) for given in uploads] == [("D1", "9")]
    assert uploads[0]["file_uploads"][0]["filename"] == "error.txt"
