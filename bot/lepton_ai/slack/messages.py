# SPDX-License-Identifier: Apache-2.0
"""One message per run, updated in place: newest state wins, Slack's limits are kept, and the end always arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from lepton_ai.runs.model import Run
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import Runs
from lepton_ai.slack.views import run_message

log = structlog.get_logger()
RETRY_SECONDS = 5.0
TICK_SECONDS = 5.0
UNREACHABLE_CHANNEL = frozenset({"not_in_channel", "channel_not_found", "is_archived", "restricted_action"})
GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})


class LiveMessages:
    """Posts and updates run messages, one call at a time, so that one pace and one Retry-After hold for the workspace."""

    def __init__(self, runs: Runs, client: AsyncWebClient, seconds: float) -> None:
        self._runs = runs
        self._client = client
        self._seconds = seconds
        self._dirty: dict[str, tuple[Run, Progress | None]] = {}
        self._running: dict[str, tuple[Run, Progress | None]] = {}
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def changed(self, run: Run, progress: Progress) -> None:
        """Take note of a run's newest state. Called on the run's own thread."""
        if run.origin.get("door") == "slack":
            self._loop.call_soon_threadsafe(self.show, run, progress)

    def show(self, run: Run, progress: Progress | None = None) -> None:
        """Have a run's message say this, as soon as the pace allows."""
        if run.origin.get("door") == "slack":
            self._dirty[run.id] = (run, progress)
            if run.state.final:
                self._running.pop(run.id, None)
            else:
                self._running[run.id] = (run, progress)
            self._wake.set()

    async def whisper(self, channel: str, user: str, text: str) -> None:
        """Tell one person something, best effort: it is about a press that changed nothing."""
        try:
            await self._client.chat_postEphemeral(channel=channel, user=user, text=text)
        except Exception as error:
            log.warning("an answer could not be shown", error=str(error))

    async def work(self) -> None:
        """Deliver for ever; what an earlier process did not deliver comes first."""
        for run in await asyncio.to_thread(self._runs.store.undelivered):
            self.show(run)
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), TICK_SECONDS)
            except TimeoutError:
                self._dirty.update(self._running)  # so that the elapsed time moves while nothing else does
            run_id = self._next()
            if run_id is None:
                self._wake.clear()
                continue
            run, progress = self._dirty.pop(run_id)
            pause = self._seconds
            try:
                await self._deliver(run, progress)
            except SlackApiError as error:
                response = error.response
                pause = float(response.headers.get("Retry-After", RETRY_SECONDS)) if response.status_code == 429 else RETRY_SECONDS
                log.warning("slack refused a message", run=run_id, error=response.get("error"), again_in=pause)
                self._dirty.setdefault(run_id, (run, progress))
            except Exception as error:  # Slack unreachable: everything is kept and tried again
                pause = RETRY_SECONDS
                log.warning("slack could not be reached", run=run_id, error=str(error), again_in=pause)
                self._dirty.setdefault(run_id, (run, progress))
            await asyncio.sleep(pause)

    def _next(self) -> str | None:
        """Return the run to show next: one that nobody has seen yet, then one that has ended, then the longest waiting."""
        first = sorted(self._dirty, key=lambda run_id: (bool(self._dirty[run_id][0].message), not self._dirty[run_id][0].state.final))
        return first[0] if first else None

    async def _deliver(self, run: Run, progress: Progress | None) -> None:
        text, blocks = run_message(run, progress)
        message = (await asyncio.to_thread(self._runs.store.run, run.id)).message
        if message.get("response_url"):
            if run.state.final:
                await self._respond(run, text, blocks)
        elif message.get("ts"):
            await self._update(run, message, text, blocks)
        else:
            await self._post(run, text, blocks)
        if run.state.final:
            await asyncio.to_thread(self._runs.store.set_delivered, run.id)

    async def _post(self, run: Run, text: str, blocks: list[dict[str, Any]]) -> None:
        try:
            posted = await self._client.chat_postMessage(channel=run.origin["channel"], text=text, blocks=blocks)
        except SlackApiError as error:
            if error.response.get("error") not in UNREACHABLE_CHANNEL or not run.origin.get("response_url"):
                raise
            # The bot is not in this channel: the command's own answer address works there, a few times for half an hour.
            await asyncio.to_thread(self._runs.store.set_message, run.id, {"response_url": True})
            await self._respond(run, text, blocks)
        else:
            await asyncio.to_thread(self._runs.store.set_message, run.id, {"channel": posted["channel"], "ts": posted["ts"]})

    async def _update(self, run: Run, message: Mapping[str, Any], text: str, blocks: list[dict[str, Any]]) -> None:
        try:
            await self._client.chat_update(channel=message["channel"], ts=message["ts"], text=text, blocks=blocks)
        except SlackApiError as error:
            if error.response.get("error") not in GONE:
                raise
            log.info("a run's message is gone", run=run.id)

    async def _respond(self, run: Run, text: str, blocks: list[dict[str, Any]]) -> None:
        await AsyncWebhookClient(run.origin["response_url"]).send(text=text, blocks=blocks, response_type="ephemeral", replace_original=False)
