# SPDX-License-Identifier: Apache-2.0
"""The workspace refuses what Slack refuses. The client is Slack's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from lepton_ai.sandbox.server import Sandbox
from lepton_ai.sandbox.stand import free_port, serving
from lepton_ai.sandbox.workspace import BOT_TOKEN, sandbox_workspace
from lepton_ai.slack.checks import message_trouble, view_trouble


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    port = free_port()
    made = Sandbox(sandbox_workspace(), f"http://127.0.0.1:{port}/")
    with serving(made, port):
        yield made


@pytest.fixture
def client(sandbox: Sandbox) -> WebClient:
    return WebClient(token=BOT_TOKEN, base_url=f"{sandbox.base_url}api/")


def section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def buttons(count: int, text: str = "x") -> dict[str, Any]:
    return {"type": "actions", "elements": [{"type": "button", "action_id": f"a{n}", "text": {"type": "plain_text", "text": text}} for n in range(count)]}


@pytest.mark.parametrize(
    ("text", "blocks", "error"),
    [
        ("hello", None, None),
        ("", [section("hi")], None),
        ("", None, "no_text"),
        ("x" * 40_001, None, "msg_too_long"),
        ("", [section("x" * 3000)], None),
        ("", [section("x" * 3001)], "invalid_blocks"),
        ("", [section("")], "invalid_blocks"),
        ("", [section("x")] * 51, "invalid_blocks"),
        ("", [{"type": "no-such-block"}], "invalid_blocks"),
        ("", ["text"], "invalid_blocks"),
        ("", [buttons(25)], None),
        ("", [buttons(26)], "invalid_blocks"),
        ("", [buttons(0)], "invalid_blocks"),
        ("", [buttons(1, "x" * 76)], "invalid_blocks"),
        ("", [{**section("a"), "block_id": "b"}, {**section("c"), "block_id": "b"}], "invalid_blocks"),
        ("", [{"type": "context", "elements": [{"type": "mrkdwn", "text": "x"}] * 11}], "invalid_blocks"),
    ],
)
def test_messages_beyond_slacks_limits_are_refused(text: str, blocks: Any, error: str | None) -> None:
    trouble = message_trouble(text, blocks)
    assert (trouble.partition(":")[0] if trouble else None) == error


@pytest.mark.parametrize(
    ("change", "refused"), [({}, False), ({"title": {"type": "plain_text", "text": "x" * 25}}, True), ({"private_metadata": "x" * 3001}, True)]
)
def test_views_beyond_slacks_limits_are_refused(change: dict[str, Any], refused: bool) -> None:
    view = {"type": "modal", "callback_id": "c", "title": {"type": "plain_text", "text": "Title"}, "blocks": [section("x")], **change}
    assert bool(view_trouble(view)) is refused


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.chat_postMessage(channel="C0NONE", text="x"), "channel_not_found"),
        (lambda client: client.chat_postMessage(channel="C0RANDOM", text="x"), "not_in_channel"),
        (lambda client: client.chat_update(channel="C0OPS", ts="1", text="x"), "message_not_found"),
        (lambda client: client.users_info(user="U0NONE"), "user_not_found"),
        (
            lambda client: client.views_open(trigger_id="none", view={"type": "modal", "title": {"type": "plain_text", "text": "x"}, "blocks": []}),
            "invalid_trigger_id",
        ),
        (lambda client: client.api_call("no.such.method"), "unknown_method"),
        (lambda client: client.chat_update(channel="C0OPS", text="x", ts=""), "message_not_found"),
        (lambda client: WebClient(token="xoxb-wrong", base_url=client.base_url).auth_test(), "invalid_auth"),
    ],
)
def test_errors_are_slacks(client: WebClient, call: Any, error: str) -> None:
    with pytest.raises(SlackApiError) as caught:
        call(client)
    assert caught.value.response["error"] == error


def test_messages_live_as_in_slack(client: WebClient) -> None:
    posted = client.chat_postMessage(channel="C0OPS", text="one")
    client.chat_update(channel="C0OPS", ts=posted["ts"], text="two")
    client.chat_postEphemeral(channel="C0OPS", user="U0ADA", text="psst")
    reply = client.chat_postMessage(channel="C0OPS", text="in thread", thread_ts=posted["ts"])
    assert [message["text"] for message in client.conversations_history(channel="C0OPS")["messages"]] == ["in thread", "two"]
    assert len(client.conversations_replies(channel="C0OPS", ts=posted["ts"])["messages"]) == 2
    client.chat_delete(channel="C0OPS", ts=reply["ts"])
    assert len(client.conversations_history(channel="C0OPS")["messages"]) == 1


def test_a_busy_workspace_says_when_to_come_again(sandbox: Sandbox, client: WebClient) -> None:
    sandbox.web_api.limit("auth.test", 1, 7)
    with pytest.raises(SlackApiError) as caught:
        client.auth_test()
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "7"
    assert client.auth_test()["ok"]


def test_views_are_opened_once_and_updated_by_hash(sandbox: Sandbox, client: WebClient) -> None:
    view = {"type": "modal", "callback_id": "c", "title": {"type": "plain_text", "text": "T"}, "blocks": [section("x")]}
    trigger = sandbox.workspace.trigger("U0ADA")
    opened = client.views_open(trigger_id=trigger, view=view)["view"]
    with pytest.raises(SlackApiError, match="invalid_trigger_id"):
        client.views_open(trigger_id=trigger, view=view)
    updated = client.views_update(view_id=opened["id"], hash=opened["hash"], view=view)["view"]
    with pytest.raises(SlackApiError, match="hash_conflict"):
        client.views_update(view_id=opened["id"], hash=opened["hash"] + "0", view=view)
    assert updated["id"] == opened["id"]
    client.views_publish(user_id="U0ADA", view={"type": "home", "blocks": [section("home")]})
    assert sandbox.workspace.homes["U0ADA"]["type"] == "home"


def test_an_answer_address_is_good_five_times(sandbox: Sandbox) -> None:
    address = sandbox._response_url("U0ADA", "C0OPS")
    answers = [httpx.post(address, json={"text": "x"}).status_code for _ in range(6)]
    assert answers == [200] * 5 + [404]


def test_a_foreign_page_cannot_speak_for_people(sandbox: Sandbox) -> None:
    body = '{"user": "U0ADA", "channel": "C0OPS", "text": "x"}'
    assert httpx.post(f"{sandbox.base_url}people/say", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.get(f"{sandbox.base_url}people/state", headers={"Host": "evil.example"}).status_code == 400
