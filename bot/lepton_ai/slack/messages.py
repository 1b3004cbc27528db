# SPDX-License-Identifier: Apache-2.0
"""One message per run, updated in place: newest state wins, Slack's limits are kept, and the end always arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from lepton_ai.runs.model import Decision, Run, State
from lepton_ai.runs.progress import Progress
from lepton_ai.runs.service import Runs
from lepton_ai.slack.pictures import capacity_map
from lepton_ai.slack.streams import Streams, passes
from lepton_ai.slack.views import Message, escape, plain_text, run_message

log = structlog.get_logger()
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 60.0
TICK_SECONDS = 5.0
PICTURED = "host.show"
LIST_TRIES = 3  # to close a task list, which is not worth more
CONTENT = frozenset({"invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long", "no_text"})  # it is what is said, not where
GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})


class UndeliverableError(Exception):
    """Slack will not take this message at this place, today or tomorrow."""


@dataclass
class _Pending:
    """The newest state of one message, and when it may be tried again."""

    run: Run
    progress: Progress | None
    not_before: float = 0.0
    tries: int = 0


class LiveMessages:
    """Posts and updates run messages, one call at a time, so that one pace holds for the workspace."""

    def __init__(self, runs: Runs, client: AsyncWebClient, seconds: float, link: Callable[[str], str] | None = None) -> None:
        self._runs = runs
        self._client = client
        self._seconds = seconds
        self._link = link
        self._pending: dict[str, _Pending] = {}
        self._running: dict[str, tuple[Run, Progress | None]] = {}
        self._streams = Streams(client)
        self._shown: dict[str, tuple[str, list[dict[str, Any]]]] = {}  # of messages that can still change
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def changed(self, run: Run, progress: Progress) -> None:
        """Take note of a run's newest state. Called on the run's own thread."""
        if run.origin.get("door") == "slack":
            self._loop.call_soon_threadsafe(self.show, run, progress)

    def show(self, run: Run, progress: Progress | None = None) -> None:
        """Have a run's message say this, as soon as the pace allows. What has ended is never replaced by what had not."""
        if run.origin.get("door") != "slack":
            return
        pending = self._pending.get(run.id)
        if pending is None:
            self._pending[run.id] = _Pending(run, progress)
        elif run.state.final or not pending.run.state.final:
            pending.run, pending.progress = run, progress
        if run.state.final:
            self._running.pop(run.id, None)
        elif run.due <= time.time() and (pending is None or not pending.run.state.final):
            self._running[run.id] = (run, progress)
        self._wake.set()

    async def whisper(self, channel: str, user: str, text: str, blocks: list[dict[str, Any]] | None = None) -> None:
        """Tell one person something, best effort: it is about a press that changed nothing."""
        try:
            if channel != user:
                await self._client.chat_postEphemeral(channel=channel, user=user, text=text, blocks=blocks)
                return
        except SlackApiError as error:
            if passes(error):
                log.warning("an answer could not be shown", error=str(error))
                return
        try:
            await self._client.chat_postMessage(channel=user, text=text, blocks=blocks)  # not in that channel, or in none: to the person
        except Exception as error:
            log.warning("an answer could not be shown", error=str(error))

    async def work(self) -> None:
        """Deliver for ever; what an earlier process did not deliver comes first."""
        await self._load_undelivered()
        while True:
            run_id = self._next()
            if run_id is None:
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), self._pause_seconds())
                except TimeoutError:
                    for run, progress in list(self._running.values()):  # so that the elapsed time moves while nothing else does
                        self.show(run, progress)
                continue
            pending = self._pending.pop(run_id)
            await asyncio.sleep(await self._try(pending))

    async def _load_undelivered(self) -> None:
        while True:
            try:
                for run in await asyncio.to_thread(self._runs.store.undelivered):
                    self.show(run)
            except Exception:
                log.exception("what was not delivered could not be read; trying again")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    def _next(self) -> str | None:
        """Return the run to show next of those that are due: one that nobody has seen yet, then one that has ended."""
        now = time.monotonic()
        due = [run_id for run_id, pending in self._pending.items() if pending.not_before <= now]
        return min(due, key=lambda run_id: (bool(self._pending[run_id].run.message), not self._pending[run_id].run.state.final), default=None)

    def _pause_seconds(self) -> float:
        waiting = [pending.not_before - time.monotonic() for pending in self._pending.values()]
        return max(0.05, min([TICK_SECONDS, *waiting]))

    async def _try(self, pending: _Pending) -> float:
        """Try to deliver once and return for how long the workspace must be left alone."""
        run_id = pending.run.id
        try:
            await self._deliver(pending.run, pending.progress, pending.tries)
        except UndeliverableError as error:
            try:
                await self._give_up(pending.run, str(error))
            except Exception:
                log.exception("giving up could not be written down")
                self._again(pending)
        except SlackApiError as error:
            response = error.response
            self._again(pending)
            if response.status_code == 429:
                seconds = float(response.headers.get("Retry-After", RETRY_SECONDS))
                log.warning("slack asks for a pause", seconds=seconds)
                return seconds
            log.warning("slack refused a message for now", run=run_id, error=response.get("error"))
        except Exception as error:  # Slack or the database out of reach: everything is kept and tried again
            log.warning("a message could not be delivered yet", run=run_id, error=str(error))
            self._again(pending)
        return self._seconds

    def _again(self, pending: _Pending) -> None:
        newer = self._pending.get(pending.run.id)
        kept = newer if newer is not None else pending
        kept.tries = pending.tries + 1
        kept.not_before = time.monotonic() + min(RETRY_SECONDS * kept.tries, LONGEST_RETRY_SECONDS)
        self._pending[pending.run.id] = kept

    async def _give_up(self, run: Run, reason: str) -> None:
        log.error("a message cannot be delivered", run=run.id, reason=reason)
        self._running.pop(run.id, None)
        if run.state.final:
            await asyncio.to_thread(self._runs.store.record, run.id, "", "undeliverable", {"reason": reason})
            await asyncio.to_thread(self._runs.store.set_delivered, run.id)

    async def _deliver(self, run: Run, progress: Progress | None, tries: int) -> None:
        fresh = await asyncio.to_thread(self._runs.store.run, run.id)
        decisions = await asyncio.to_thread(self._runs.store.decisions, run.id) if fresh.origin.get("approval") else []
        if fresh.state.final:
            self._running.pop(run.id, None)
        if fresh.state is State.RUNNING and progress is not None and fresh.message.get("ts"):
            fresh = await self._stream(fresh, progress)
        stream = str(fresh.message.get("stream") or "")
        # In the list are the tasks; what Lepton itself is at, such as looking at what was done, is said in the message.
        at_a_task = progress is not None and bool(progress.begun_tasks) and progress.task == progress.begun_tasks[-1].name
        drawn = self._drawn(fresh, progress, decisions, tasks_below=bool(stream) and at_a_task and fresh.state is State.RUNNING)
        try:
            await self._place(fresh, drawn.text, drawn.blocks)
        except SlackApiError as error:
            if error.response.get("error") not in CONTENT:
                raise
            # Unforeseen, and no reason to lose an end: the words alone, and everything as files.
            log.error("slack does not take what was drawn", run=run.id, reason=str(error.response.get("error")))
            drawn.files.append(("message.txt", plain_text(drawn.blocks)))
            await self._place(fresh, drawn.text, [])
        if fresh.state.final:
            await self._add_details(run.id, drawn.files)
            if stream:
                await self._end_stream(fresh, progress, stream, last=tries >= LIST_TRIES)
            self._shown.pop(run.id, None)
            await asyncio.to_thread(self._runs.store.set_delivered, run.id)

    async def _place(self, run: Run, text: str, blocks: list[dict[str, Any]]) -> None:
        if run.message.get("response_url"):
            if run.state.final:
                await self._respond(run, text, blocks)
        elif run.message.get("ts"):
            await self._update(run, run.message, text, blocks)
        else:
            await self._post(run, text, blocks)

    async def _stream(self, run: Run, progress: Progress) -> Run:
        """Show a run's tasks as a list where there is one, and return the run with what is known of it. The message does not wait for it."""
        stream = str(run.message.get("stream") or "")
        try:
            shown_in = await self._streams.show(run, progress, stream)
        except Exception as error:
            log.warning("a task list could not be shown yet", run=run.id, error=str(error))
            return run
        if shown_in == stream:
            return run
        run = replace(run, message={**run.message, "stream": shown_in, "stream_in": run.message["channel"]})
        await asyncio.to_thread(self._runs.store.set_message, run.id, run.message)
        return run

    async def _end_stream(self, run: Run, progress: Progress | None, stream: str, *, last: bool) -> None:
        try:
            await self._streams.end(run, progress, stream)
        except Exception as error:
            if not last:
                raise
            log.warning("a task list stays open", run=run.id, error=str(error))
        now = await asyncio.to_thread(self._runs.store.run, run.id)  # its message may have become another one meanwhile
        await asyncio.to_thread(self._runs.store.set_message, run.id, {**now.message, "stream": ""})

    def _drawn(self, run: Run, progress: Progress | None, decisions: Sequence[Decision], *, tasks_below: bool) -> Message:
        operation = self._runs.catalog.operations.get(run.operation)
        try:
            return run_message(
                run, progress, decisions=decisions, label=self._runs.settings.label, link=self._link(run.id) if self._link else "",
                tasks_below=tasks_below, per_host=operation is not None and operation.spec.per_host,
            )  # fmt: skip
        except Exception:
            log.exception("a run could not be drawn", run=run.id)
            return Message(f"{run.operation}: {run.state} (run {run.id}; its result could not be drawn)")

    async def _add_details(self, run_id: str, details: Sequence[tuple[str, str]]) -> None:
        """Put what has no room in the message into its thread, as files with nothing cut. Once, also when a try was cut short."""
        run = await asyncio.to_thread(self._runs.store.run, run_id)
        message = run.message
        if message.get("details"):
            return
        files: list[dict[str, Any]] = [{"filename": name, "title": name, "content": content} for name, content in details]
        picture = await self._picture(run) if run.operation == PICTURED else None
        if picture is not None:
            files.append({"filename": "capacity.png", "title": "What the hosts have left", "content": picture[0], "alt_txt": picture[1]})
        output = self._runs.output_path(run.id)
        if run.state not in (State.SUCCEEDED, State.CANCELED) and output.exists() and output.stat().st_size:
            content = await asyncio.to_thread(output.read_text, encoding="utf-8")
            files.append({"filename": "ansible.txt", "title": "Ansible's own output", "content": content})
        if not files:
            return
        try:
            await self._client.files_upload_v2(**await self._place_of_files(run), file_uploads=files)
        except SlackApiError as error:
            if passes(error):
                raise
            log.error("details could not be shown", run=run.id, reason=error.response.get("error"))
            names = ", ".join(file["filename"] for file in files)
            with suppress(SlackApiError):
                said = f":warning: Slack did not take {escape(names)} ({escape(error.response.get('error'))}): see `lepton runs show {run.id}`"
                await self._client.chat_postMessage(channel=message.get("channel") or _person(run), thread_ts=message.get("ts"), text=said)
        await asyncio.to_thread(self._runs.store.set_message, run.id, {**message, "details": True})

    async def _place_of_files(self, run: Run) -> dict[str, Any]:
        """Return where a run's files go: the thread of its message; to whoever asked where it has none, or has lost its channel."""
        message = run.message
        if message.get("ts") and not message.get("lost"):
            in_thread = run.origin.get("thread_ts") if message["channel"] == run.origin.get("channel") else None
            return {"channel": message["channel"], "thread_ts": in_thread or message["ts"]}
        opened = await self._client.conversations_open(users=_person(run))
        return {"channel": opened["channel"]["id"]}

    async def _picture(self, run: Run) -> tuple[bytes, str] | None:
        try:
            return await asyncio.to_thread(capacity_map, run.result.get("answers", {}))
        except Exception:  # of what a host made up; the words are there
            log.exception("a picture could not be drawn", run=run.id)
            return None

    async def _post(self, run: Run, text: str, blocks: list[dict[str, Any]]) -> None:
        try:
            thread = {"thread_ts": run.origin["thread_ts"]} if run.origin.get("thread_ts") else {}
            posted = await self._client.chat_postMessage(channel=run.origin["channel"], text=text, blocks=blocks, **thread)
        except SlackApiError as error:
            if passes(error) or error.response.get("error") in CONTENT:
                raise
            # The bot is not in this channel, or may not speak there: the command's own answer address works, for half an hour.
            await asyncio.to_thread(self._runs.store.set_message, run.id, {"response_url": True})
            await self._respond(run, text, blocks)
        else:
            await asyncio.to_thread(self._runs.store.set_message, run.id, _moved(run, posted))

    async def _update(self, run: Run, message: Mapping[str, Any], text: str, blocks: list[dict[str, Any]]) -> None:
        if self._shown.get(run.id) == (text, blocks):
            return
        try:
            await self._client.chat_update(channel=message["channel"], ts=message["ts"], text=text, blocks=blocks)
            self._shown[run.id] = (text, blocks)
        except SlackApiError as error:
            if passes(error) or error.response.get("error") in CONTENT:
                raise
            if not run.state.final:
                return
            if error.response.get("error") not in GONE:
                await asyncio.to_thread(self._runs.store.set_message, run.id, {**message, "lost": True})
                await self._respond(run, text, blocks)
                return
            await self._post(run, text, blocks)

    async def _respond(self, run: Run, text: str, blocks: list[dict[str, Any]]) -> None:
        if not run.origin.get("response_url"):
            await self._direct(run, text, blocks)
            return
        answer = await AsyncWebhookClient(run.origin["response_url"]).send(text=text, blocks=blocks, response_type="ephemeral", replace_original=False)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise ConnectionError(f"the answer address said {answer.status_code}")
        if answer.status_code != 200:
            await self._direct(run, text, blocks)

    async def _direct(self, run: Run, text: str, blocks: list[dict[str, Any]]) -> None:
        """Tell whoever asked in a direct message: the last resort."""
        kind, _, name = run.principal.partition(":")
        if kind != "slack":
            raise UndeliverableError("Slack does not take it, and there is no other address")
        try:
            posted = await self._client.chat_postMessage(channel=name.partition("/")[2], text=text, blocks=blocks)
        except SlackApiError as error:
            if passes(error) or error.response.get("error") in CONTENT:
                raise
            raise UndeliverableError(f"Slack does not take it: {error.response.get('error')}") from error
        await asyncio.to_thread(self._runs.store.set_message, run.id, _moved(run, posted))


def _moved(run: Run, posted: Any) -> dict[str, Any]:
    """Return what is known of a run's message once it has been posted; of an earlier one only its list, which is still to be closed."""
    return {**{name: run.message[name] for name in ("stream", "stream_in") if name in run.message}, "channel": posted["channel"], "ts": posted["ts"]}


def _person(run: Run) -> str:
    return run.principal.partition("/")[2]
