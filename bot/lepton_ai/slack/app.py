# SPDX-License-Identifier: Apache-2.0
"""The Bolt app: listeners that check, write, acknowledge and hand over. The same ones in Socket Mode and over HTTP."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.http_retry.builtin_async_handlers import AsyncRateLimitErrorRetryHandler
from slack_sdk.web.async_client import AsyncWebClient

from lepton_ai.access.rules import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.operations.catalog import Catalog
from lepton_ai.operations.help import help_text
from lepton_ai.operations.parsing import parse_command, split_words
from lepton_ai.runs.model import Run, State
from lepton_ai.slack.groups import Groups
from lepton_ai.slack.messages import LiveMessages
from lepton_ai.slack.views import CANCEL, CONFIRM, DISMISS, escape, runs_text

log = structlog.get_logger()
Ack = Callable[..., Awaitable[None]]
Start = Callable[[str], None]
ACK_TEXT_LIMIT = 3500


def build_app(
    intake: Intake,
    start: Start,
    messages: LiveMessages,
    groups: Groups,
    *,
    client: AsyncWebClient,
    signing_secret: str | None,
    command: str,
) -> AsyncApp:
    """Return the app with its listeners. `start` begins a written run; `client` carries token and base URL."""
    app = AsyncApp(
        client=client,
        signing_secret=signing_secret,
        request_verification_enabled=signing_secret is not None,
        raise_error_for_unhandled_request=False,
    )
    door = _Door(intake, start, messages, groups)
    app.command(command)(door.on_command)
    app.action(CANCEL)(door.on_cancel)
    app.action(CONFIRM)(door.on_confirm)
    app.action(DISMISS)(door.on_dismiss)
    return app


def slack_client(token: str, base_url: str) -> AsyncWebClient:
    """Return the Web API client that waits out 429 by itself for everything but the paced run messages."""
    client = AsyncWebClient(token=token, base_url=base_url)
    client.retry_handlers.append(AsyncRateLimitErrorRetryHandler(max_retry_count=2))
    return client


class _Door:
    def __init__(self, intake: Intake, start: Start, messages: LiveMessages, groups: Groups) -> None:
        self._intake = intake
        self._start = start
        self._messages = messages
        self._groups = groups

    async def on_command(self, ack: Ack, body: dict[str, Any]) -> None:
        """A slash command: acknowledged when it is written, or with what was wrong with it."""
        caller = self._caller(body["team_id"], body["user_id"], body["channel_id"])
        prefix = body["command"]
        try:
            words = split_words(html.unescape(body.get("text", "")))
            told = await asyncio.to_thread(self._told, words, caller, prefix)
            if told is not None:
                await ack(response_type="ephemeral", text=told[:ACK_TEXT_LIMIT])
                return
            run = await asyncio.to_thread(self._submit, caller, words, body)
        except LeptonError as error:
            await ack(response_type="ephemeral", text=f":x: {escape(error)}"[:ACK_TEXT_LIMIT])
            return
        except Exception as error:
            log.exception("a command could not be taken")
            await ack(response_type="ephemeral", text=f":x: this was not taken, nothing will happen: {escape(type(error).__name__)}")
            return
        await ack()
        await self._begin(run)

    def _told(self, words: list[str], caller: Caller, prefix: str) -> str | None:
        """Return the answer to what needs no run, or None."""
        allowed = self._allowed(caller)
        if not words or words[0] == "help":
            if not allowed.operations:
                return f"You have no role here yet. Ask whoever keeps the settings to grant one to `{caller.principal}`."
            return help_text(allowed, words[1:], prefix)
        if words[0] == "runs":
            seen = [run for run in self._intake.runs.store.runs(100) if self._intake.may_see(caller, run).allowed]
            return runs_text(seen[:10])
        return None

    def _allowed(self, caller: Caller) -> Catalog:
        catalog = self._intake.runs.catalog
        return replace(catalog, operations={name: operation for name, operation in catalog.operations.items() if self._intake.may(caller, operation)})

    def _submit(self, caller: Caller, words: list[str], body: Mapping[str, Any]) -> Run:
        plan = words[0] == "plan"
        command = parse_command(self._intake.runs.catalog, words[1:] if plan else words)
        # What destroys is planned first, and its message asks for the confirmation.
        confirm = command.operation.spec.risk == "destroy" and not plan
        origin = {"door": "slack", "team": body["team_id"], "channel": body["channel_id"], "response_url": body.get("response_url", "")}
        run, _new = self._intake.submit(
            caller,
            command,
            key=f"slack:{body['team_id']}:{body['trigger_id']}",
            check=plan or confirm,
            origin={**origin, "confirm": confirm},
        )
        return run

    async def on_cancel(self, ack: Ack, body: dict[str, Any], action: dict[str, Any]) -> None:
        """The Cancel button: anyone may press it who may do what the run does."""
        await ack()
        await self._answering(body, self._cancel, action["value"])

    def _cancel(self, caller: Caller, run_id: str) -> Run | None:
        run = self._intake.runs.store.run(run_id)
        verdict = self._intake.may_see(caller, run)
        if not verdict.allowed:
            raise RefusedError(caller, f"cancel {run.operation}", verdict)
        self._intake.runs.cancel(run_id, caller.principal)
        return None

    async def on_confirm(self, ack: Ack, body: dict[str, Any], action: dict[str, Any]) -> None:
        """The requester's own confirmation of what destroys: runs what was planned, once however often it is pressed."""
        await ack()
        await self._answering(body, self._confirm, action["value"])

    def _confirm(self, caller: Caller, run_id: str) -> Run | None:
        plan = self._own_plan(caller, run_id)
        operation = self._intake.runs.catalog.operations[plan.operation]
        run, _new = self._intake.submit_values(
            caller,
            operation,
            self._intake.runs.arguments(plan),
            key=f"confirm:{plan.id}",
            why=f"confirmed plan {plan.id}",
            origin={**plan.origin, "confirm": False},
        )
        self._answered(plan)
        return run

    async def on_dismiss(self, ack: Ack, body: dict[str, Any], action: dict[str, Any]) -> None:
        """The other button: nothing is destroyed, and the message stops asking."""
        await ack()
        await self._answering(body, lambda caller, run_id: self._answered(self._own_plan(caller, run_id)), action["value"])

    def _own_plan(self, caller: Caller, run_id: str) -> Run:
        plan = self._intake.runs.store.run(run_id)
        if plan.principal != caller.principal:
            raise LeptonError("only who asked for this can confirm it")
        if not plan.check or plan.state is not State.SUCCEEDED:
            raise LeptonError(f"run {plan.id} is no plan that could be confirmed")
        return plan

    def _answered(self, plan: Run) -> None:
        self._intake.runs.forget_secrets(plan.id)
        self._intake.runs.store.set_message(plan.id, {**plan.message, "answered": True})

    async def _answering(self, body: Mapping[str, Any], act: Callable[[Caller, str], Run | None], run_id: str) -> None:
        """Do what a button says, tell only its presser when that is not possible, and show both runs as they now are."""
        channel = body.get("channel", {}).get("id", "")
        user = body["user"]["id"]
        caller = self._caller(body["team"]["id"], user, channel)
        try:
            run = await asyncio.to_thread(act, caller, run_id)
            shown = await asyncio.to_thread(self._intake.runs.store.run, run_id)
        except LeptonError as error:
            await self._messages.whisper(channel, user, f":x: {escape(error)}")
            return
        if shown.state.final:
            self._messages.show(shown)
        if run is not None:
            await self._begin(run)

    async def _begin(self, run: Run) -> None:
        if not run.state.final:
            self._messages.show(run)
            await asyncio.to_thread(self._start, run.id)

    def _caller(self, team: str, user: str, channel: str) -> Caller:
        groups = tuple(f"slack-group:{team}/{group}" for group in self._groups.of(user))
        return Caller(f"slack:{team}/{user}", groups, channel)
