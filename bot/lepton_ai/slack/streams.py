# SPDX-License-Identifier: Apache-2.0
"""Task lists of runs under way, streamed into their threads, where the workspace has them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from lepton_ai.runs.model import Run
from lepton_ai.runs.progress import Progress
from lepton_ai.slack.limits import TASK_LIMIT, shortened
from lepton_ai.slack.tasklist import Chunk, news, task_chunks

log = structlog.get_logger()
AFTER_SECONDS = 2.0  # what is done by then needs no list
START_SECONDS = 3.0  # between two starts: chat.startStream is tier 2, 20 a minute
PAUSE_SECONDS = 60.0  # after Slack said that there were too many
# Passes; every other answer of Slack would be the same tomorrow.
PASSING = frozenset({"ratelimited", "internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org"})
OVER = frozenset({"message_not_in_streaming_state", "message_not_found", "channel_not_found"})  # there is nothing to close
# The workspace, or this app in it, has no streams.
UNAVAILABLE = frozenset({"unknown_method", "missing_scope", "feature_not_enabled", "not_allowed_token_type", "team_access_not_granted", "access_denied"})


def passes(error: SlackApiError) -> bool:
    """Return whether a refusal of Slack is one for now."""
    return error.response.status_code == 429 or error.response.status_code >= 500 or error.response.get("error") in PASSING


class Streams:
    """Starts, continues and ends them. What Slack refuses for good costs the list and nothing else; what passes is raised."""

    def __init__(self, client: AsyncWebClient) -> None:
        self._client = client
        self._available = True
        self._next_start = 0.0
        self._without: set[str] = set()
        self._shown: dict[str, dict[str, Chunk]] = {}

    async def show(self, run: Run, progress: Progress, stream: str) -> str:
        """Show how a run's tasks stand and return the list's timestamp, "" where there is none. `stream` is the one it has."""
        if stream:
            return stream if await self._append(run, progress, stream) else ""
        return await self._start(run, progress) if self._may_start(run) else ""

    async def end(self, run: Run, progress: Progress | None, stream: str) -> None:
        """Say the last and close the list."""
        left = [] if progress is None else news(task_chunks(run, progress), self._shown.get(run.id, {}))
        await self._stop(run, stream, left)
        self._shown.pop(run.id, None)
        self._without.discard(run.id)

    async def _stop(self, run: Run, stream: str, left: list[Chunk]) -> None:
        channel = run.message.get("stream_in") or run.message["channel"]
        try:
            await self._client.chat_stopStream(channel=channel, ts=stream, chunks=left or None)
        except SlackApiError as error:
            if passes(error):
                raise
            log.warning("a task list could not be closed", run=run.id, error=error.response.get("error"))
            if left and error.response.get("error") not in OVER:
                await self._stop(run, stream, [])  # what could not be said must not keep it open

    def _may_start(self, run: Run) -> bool:
        old_enough = run.started is not None and time.time() - run.started > AFTER_SECONDS
        return self._available and old_enough and run.id not in self._without and time.monotonic() > self._next_start and bool(_recipient(run))

    async def _start(self, run: Run, progress: Progress) -> str:
        chunks = task_chunks(run, progress)
        title = {"type": "plan_update", "title": shortened(run.operation.replace(".", " "), TASK_LIMIT)}
        self._next_start = time.monotonic() + START_SECONDS
        try:
            started = await self._client.chat_startStream(
                channel=run.message["channel"], thread_ts=run.origin.get("thread_ts") or run.message["ts"], task_display_mode="plan",
                chunks=[title, *chunks], **_recipient(run),
            )  # fmt: skip
        except SlackApiError as error:
            if passes(error):
                self._next_start = time.monotonic() + PAUSE_SECONDS
                raise
            reason = str(error.response.get("error"))
            self._available = reason not in UNAVAILABLE
            self._without.add(run.id)
            log.info("no task list", run=run.id, reason=reason, for_all=not self._available)
            return ""
        self._remember(run, chunks)
        return str(started["ts"])

    def _remember(self, run: Run, said: list[Chunk]) -> None:
        shown = self._shown.setdefault(run.id, {})
        for chunk in said:
            shown[chunk["id"]] = {**shown.get(chunk["id"], {}), **chunk}

    async def _append(self, run: Run, progress: Progress, stream: str) -> bool:
        chunks = task_chunks(run, progress)
        fresh = news(chunks, self._shown.get(run.id, {}))
        if not fresh:
            return True
        try:
            await self._client.chat_appendStream(channel=run.message["channel"], ts=stream, chunks=fresh)
        except SlackApiError as error:
            if passes(error):
                raise
            log.info("a task list is over", run=run.id, reason=error.response.get("error"))
            self._without.add(run.id)
            self._shown.pop(run.id, None)
            if error.response.get("error") not in OVER:
                await self._stop(run, stream, [])
            return False
        self._remember(run, fresh)
        return True


def _recipient(run: Run) -> Mapping[str, Any]:
    """Return whom the list is for, as Slack wants it named in channels; nobody where it was no person who asked."""
    kind, _, name = run.principal.partition(":")
    team, _, user = name.partition("/")
    return {"recipient_team_id": team, "recipient_user_id": user} if kind == "slack" and user else {}
