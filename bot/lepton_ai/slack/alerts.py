# SPDX-License-Identifier: Apache-2.0
"""One message per group of alerts that lives: posted when it begins to fire, updated in place until all of it is over."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from lepton_ai.alerts.groups import Group
from lepton_ai.errors import LeptonError
from lepton_ai.intake import apply_key
from lepton_ai.runs import inbox
from lepton_ai.runs.model import Run
from lepton_ai.runs.service import Runs
from lepton_ai.scaling.series import lines_from_prometheus
from lepton_ai.slack.alert_views import alert_message, metric_of
from lepton_ai.slack.messages import GONE
from lepton_ai.slack.pictures import metric_plot
from lepton_ai.slack.streams import passes

log = structlog.get_logger()
AT_ONCE = 20
IDLE_SECONDS = 5.0  # between looks at what another process has changed; our own changes wake us
RETRY_SECONDS = 5.0
PLOT_SECONDS, PLOT_POINTS = 3600.0, 240


class AlertMessages:
    """Shows groups in a channel, one call at a time."""

    def __init__(self, runs: Runs, client: AsyncWebClient, channel: str, seconds: float) -> None:
        self._runs = runs
        self._client = client
        self._channel = channel
        self._seconds = seconds
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Look now: something has changed. Called on any thread."""
        self._loop.call_soon_threadsafe(self._woken.set)

    async def work(self) -> None:
        """Show for ever; what an earlier process did not show comes first."""
        while True:
            self._woken.clear()
            try:
                found = await asyncio.to_thread(inbox.unshown, self._runs.store, AT_ONCE)
                for key, document, message, changed in found:
                    try:
                        await self._show(key, Group.model_validate(document), message, changed)
                    except (ValueError, TypeError, KeyError) as error:  # of how it is drawn; others must not wait for it
                        log.error("an alert could not be drawn", group=key, error=f"{type(error).__name__}: {error}")
                        await asyncio.to_thread(inbox.set_shown, self._runs.store, key, message, changed)
                    await asyncio.sleep(self._seconds)
            except SlackApiError as error:
                seconds = float(error.response.headers.get("Retry-After", RETRY_SECONDS))
                log.warning("an alert could not be shown yet", error=error.response.get("error"), again_in=seconds)
                await asyncio.sleep(seconds)
            except Exception as error:
                log.warning("alerts could not be shown yet", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if not found:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)

    async def _show(self, key: str, group: Group, message: dict[str, Any], changed: float) -> None:
        """Show a group as it stands. What Slack refuses for good is said in the log, and tried again when the group changes."""
        settings, store = self._runs.settings, self._runs.store
        if not group.life:  # an end without a beginning
            await asyncio.to_thread(inbox.set_shown, store, key, message, changed)
            return
        runs = await asyncio.to_thread(self._caused, group)
        drawn = alert_message(group, runs, label=settings.label, silenceable=bool(settings.alertmanager) and group.sender == "alertmanager")
        try:
            if message.get("life") != group.life:
                posted = await self._client.chat_postMessage(channel=self._channel, text=drawn.text, blocks=drawn.blocks)
                message = {"life": group.life, "channel": posted["channel"], "ts": posted["ts"]}
                await asyncio.to_thread(inbox.set_shown, store, key, message, changed)
                await self._plot(group, message)
                return
            await self._client.chat_update(channel=message["channel"], ts=message["ts"], text=drawn.text, blocks=drawn.blocks)
        except SlackApiError as error:
            if passes(error):
                raise
            log.error("an alert cannot be shown", channel=self._channel, reason=error.response.get("error"))
            if error.response.get("error") in GONE:
                message = {}  # deleted by somebody: it is posted anew when there is news
        await asyncio.to_thread(inbox.set_shown, store, key, message, changed)

    def _caused(self, group: Group) -> dict[str, Run]:
        """Return the runs that a group caused, a plan's own run in its place once it was approved."""
        runs = {run: self._runs.store.run(run) for run in {episode.run for episode in group.episodes.values() if episode.run}}
        return {run_id: self._runs.store.run_of_key(apply_key(run)) or run for run_id, run in runs.items()}

    async def _plot(self, group: Group, message: dict[str, Any]) -> None:
        """Put a picture of what an alert is about into its thread, where Prometheus has it. Best effort."""
        prometheus = self._runs.settings.scaling.prometheus
        try:
            expr, limit = next((found for episode in group.firing if (found := metric_of(episode.alert.generator))[0]), ("", None))
            if not prometheus or not expr:
                return
            now = time.time()
            lines = await asyncio.to_thread(lines_from_prometheus, prometheus, expr, now - PLOT_SECONDS, now, PLOT_POINTS)
            picture = await asyncio.to_thread(metric_plot, expr, lines, limit)
            if picture is not None:
                upload = {"filename": "metric.png", "title": "The last hour", "content": picture[0], "alt_txt": picture[1]}
                await self._client.files_upload_v2(channel=message["channel"], thread_ts=message["ts"], file_uploads=[upload])
        except (SlackApiError, LeptonError, OSError, ValueError) as error:
            log.warning("what an alert is about could not be drawn", error=str(error))
