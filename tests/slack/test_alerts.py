# SPDX-License-Identifier: Apache-2.0
"""A group of alerts in Slack: one message that lives, and foreign text that stays text."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from tests.alerts.test_groups import after, alert, said
from tests.conftest import eventually
from tests.slack.test_messages import RUN, actions

from lepton_ai.alerts.groups import Group, Silence
from lepton_ai.runs import inbox
from lepton_ai.runs.model import State
from lepton_ai.runs.store import Store
from lepton_ai.slack.alert_views import ACKNOWLEDGE, alert_message, metric_of
from lepton_ai.slack.alerts import AlertMessages
from lepton_ai.slack.checks import message_trouble
from lepton_ai.slack.home import START
from lepton_ai.slack.pictures import metric_plot
from lepton_ai.slack.views import plain_text

GROUP, _ = after(said(alert(node="web-1", severity="page"), truncated=4))
SILENCES = ["alert_silence_3600", "alert_silence_28800", "alert_silence_259200"]


def shown(group: Group, **how: Any) -> str:
    return plain_text(alert_message(group, how.pop("runs", {}), **how).blocks)


def test_it_says_how_it_stands_and_what_can_be_done() -> None:
    assert "firing" in shown(GROUP)
    assert "node=web-1 severity=page [page]" in shown(GROUP)
    assert "4 more alerts of this group were left out" in shown(GROUP)
    assert actions(alert_message(GROUP, {}).blocks) == [ACKNOWLEDGE, *SILENCES, START]
    assert actions(alert_message(GROUP, {}, silenceable=False).blocks) == [ACKNOWLEDGE, START]
    seen = GROUP.model_copy(update={"acknowledged": "slack:T1/U1", "silence": Silence(until=time.time() + 60, by="slack:T1/U2")})
    assert "somebody sees to it" in shown(seen)
    assert "seen to by <@U1>" in shown(seen)
    assert "by <@U2>" in shown(seen)
    assert actions(alert_message(seen, {}).blocks) == [*SILENCES, START]


def test_it_says_what_it_caused() -> None:
    acting = GROUP.model_copy(deep=True)
    acting.episodes["a"].run, acting.episodes["a"].result = RUN.id, "rule more"
    text = shown(acting, runs={RUN.id: RUN})
    assert "firing, and something is done about it" in text
    assert "rule more" in text
    assert f"`{RUN.id}` node.resize" not in text
    assert f"`{RUN.id}` node resize web-1 · running" in text
    assert "something is done" not in shown(acting, runs={RUN.id: replace(RUN, state=State.FAILED)})


def test_what_is_over_has_no_buttons() -> None:
    over, _ = after(said(alert()), said(alert(ends=5)))
    assert "resolved" in shown(over)
    assert actions(alert_message(over, {}).blocks) == []


@pytest.mark.parametrize("foreign", ["<!channel> <@U2> & *x*", "x" * 10_000, "`" * 50, "‮", "<http://evil|click>"])
def test_foreign_text_is_data_and_fits(foreign: str) -> None:
    told = {**alert(node=foreign, severity=foreign), "annotations": {"summary": foreign, "description": foreign}}
    many = [{**told, "fingerprint": str(number)} for number in range(300)]
    group, _ = after(said(*many, receiver=foreign[:200]))
    group.labels = {"node": foreign}
    message = alert_message(group, {}, label="prod")
    assert message_trouble(message.text, message.blocks) is None
    assert "<!channel>" not in str(message.blocks)
    assert "<@U2>" not in str(message.blocks)
    assert "<http" not in str(message.blocks)


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("rate(x[5m])%20%3E%200.9", ("rate(x[5m])", 0.9)),
        ("a%20%3E%3D%20bool%203", ("a", 3.0)),
        ("up%20%3D%3D%200", ("up", 0.0)),
        ("a%20%3E%20b", ("a > b", None)),
        ("a%20%3E%201%20and%20b%20%3C%202", ("a > 1 and b < 2", None)),
        ("a%20%3E%201.2.3", ("a > 1.2.3", None)),
        ("", ("", None)),
    ],
)
def test_a_metric_is_seen_before_it_crossed_its_limit_too(expr: str, expected: tuple[str, float | None]) -> None:
    assert metric_of(f"http://prometheus:9090/graph?g0.expr={expr}&g0.tab=1") == expected
    assert metric_of("javascript:alert(1)") == ("", None)


def test_a_plot_is_a_picture_with_words() -> None:
    found = metric_plot("x", [({"node": "<b>$\\frac{", "__name__": "x"}, [0.0, 60.0], [1.0, 3.0])], 2.0)
    assert found is not None
    assert found[0].startswith(b"\x89PNG")
    assert found[1] == "x: from 1 to 3 within the last hour, at most 3, with a limit of 2"
    assert metric_plot("x", [], None) is None
    assert metric_plot('a{b=~"c$|d$"}', [({"b": "$x$"}, [0.0], [1.0])], None) is not None


class Client:
    """A Slack that remembers what it was told."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.updated: list[tuple[str, str]] = []

    async def chat_postMessage(self, *, channel: str, text: str, blocks: list[Any]) -> dict[str, Any]:  # noqa: N802 - Slack's own name
        self.posted.append(text)
        return {"channel": channel, "ts": str(len(self.posted))}

    async def chat_update(self, *, channel: str, ts: str, text: str, blocks: list[Any]) -> None:
        self.updated.append((ts, text))


def test_one_message_lives_and_a_new_life_has_one_of_its_own(make_runs: Any, store: Store) -> None:
    client: Any = Client()

    def know(*notifications: Any) -> None:
        document = after(*notifications)[0].model_dump(mode="json")
        inbox.change(store, document["key"], lambda _before: document)

    async def run() -> None:
        messages = AlertMessages(make_runs(), client, "C1", 0.01)
        work = asyncio.create_task(messages.work())

        async def until(condition: Any) -> None:
            messages.wake()
            await asyncio.to_thread(eventually, condition, 20)

        know(said(alert(ends=5)))  # an end without a beginning is nothing to show
        await until(lambda: inbox.unshown(store, 1) == [])
        first = said(alert())
        know(first)
        await until(lambda: client.posted == ["High : firing"])
        know(first, said(alert(ends=5)))
        await until(lambda: client.updated == [("1", "High : resolved")])
        know(first, said(alert(ends=5)), said(alert(starts=7)))
        await until(lambda: client.posted == ["High : firing"] * 2)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        # Another process goes on with the same message.
        again = asyncio.create_task((messages := AlertMessages(make_runs(), client, "C1", 0.01)).work())
        know(first, said(alert(ends=5)), said(alert(starts=7)), said(alert(starts=7, ends=9)))
        await until(lambda: client.updated[-1] == ("2", "High : resolved"))
        again.cancel()
        with suppress(asyncio.CancelledError):
            await again

    asyncio.run(run())
    assert len(client.posted) == 2
