# SPDX-License-Identifier: Apache-2.0
"""A Slack workspace in memory: people, channels, messages, views and files, and who watches them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

TEAM = "T0SANDBOX"
BOT_USER = "U0LEPTON"
BOT_TOKEN, APP_TOKEN, SIGNING_SECRET = "xoxb-sandbox", "xapp-sandbox", "sandbox-signing-secret"


class SlackError(Exception):
    """Slack's answer `{"ok": false, "error": …}`."""

    def __init__(self, error: str, **extra: Any) -> None:
        super().__init__(error)
        self.answer = {"ok": False, "error": error, **extra}


@dataclass
class Workspace:
    """The state. Every change is told to all who watch, as a dictionary with a `type`."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    homes: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggers: dict[str, tuple[str, float]] = field(default_factory=dict)
    response_urls: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    late_triggers: int = 0  # how many of the next trigger ids come too late
    late_acknowledgements: int = 0  # how many of the next acknowledgements count as too late
    has_streams: bool = True  # whether this workspace has chat.startStream
    _watchers: set[asyncio.Queue[dict[str, Any]]] = field(default_factory=set)
    _counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def timestamp(self) -> str:
        """Return a message's `ts`: unique, and in order."""
        return f"{int(time.time())}.{next(self._counter):06d}"

    def trigger(self, user: str) -> str:
        """Return a trigger id, good for three seconds and one view."""
        trigger = f"{int(time.time())}.{secrets.token_hex(8)}"
        late = self.late_triggers > 0
        self.late_triggers -= late
        self.triggers[trigger] = (user, time.monotonic() + (-1 if late else 3))
        return trigger

    def use_trigger(self, trigger: str) -> str:
        """Return the user of a trigger id, once and in time."""
        user, expires = self.triggers.pop(trigger, ("", 0.0))
        if not user:
            raise SlackError("invalid_trigger_id")
        if time.monotonic() > expires:
            raise SlackError("expired_trigger_id")
        return user

    def channel(self, channel: str) -> dict[str, Any]:
        if channel not in self.channels:
            raise SlackError("channel_not_found")
        return self.channels[channel]

    def direct(self, channel: str) -> str:
        """Return the channel of a person's direct messages with the app where a person is named, else the channel itself."""
        if channel not in self.users:
            return channel
        direct = f"D{channel[1:]}"
        if direct not in self.channels:
            self.channels[direct] = {"id": direct, "name": f"lepton · {self.users[channel]['name']}", "is_im": True, "is_member": True, "user": channel}
            self.messages[direct] = []
            self.tell({"type": "channel", "channel": self.channels[direct]})
        return direct

    def message(self, channel: str, ts: str) -> dict[str, Any]:
        self.channel(channel)
        for message in self.messages[channel]:
            if message["ts"] == ts:
                return message
        raise SlackError("message_not_found")

    def post(self, channel: str, **content: Any) -> dict[str, Any]:
        """Add a message; `ephemeral_to` makes it one that only this user sees."""
        self.channel(channel)
        message = {"type": "message", "channel": channel, "ts": self.timestamp(), **content}
        self.messages[channel].append(message)
        self.tell({"type": "message", "message": message})
        return message

    def tell(self, change: dict[str, Any]) -> None:
        """Tell all watchers, for whom newer changes replace what they were too slow to read."""
        for watcher in self._watchers:
            watcher.put_nowait(change)

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """Yield every change from now on."""
        watcher: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._watchers.add(watcher)
        try:
            while True:
                yield await watcher.get()
        finally:
            self._watchers.discard(watcher)


def sandbox_workspace() -> Workspace:
    """Return the workspace of the demo: two channels, three people with different rights, and the bot."""
    workspace = Workspace()
    for user, name, title in (
        ("U0ADA", "ada", "Ada, runs the hosts"),
        ("U0GRACE", "grace", "Grace, builds models"),
        ("U0MALLORY", "mallory", "Mallory, just looks in"),
        (BOT_USER, "lepton", "Lepton"),
    ):
        workspace.users[user] = {
            "id": user,
            "team_id": TEAM,
            "name": name,
            "real_name": title,
            "is_bot": user == BOT_USER,
            "deleted": False,
            "tz": "Europe/Berlin",
        }
    for channel, name, member in (("C0OPS", "ops", True), ("C0MODELS", "models", True), ("C0RANDOM", "random", False)):
        workspace.channels[channel] = {"id": channel, "name": name, "is_channel": True, "is_member": member, "is_archived": False}
        workspace.messages[channel] = []
    workspace.groups["S0BUILDERS"] = {"id": "S0BUILDERS", "team_id": TEAM, "handle": "builders", "name": "Model builders", "users": ["U0GRACE"]}
    return workspace
