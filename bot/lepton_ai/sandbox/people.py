# SPDX-License-Identifier: Apache-2.0
"""A person in the sandbox workspace, from code: types, presses, and waits for what the bot answers. For the tour and tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from lepton_ai.errors import LeptonError
from lepton_ai.sandbox.workspace import BOT_USER
from lepton_ai.slack.views import plain_text

POLL_SECONDS = 0.05  # a person's eyes; the page itself is told by events


@dataclass
class Person:
    """`user` and `channel` are ids; `seen` is the timestamp up to which this person has read the channel."""

    base_url: str
    user: str = "U0ADA"
    channel: str = "C0OPS"
    seen: str = "0"

    def say(self, text: str, copies: int = 1) -> None:
        """Type a line. Raises LeptonError when the workspace does not take it."""
        self.seen = max((message["ts"] for message in self.messages()), default="0")
        self._post("people/say", {"text": text, "copies": copies})

    def press(self, message: dict[str, Any], action_id: str, copies: int = 1) -> None:
        """Press a button of a message."""
        self._post("people/press", {"ts": message["ts"], "action_id": action_id, "copies": copies})

    def messages(self) -> list[dict[str, Any]]:
        """Return what this person sees in the channel, oldest first."""
        every = self.state()["messages"][self.channel]
        return [message for message in every if message.get("ephemeral_to") in (None, self.user)]

    def answers(self) -> list[dict[str, Any]]:
        """Return what the bot has said since this person last typed."""
        return [message for message in self.messages() if message["user"] == BOT_USER and message["ts"] > self.seen]

    def wait(self, wanted: Callable[[str], bool], seconds: float = 60) -> dict[str, Any]:
        """Return the bot's first message since the last line whose text is as wanted, or raise LeptonError with what there was."""
        deadline = time.monotonic() + seconds
        while True:
            answers = self.answers()
            for message in answers:
                if wanted(text_of(message)):
                    return message
            if time.monotonic() > deadline:
                said = "\n---\n".join(map(text_of, answers)) or "nothing"
                raise LeptonError(f"the bot did not answer as expected within {seconds:g} s; it said:\n{said}")
            time.sleep(POLL_SECONDS)

    def state(self) -> dict[str, Any]:
        """Return the whole workspace."""
        found: dict[str, Any] = httpx.get(f"{self.base_url}people/state", timeout=10).json()
        return found

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = httpx.post(f"{self.base_url}{path}", json={"user": self.user, "channel": self.channel, **body}, timeout=10).json()
        if not answer["ok"]:
            raise LeptonError(f"the sandbox did not take it: {answer['error']}")


def text_of(message: dict[str, Any]) -> str:
    """Return a message as a person reads it."""
    return plain_text(message["blocks"]) if message.get("blocks") else str(message["text"])
