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

    def mention(self, text: str, thread: dict[str, Any] | None = None) -> None:
        """Mention the bot, in a message's thread where one is given."""
        self.seen = max((message["ts"] for message in self.messages()), default="0")
        self._post("people/say", {"text": f"@lepton {text}", **({"thread_ts": thread["ts"]} if thread else {})})

    def view(self, seconds: float = 60) -> dict[str, Any]:
        """Return the newest view that was opened for this person, or raise LeptonError."""
        deadline = time.monotonic() + seconds
        while True:
            mine = [view for view in self.state()["views"].values() if view["opened_by"] == self.user]
            if mine:
                return dict(mine[-1])
            if time.monotonic() > deadline:
                raise LeptonError("no view was opened")
            time.sleep(POLL_SECONDS)

    def fill_in(self, view: dict[str, Any], **values: Any) -> dict[str, str]:
        """Submit a form with these values by field, the others as they stand, and return the errors beside its fields."""
        state = {block["block_id"]: {block["element"]["action_id"]: _filled(block["element"], values.get(block["block_id"]))} for block in _inputs(view)}
        answer = self._post("people/submit", {"view_id": view["id"], "values": state})
        return dict((answer or {}).get("errors") or {})

    def suggest(self, view: dict[str, Any], block_id: str, text: str = "") -> list[str]:
        """Return what a select of a form offers for what was typed."""
        element = next(block["element"] for block in _inputs(view) if block["block_id"] == block_id)
        offered = self._post("people/suggest", {"view_id": view["id"], "block_id": block_id, "action_id": element["action_id"], "value": text})
        return [option["value"] for option in offered]

    def choose(self, view: dict[str, Any], value: str) -> None:
        """Choose in the select of a picker."""
        block = next(block for block in view["blocks"] if block["type"] == "actions")
        self._post("people/choose", {"view_id": view["id"], "block_id": block["block_id"], "action_id": block["elements"][0]["action_id"], "value": value})

    def shortcut(self, callback_id: str, message: dict[str, Any] | None = None) -> None:
        """Use a shortcut, on a message where one is given."""
        self._post("people/shortcut", {"callback_id": callback_id, **({"ts": message["ts"]} if message else {"channel": None})})

    def home(self, wanted: Callable[[str], bool], seconds: float = 60) -> dict[str, Any]:
        """Look at the App Home until it reads as wanted."""
        deadline = time.monotonic() + seconds
        while True:
            self._post("people/home", {})
            view = self.state()["homes"].get(self.user)
            if view and wanted(plain_text(view["blocks"])):
                return dict(view)
            if time.monotonic() > deadline:
                raise LeptonError(f"the home is not as expected: {plain_text(view['blocks']) if view else 'there is none'}")
            time.sleep(POLL_SECONDS)

    def press_home(self, action_id: str, value: str) -> None:
        """Press a button of the App Home."""
        self._post("people/press", {"action_id": action_id, "value": value})

    def messages(self) -> list[dict[str, Any]]:
        """Return what this person sees in the channel, oldest first."""
        every = self.state()["messages"][self.channel]
        return [message for message in every if message.get("ephemeral_to") in (None, self.user)]

    def answers(self) -> list[dict[str, Any]]:
        """Return what the bot has said since this person last typed."""
        return [message for message in self.messages() if message["user"] == BOT_USER and message["ts"] > self.seen]

    def wait(self, wanted: Callable[[str], bool], seconds: float = 180) -> dict[str, Any]:
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

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.base_url}{path}", json={"user": self.user, "channel": self.channel, **body}, timeout=10).json()
        if not answer["ok"]:
            raise LeptonError(f"the sandbox did not take it: {answer['error']}")
        return answer["answer"]


def _inputs(view: dict[str, Any]) -> list[dict[str, Any]]:
    return [block for block in view["blocks"] if block["type"] == "input"]


def _filled(element: dict[str, Any], value: Any) -> dict[str, Any]:
    """Return an element's state as Slack sends it."""
    kind = element["type"]
    if kind == "checkboxes":
        return {"type": kind, "selected_options": element["options"] if value else [] if value is False else element.get("initial_options", [])}
    if kind in ("static_select", "external_select", "radio_buttons"):
        return {"type": kind, "selected_option": {"value": value} if value is not None else element.get("initial_option")}
    return {"type": kind, "value": str(value) if value is not None else element.get("initial_value")}


def text_of(message: dict[str, Any]) -> str:
    """Return a message as a person reads it."""
    return plain_text(message["blocks"]) if message.get("blocks") else str(message["text"])
