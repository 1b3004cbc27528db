# SPDX-License-Identifier: Apache-2.0
"""People's door: listeners that check, write, acknowledge and hand over."""

from __future__ import annotations

import asyncio
import datetime
import html
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from lepton_ai.access.matching import Caller
from lepton_ai.alerting import Alerting
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.masking import service_mask
from lepton_ai.operations.catalog import Operation
from lepton_ai.operations.parsing import ArgumentError, split_words
from lepton_ai.runs.model import Run, State
from lepton_ai.runs.standing import Standing, standing
from lepton_ai.slack import words as typed
from lepton_ai.slack.choices import Choices
from lepton_ai.slack.forms import CHOOSE, Mode, field_errors, form, options, picker, read_form
from lepton_ai.slack.groups import Groups
from lepton_ai.slack.home import START, home
from lepton_ai.slack.limits import ALT_LIMIT, HINT_LIMIT, SECTION_LIMIT, SELECT_OPTIONS, shortened
from lepton_ai.slack.messages import LiveMessages
from lepton_ai.slack.views import actions, button, escape, fill_in, section

log = structlog.get_logger()
Ack = Callable[..., Awaitable[None]]
Body = dict[str, Any]
MENTION = re.compile(r"^\s*<@[A-Z0-9]+(\|[^>]*)?>")
LINK = re.compile(r"<((?:https?|mailto):[^|>]+)(?:\|([^>]*))?>")  # what Slack makes of names with dots in a mention
TAKEN = "lepton_taken"
ZONE_SECONDS = 1.0  # for Slack to say in which time zone somebody is


class Door:
    """Listeners over the intake. `start` begins a written run; `command` is the slash command's name."""

    def __init__(
        self,
        intake: Intake,
        start: Callable[[str], None],
        messages: LiveMessages,
        groups: Groups,
        choices: Choices,
        client: AsyncWebClient,
        command: str,
        alerting: Alerting,
        entrance: Callable[[str], str] | None = None,
    ) -> None:
        self._intake = intake
        self._start = start
        self._messages = messages
        self._groups = groups
        self._choices = choices
        self._client = client
        self._command = command
        self._alerting = alerting
        self._entrance = entrance  # makes somebody's own way to the pages; None where there are none

    # -- words ---------------------------------------------------------------------------------------------------

    async def on_command(self, ack: Ack, body: Body) -> None:
        """A slash command: acknowledged when it is written, or with what was wrong with it."""
        where = {"channel": body["channel_id"]}
        origin = {**where, "response_url": body.get("response_url", "")}
        taken = await self._take(body, body["user_id"], body.get("text", ""), key=body["trigger_id"], origin=origin)
        if isinstance(taken, typed.Told):
            await ack(response_type="in_channel" if taken.for_all else "ephemeral", text=shortened(taken.text, SECTION_LIMIT))
            return
        if isinstance(taken, typed.Later):
            await ack(response_type="in_channel", text=taken.text)
            await self._answer_later(taken, where, body["user_id"])
            return
        await ack()
        if isinstance(taken, typed.Asked):
            await self._open_form(body, taken, where)
        else:
            await self._begin(taken)

    async def take_words(self, body: Body, context: dict[str, Any], next: Callable[[], Awaitable[Any]]) -> Any:  # noqa: A002 - Bolt passes it by this name
        """Write what a mention or a direct message asks for, before Bolt acknowledges it."""
        event = body["event"]
        if not event.get("bot_id") and not event.get("subtype"):
            origin = {"channel": event["channel"], **({"thread_ts": event["thread_ts"]} if event.get("thread_ts") else {})}
            context[TAKEN] = await self._take(body, event["user"], MENTION.sub("", event.get("text", "")), key=body["event_id"], origin=origin)
        return await next()

    async def on_words(self, body: Body, context: dict[str, Any]) -> None:
        """A mention, which also works in threads where slash commands do not, or a direct message."""
        taken, event = context.get(TAKEN), body["event"]
        if taken is None:
            return
        if isinstance(taken, Run):
            await self._begin(taken)
            return
        where = {"channel": event["channel"], **({"thread_ts": event["thread_ts"]} if event.get("thread_ts") else {})}
        if isinstance(taken, typed.Later):
            await self._client.chat_postMessage(**where, text=taken.text)
            await self._answer_later(taken, where, event["user"])
            return
        if isinstance(taken, typed.Told):
            content: dict[str, Any] = {"text": shortened(taken.text, SECTION_LIMIT)}
        else:
            # There is no trigger for a form in a mention; a button has one.
            content = {"text": "Some arguments are missing.", "blocks": fill_in(taken.operation.name, taken.values, mode=taken.mode, due=taken.due)}
        if isinstance(taken, typed.Told) and taken.for_all:
            await self._client.chat_postMessage(**where, **content)
        else:
            await self._client.chat_postEphemeral(**where, user=event["user"], **content)

    async def _take(self, body: Body, user: str, text: str, *, key: str, origin: Mapping[str, Any]) -> typed.Told | typed.Asked | typed.Later | Run:
        """Take a line; what is wrong with it is an answer too."""
        team = _team(body)
        caller = self._caller(team, user, origin["channel"])
        where = {"door": "slack", "team": team, **origin}
        try:
            words = split_words(html.unescape(LINK.sub(lambda found: found[2] or found[1], text)))
            if words == [typed.LOGIN]:
                return self._way_in(caller)
            zone = await self._zone(user) if words and words[0] in typed.ZONED else None
            return await asyncio.to_thread(typed.read, self._intake, caller, words, self._command, key=f"slack:{team}:{key}", origin=where, zone=zone)
        except LeptonError as error:
            return typed.Told(f":x: {escape(service_mask(str(error)))}")
        except Exception as error:
            log.exception("a request could not be taken")
            return typed.Told(f":x: this was not taken, nothing will happen: {escape(type(error).__name__)}")

    async def _answer_later(self, later: typed.Later, where: Mapping[str, Any], user: str) -> None:
        """Make an answer that takes a while and post it, with its picture in its thread."""
        try:
            text, (picture, words) = await asyncio.to_thread(later.make)
        except LeptonError as error:
            await self._messages.whisper(where["channel"], user, f":x: {escape(service_mask(str(error)))}")
            return
        posted = await self._client.chat_postMessage(**where, text=shortened(text, SECTION_LIMIT))
        upload = {"filename": "backtest.png", "title": "Replicas over time", "content": picture, "alt_txt": shortened(words, ALT_LIMIT)}
        thread = where.get("thread_ts") or posted["ts"]
        await self._client.files_upload_v2(channel=posted["channel"], thread_ts=thread, file_uploads=[upload])

    def _way_in(self, caller: Caller) -> typed.Told:
        if self._entrance is None:
            return typed.Told("There are no pages here: the site's settings have no public_url.")
        return typed.Told(f"<{escape(self._entrance(caller.principal))}|Your way in>, for you alone: it works once, within five minutes.")

    # -- forms ---------------------------------------------------------------------------------------------------

    async def on_shortcut(self, ack: Ack, body: Body) -> None:
        """A shortcut, or the button of the Home: which operation shall it be?"""
        await ack()
        message = body.get("message") or {}
        where = {"channel": (body.get("channel") or {}).get("id", "")}
        if message:  # a shortcut on one, or the button of an alert's
            where["thread_ts"] = message.get("thread_ts") or message.get("ts", "")
        where = {name: value for name, value in where.items() if value}
        caller = self._caller(_team(body), body["user"]["id"], where.get("channel", body["user"]["id"]))
        mine = await asyncio.to_thread(typed.allowed, self._intake, caller)
        await self._open(body, picker(list(mine), where), again=[actions([button("Do something…", START, "again", "primary")])])

    async def on_pick(self, ack: Ack, body: Body, action: Body) -> None:
        """An operation was chosen in the picker: its form takes the picker's place."""
        await ack()
        view = body["view"]
        operation = self._intake.runs.catalog.operations.get((action.get("selected_option") or {}).get("value", ""))
        if operation is not None:
            asked = form(operation, {}, json.loads(view["private_metadata"] or "{}"))
            await self._client.views_update(view_id=view["id"], hash=view["hash"], view=asked)

    async def on_fill_in(self, ack: Ack, body: Body, action: Body) -> None:
        """The button under a mention that lacked arguments."""
        await ack()
        wanted = json.loads(action["value"])
        operation = self._intake.runs.catalog.operations.get(wanted["operation"])
        container = body.get("container") or {}
        thread = (body.get("message") or {}).get("thread_ts") or container.get("thread_ts")
        where = {"channel": body["channel"]["id"], **({"thread_ts": thread} if thread else {})}
        if operation is not None:
            await self._open_form(body, typed.Asked(operation, wanted["values"], Mode(wanted["mode"]), wanted["due"]), where)

    async def on_options(self, ack: Ack, body: Body, payload: Body) -> None:
        """What a select offers: what there is, of what this caller may do this to, filtered by what is typed."""
        kind = payload["action_id"].removeprefix(CHOOSE)
        metadata = json.loads((body.get("view") or {}).get("private_metadata") or "{}")
        operation = self._intake.runs.catalog.operations.get(metadata.get("operation", ""))
        user = body["user"]["id"]
        caller = self._caller(_team(body), user, metadata.get("channel", user))
        needle = (payload.get("value") or "").lower()
        names = [name for name in await self._choices.names(kind) if needle in name.lower()]
        offered = [] if operation is None else await asyncio.to_thread(self._offered, caller, operation, payload["block_id"], names)
        await ack(options=options(offered))

    def _offered(self, caller: Caller, operation: Operation, option: str, names: list[str]) -> list[str]:
        return list(islice((name for name in names if self._reaches(caller, operation, option, name)), SELECT_OPTIONS))

    def _reaches(self, caller: Caller, operation: Operation, option: str, name: str) -> bool:
        targets = operation.targets({**dict.fromkeys(operation.spec.options), option: name})
        return self._intake.verdict(caller, operation, tuple(target for target in targets if name in target) or None).allowed

    async def on_submit(self, ack: Ack, body: Body, view: Body) -> None:
        """A form: submitted, or shown again with what is wrong beside the fields."""
        metadata = json.loads(view["private_metadata"])
        user, team = body["user"]["id"], _team(body)
        channel = metadata.get("channel", user)
        operation = self._intake.runs.catalog.operations.get(metadata["operation"])
        if operation is None:
            await ack(response_action="clear")
            await self._messages.whisper(channel, user, f":x: the operation {escape(metadata['operation'])} no longer exists")
            return
        filled = read_form(operation, view["state"]["values"])
        check = filled.mode is Mode.PLAN
        kept = {name: metadata[name] for name in ("thread_ts", "due") if metadata.get(name)}
        origin = {"door": "slack", "team": team, "channel": channel, **kept}
        try:
            run, _new = await asyncio.to_thread(
                self._intake.submit_values, self._caller(team, user, channel), operation, filled.values,
                key=f"slack:{team}:{view['id']}:{view['hash']}", check=check, confirm=operation.spec.risk == "destroy" and not check,
                why=html.unescape(filled.why), origin=origin, canary=filled.mode is Mode.CANARY,
            )  # fmt: skip
        except ArgumentError as error:
            await ack(response_action="errors", errors=field_errors(operation, error.problems))
        except LeptonError as error:
            await ack(response_action="errors", errors={view["blocks"][-1]["block_id"]: shortened(str(error), HINT_LIMIT)})
        except Exception as error:
            log.exception("a form could not be taken")
            await ack(response_action="errors", errors={view["blocks"][-1]["block_id"]: f"this was not taken, nothing will happen: {type(error).__name__}"})
        else:
            await ack()
            await self._begin(run)

    async def _open_form(self, body: Body, asked: typed.Asked, where: Mapping[str, Any]) -> None:
        later = {"due": asked.due} if asked.due else {}
        again = fill_in(asked.operation.name, asked.values, mode=asked.mode, due=asked.due)
        await self._open(body, form(asked.operation, asked.values, {**where, **later}, mode=asked.mode), again=again)

    async def _open(self, body: Body, view: dict[str, Any], *, again: list[dict[str, Any]]) -> None:
        """Open a view; where its trigger has expired, a button with a fresh one keeps what was typed."""
        try:
            await self._client.views_open(trigger_id=body["trigger_id"], view=view)
        except SlackApiError as error:
            user = body.get("user_id") or body["user"]["id"]
            channel = str(body.get("channel_id") or (body.get("channel") or {}).get("id", user))
            text = f":x: Slack did not open the form ({escape(error.response.get('error'))}): please try again"
            await self._messages.whisper(channel, user, text, [section(text), *again])

    # -- buttons -------------------------------------------------------------------------------------------------

    async def on_cancel(self, ack: Ack, body: Body, action: Body) -> None:
        """The Cancel button: anyone may press it who may do what the run does."""
        await ack()
        await self._answering(body, self._cancel, action["value"])

    async def on_approve(self, ack: Ack, body: Body, action: Body) -> None:
        """Approve, or the requester's own confirmation: releases what was planned, once however often it is pressed."""
        await ack()
        await self._answering(body, lambda caller, run_id: self._intake.answer(caller, run_id, approved=True), action["value"])

    async def on_reject(self, ack: Ack, body: Body, action: Body) -> None:
        """The other button: nothing is done, and the message stops asking."""
        await ack()
        await self._answering(body, lambda caller, run_id: self._intake.answer(caller, run_id, approved=False), action["value"])

    async def on_again(self, ack: Ack, body: Body, action: Body) -> None:
        """The same once more, as whoever presses; a double click is one press."""
        await ack()
        await self._answering(body, self._intake.again, action["value"])

    async def on_again_failed(self, ack: Ack, body: Body, action: Body) -> None:
        """The same once more, only on the hosts on which it went wrong."""
        await ack()
        await self._answering(body, lambda caller, run_id: self._intake.again(caller, run_id, failed_hosts=True), action["value"])

    async def on_acknowledge(self, ack: Ack, body: Body, action: Body) -> None:
        """Acknowledge an alert: somebody sees to it."""
        await ack()
        await self._answer_alert(body, lambda caller: self._alerting.acknowledge(caller, action["value"]))

    async def on_silence(self, ack: Ack, body: Body, action: Body) -> None:
        """Silence an alert for as long as the button says."""
        await ack()
        seconds = float(action["action_id"].rpartition("_")[2])
        await self._answer_alert(body, lambda caller: self._alerting.silence(caller, action["value"], seconds))

    async def _answer_alert(self, body: Body, act: Callable[[Caller], None]) -> None:
        caller = self._caller(_team(body), body["user"]["id"], (body.get("channel") or {}).get("id", body["user"]["id"]))
        try:
            await asyncio.to_thread(act, caller)
        except LeptonError as error:
            await self._whisper(body, f":x: {escape(error)}")

    def _cancel(self, caller: Caller, run_id: str) -> None:
        run = self._intake.runs.store.run(run_id)
        verdict = self._intake.may_see(caller, run)
        if not verdict.allowed:
            raise RefusedError(caller, f"cancel {run.operation}", verdict.rule)
        if self._intake.runs.cancel(run_id, caller.principal) and run.due > time.time():
            self._start(run_id)  # so that it ends now, and not when its time comes

    async def _answering(self, body: Body, act: Callable[[Caller, str], Run | None], run_id: str) -> None:
        """Do what a button says, tell only its presser when that is not possible, and show both runs as they now are."""
        caller = self._caller(_team(body), body["user"]["id"], (body.get("channel") or {}).get("id", body["user"]["id"]))
        try:
            run, released = await asyncio.to_thread(self._act, _team(body), caller, act, run_id)
        except LeptonError as error:
            await self._whisper(body, f":x: {escape(error)}")
            await asyncio.to_thread(self._intake.runs.tell, run_id)  # the message may still offer what is over
            return
        if run.state.final:
            self._messages.show(run)
        if released is not None:
            await self._begin(released)
        if (body.get("view") or {}).get("type") == "home":
            await self._publish(_team(body), body["user"]["id"])

    def _act(self, team: str, caller: Caller, act: Callable[[Caller, str], Run | None], run_id: str) -> tuple[Run, Run | None]:
        if self._intake.runs.store.run(run_id).origin.get("team") not in (None, "", team):
            raise LeptonError("this belongs to another workspace")
        released = act(caller, run_id)
        return self._intake.runs.store.run(run_id), released

    async def on_error(self, error: Exception, body: Body) -> None:
        """What no listener foresaw, after it had acknowledged: written down, and said to whoever pressed or typed."""
        log.error("a listener failed", error=f"{type(error).__name__}: {error}", exc_info=error)
        user = body.get("user_id") or (body.get("user") or {}).get("id") or (body.get("event") or {}).get("user")
        channel = body.get("channel_id") or (body.get("channel") or {}).get("id") or (body.get("event") or {}).get("channel")
        if user:
            await self._messages.whisper(channel or user, user, f":x: this did not work: {escape(type(error).__name__)}. Please try again")

    async def _whisper(self, body: Body, text: str) -> None:
        user = body["user"]["id"]
        await self._messages.whisper((body.get("channel") or {}).get("id", user), user, text)

    # -- home ----------------------------------------------------------------------------------------------------

    async def on_home(self, body: Body, event: Body) -> None:
        """Somebody looks at the App Home."""
        if event.get("tab") == "home":
            await self._choices.names("host")
            await self._publish(_team(body), event["user"])

    async def _publish(self, team: str, user: str) -> None:
        view = await asyncio.to_thread(self._home, self._caller(team, user, user))
        try:
            await self._client.views_publish(user_id=user, view=view)
        except SlackApiError as error:
            log.warning("a home could not be shown", user=user, error=error.response.get("error"))

    def _home(self, caller: Caller) -> dict[str, Any]:
        store, intake = self._intake.runs.store, self._intake
        seen = [run for run in store.runs(60) if intake.may_see(caller, run).allowed]
        waiting = [plan for plan in store.open_plans() if standing(plan, store.decisions(plan.id)) is Standing.WAITING and intake.why_not(caller, plan) is None]
        inventory = self._choices.inventory.seen_by(typed.allowed(intake, caller).operations)
        return home(
            label=intake.runs.settings.label,
            freezes=store.freezes(),
            running=[run for run in seen if not run.state.final],
            waiting=waiting,
            recent=[run for run in seen if run.state is State.SUCCEEDED and not run.check and run.risk != "read"],
            inventory=inventory if inventory.hosts or inventory.silent else None,
        )

    # -- helpers -------------------------------------------------------------------------------------------------

    async def _zone(self, user: str) -> datetime.tzinfo | None:
        """Return a person's time zone as Slack knows it, else the site's."""
        try:
            answer = await asyncio.wait_for(self._client.users_info(user=user), ZONE_SECONDS)
            return ZoneInfo(answer["user"]["tz"])
        except (SlackApiError, TimeoutError, KeyError, TypeError, ValueError, OSError):
            return self._intake.runs.settings.zone

    async def _begin(self, run: Run) -> None:
        if run.state.final:
            return
        self._messages.show(run)
        if run.due <= time.time():
            await asyncio.to_thread(self._start, run.id)

    def _caller(self, team: str, user: str, channel: str) -> Caller:
        groups = tuple(f"slack-group:{team}/{group}" for group in self._groups.of(user))
        return Caller(f"slack:{team}/{user}", groups, channel)


def _team(body: Body) -> str:
    """Return the workspace of whoever asks, which in a shared channel may be another company's; an organisation's where it is installed for one."""
    event, user = body.get("event") or {}, body.get("user")
    own = event.get("user_team") or event.get("source_team") or (user.get("team_id") if isinstance(user, dict) else None)
    team = own or body.get("team_id") or (body.get("team") or {}).get("id") or (body.get("enterprise") or {}).get("id") or body.get("enterprise_id")
    if not team:
        raise LeptonError("Slack did not say which workspace this comes from")
    return str(team)
