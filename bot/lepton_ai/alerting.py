# SPDX-License-Identifier: Apache-2.0
"""What alerts cause: takes notifications, works them off in order, and asks for what the site's rules say, once for an episode."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import structlog
from pydantic import ValidationError

from lepton_ai.access.approvals import ApprovalRule
from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import decide
from lepton_ai.alerts.groups import FIRING, RESOLVED, Episode, Group, Silence, common_labels, key_of, merged, unheard
from lepton_ai.alerts.rules import Alert, AlertRule, Notification, asked_by
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, RefusedError
from lepton_ai.metrics import Metrics
from lepton_ai.runs import inbox
from lepton_ai.runs.model import Run
from lepton_ai.runs.progress import Progress

log = structlog.get_logger()
DOOR = "alert"  # in the origin of what an alert asked for
ANSWER = "alert"  # what a role must name so that its holders may acknowledge and silence
MOST_WAITING = 1000  # notifications; further ones are refused, and their sender tries again
AT_ONCE = 50  # notifications of one pass
MOST_ASKED, STORM_SECONDS = 20, 600.0  # all alerts together ask for so much within so long: more than that is for a person
EXPIRE_SECONDS = 600.0  # between looks for what is not heard of any more
NOT_UNDERSTOOD = (LeptonError, ValueError, TypeError, KeyError, ArithmeticError)  # of what was said or how it is asked for; a database is none of these
IDLE_SECONDS = 5.0
WATCHDOG = "Watchdog"
SILENT_SECONDS = 300.0  # without the alert that always fires, once it was heard
OWN = "lepton"  # the sender of what Lepton itself has to say
SILENCE_SECONDS = 5.0  # for Alertmanager to take a silence
RETRY_SECONDS = 3.0
KEEP_SECONDS = 14 * 86400.0  # of what is over


def read_notification(body: Mapping[str, Any]) -> Notification:
    """Return what a sender posted, or raise LeptonError that says what is wrong with it."""
    try:
        return Notification.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise LeptonError(f"this is not what Alertmanager or Grafana post: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


@dataclass
class Alerting:
    """Takes and works off. `start` begins a run that was written."""

    intake: Intake
    start: Callable[[str], None]
    metrics: Metrics = field(default_factory=Metrics)
    changed: Callable[[], None] = lambda: None  # what shows groups is told
    _asked: deque[float] = field(default_factory=deque)  # when runs were asked for lately
    _expired: float = 0.0  # when was looked for what is not heard of any more
    _since: float = field(default_factory=time.time)  # of which on something could be heard
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def take(self, sender: str, body: dict[str, Any]) -> bool:
        """Write a notification down, and return whether there was room. Raises LeptonError for what is none."""
        read_notification(body)
        taken = inbox.take(self.intake.runs.store, sender, body, MOST_WAITING)
        if not taken:
            self.metrics.alert("refused: too many wait")
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._woken.set)
        return taken

    async def work(self) -> None:
        """Work off for ever; what an earlier process left comes first."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            try:
                again = await asyncio.to_thread(self.work_off, time.time())
            except Exception:
                log.exception("alerts could not be worked off; trying again")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not again:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)

    def work_off(self, now: float) -> bool:
        """Work off what waits, and return whether there may be more."""
        store = self.intake.runs.store
        taken = inbox.waiting(store, AT_ONCE)
        self.metrics.alerts_waiting.set(inbox.count(store))
        for number, sender, body in taken:
            try:
                self._work_off(number, sender, body, now)
            except NOT_UNDERSTOOD as error:  # of another version of Lepton, or of a sender nobody knows
                log.error("a notification is dropped", sender=sender, error=f"{type(error).__name__}: {error}")
                inbox.drop(store, number)
        self._listen(now)
        if now - self._expired > EXPIRE_SECONDS:
            self._expire(now)
        for document in inbox.pending(store):
            self._ask(Group.model_validate(document))
        if taken:
            self.changed()
        return len(taken) == AT_ONCE

    def _work_off(self, number: int, sender: str, body: dict[str, Any], now: float) -> None:
        notification = read_notification(body)
        always = [alert for alert in notification.alerts if alert.labels.get("alertname") == WATCHDOG]
        if always:
            inbox.set_action(self.intake.runs.store, WATCHDOG, "", now)
            self.metrics.alerts_heard.set(now)
            notification.alerts = [alert for alert in notification.alerts if alert not in always]
        if not notification.alerts:
            inbox.drop(self.intake.runs.store, number)
            return
        began: list[int] = []
        if inbox.work_off(self.intake.runs.store, number, key_of(notification), _merging(notification, sender, now, began)) is not None:
            self.metrics.alert("began", began[0])
            self.metrics.alert("said again or over", len(notification.alerts) - began[0])

    def _expire(self, now: float) -> None:
        """Have what is not heard of any more be over, and forget what has long been."""
        self._expired = now
        store = self.intake.runs.store
        for group in map(Group.model_validate, inbox.firing(store)):
            if unheard(group, now) != group:
                self._change(group.key, lambda known: unheard(known, now))
        inbox.forget(store, now - KEEP_SECONDS)

    # -- asking --------------------------------------------------------------------------------------------------

    def _ask(self, group: Group) -> None:
        """Ask for what the alerts of a group want that have begun, and note what came of it. After a crash it is asked for again, by the same key."""
        found: dict[str, tuple[str, str]] = {}
        for fingerprint, episode in group.episodes.items():
            if not episode.pending:
                continue
            try:
                found[fingerprint] = self._ask_for(group, fingerprint, episode)
            except NOT_UNDERSTOOD as error:
                self.metrics.alert("refused")
                log.warning("an alert asked for something that is refused", alert=episode.alert.name, error=str(error))
                found[fingerprint] = (f"refused: {error}", "")
        self._change(group.key, lambda now: _with_results(now, found))

    def _ask_for(self, group: Group, fingerprint: str, episode: Episode) -> tuple[str, str]:
        """Return (what came of an alert, the run that it caused)."""
        settings = self.intake.runs.settings
        found = asked_by(episode.alert, settings.alerts, datetime.datetime.now(settings.zone))
        if found.rule is None:
            return found.why, ""
        if found.arguments is None:
            self.metrics.alert("refused")
            return f"refused: {found.missing}", ""
        rule, store = found.rule, self.intake.runs.store
        digest = hashlib.sha256(json.dumps([rule.operation, found.arguments], sort_keys=True, default=str).encode()).hexdigest()
        key = f"alert:{group.key}:{fingerprint}:{episode.starts:.3f}:{rule.name}"
        last = inbox.last_action(store, rule.name, digest)
        if rule.throttle_minutes and time.time() - last < rule.throttle_minutes * 60 and store.run_of_key(key) is None:
            self.metrics.alert("throttled")
            return (
                f"not again so soon: rule {rule.name} asked for the same {(time.time() - last) / 60:.0f} min ago (throttle {rule.throttle_minutes:g} min)",
                "",
            )
        if self._storm():
            self.metrics.alert("for a person")
            return f"{MOST_ASKED} alerts have asked for something within {STORM_SECONDS / 60:.0f} min, and more than that is for a person", ""
        operation = self.intake.runs.catalog.find(*rule.operation.split("."))
        run, new = self.intake.submit_values(
            Caller(f"alert:{group.receiver}"), operation, found.arguments, key=key, why=f"{episode.alert.name}: {_summary(episode.alert)}",
            origin={"door": DOOR, "group": group.key}, own_rule=_approval(rule),
        )  # fmt: skip
        inbox.set_action(store, rule.name, digest, time.time())
        self.metrics.alert("asked")
        if new:
            self._asked.append(time.monotonic())
            log.info("an alert asked for something", alert=episode.alert.name, rule=rule.name, run=run.id)
            self.start(run.id)
        return f"rule {rule.name}", run.id

    def _storm(self) -> bool:
        """Return whether so much has been asked for lately that a person should look first."""
        while self._asked and time.monotonic() - self._asked[0] > STORM_SECONDS:
            self._asked.popleft()
        return len(self._asked) >= MOST_ASKED

    def run_changed(self, run: Run, _progress: Progress) -> None:
        """Have the group shown again whose alert caused a run that has ended: a listener of runs."""
        if run.origin.get("group") and run.state.final:
            inbox.touch(self.intake.runs.store, str(run.origin["group"]))
            self.changed()

    # -- what Lepton itself notices ------------------------------------------------------------------------------

    def _listen(self, now: float) -> None:
        """Notice that Alertmanager is not heard any more, and say so as an alert of Lepton's own."""
        last = inbox.last_action(self.intake.runs.store, WATCHDOG, "")
        if not last:
            return  # there is no Alertmanager that says so
        heard = max(last, self._since)
        silent = now - heard > SILENT_SECONDS
        alert = Alert(
            status=FIRING if silent else RESOLVED, labels={"alertname": "AlertmanagerSilent", "severity": "critical"}, fingerprint="alertmanager-silent",
            annotations={
                "summary": "Alertmanager is not heard any more",
                "description": "The alert that always fires has not arrived for five minutes: Prometheus, Alertmanager or the way to Lepton is down.",
            },
            startsAt=datetime.datetime.fromtimestamp(heard + SILENT_SECONDS, datetime.UTC),
            endsAt=None if silent else datetime.datetime.fromtimestamp(now, datetime.UTC),
        )  # fmt: skip
        notification = Notification(receiver=OWN, alerts=[alert], groupKey="AlertmanagerSilent")
        key = key_of(notification)
        known = inbox.group(self.intake.runs.store, key)
        since = next((episode.starts for episode in Group.model_validate(known).firing), 0.0) if known is not None else 0.0
        # Only a word from Alertmanager ends it; that this bot has just begun to listen does not.
        if (silent and not since) or (since and last > since):
            inbox.change(self.intake.runs.store, key, _merging(notification, OWN, now, []))

    # -- people --------------------------------------------------------------------------------------------------

    def acknowledge(self, caller: Caller, key: str) -> None:
        """Note that somebody sees to a group."""
        self._may_answer(caller, self._group(key))
        self._change(key, lambda group: group.model_copy(update={"acknowledged": caller.principal}))
        self.intake.runs.store.record("", caller.principal, "alert acknowledged", {"group": key})

    def silence(self, caller: Caller, key: str, seconds: float) -> None:
        """Have Alertmanager keep quiet of what a group's alerts have in common."""
        group = self._group(key)
        self._may_answer(caller, group)
        settings = self.intake.runs.settings
        if not settings.alertmanager:
            raise LeptonError("nobody knows which Alertmanager to ask", hint="set alertmanager in lepton.yml to its address")
        if group.sender != "alertmanager":
            raise LeptonError(f"this came from {group.sender}, and only Alertmanager's alerts can be silenced here")
        now = datetime.datetime.now(datetime.UTC)
        matchers = [{"name": name, "value": value, "isRegex": False, "isEqual": True} for name, value in sorted(common_labels(group).items())]
        asked = {
            "matchers": matchers, "startsAt": now.isoformat(), "endsAt": (now + datetime.timedelta(seconds=seconds)).isoformat(),
            "createdBy": caller.principal, "comment": "from Slack, by Lepton",
        }  # fmt: skip
        try:
            answered = httpx.post(f"{settings.alertmanager.rstrip('/')}/api/v2/silences", json=asked, timeout=SILENCE_SECONDS)
        except httpx.HTTPError as error:
            raise LeptonError(f"Alertmanager at {settings.alertmanager} does not answer: {error or type(error).__name__}") from error
        if not answered.is_success:
            raise LeptonError(f"Alertmanager refuses the silence: {answered.text[:300]}")
        self._change(key, lambda group: group.model_copy(update={"silence": Silence(until=time.time() + seconds, by=caller.principal)}))
        self.intake.runs.store.record("", caller.principal, "alert silenced", {"group": key, "seconds": seconds, "matchers": matchers})

    def _may_answer(self, caller: Caller, group: Group) -> None:
        if caller.principal == self.intake.owner:
            return
        targets = sorted({f"{name}/{group.labels[name]}" for name in ("service", "node", "host") if group.labels.get(name)})
        verdict = decide(self.intake.runs.settings.access, caller, ANSWER, targets, by_wildcard=True, reads=False)
        if not verdict.allowed:
            self.intake.runs.store.record("", caller.principal, "refused", {"operation": ANSWER, "rule": verdict.rule, "targets": targets})
            raise RefusedError(caller, "answer this alert", verdict.rule)

    def _group(self, key: str) -> Group:
        document = inbox.group(self.intake.runs.store, key)
        if document is None:
            raise LeptonError("nothing is known of this alert any more")
        return Group.model_validate(document)

    def _change(self, key: str, changed: Callable[[Group], Group]) -> None:
        def change(document: dict[str, Any] | None) -> dict[str, Any]:
            if document is None:
                raise LeptonError("nothing is known of this alert any more")
            return changed(Group.model_validate(document)).model_dump(mode="json")

        inbox.change(self.intake.runs.store, key, change)
        self.changed()


def _merging(notification: Notification, sender: str, now: float, began: list[int]) -> Callable[[dict[str, Any] | None], dict[str, Any]]:
    """Return what makes a group's document the one after a notification, and puts into `began` how many alerts have begun to fire."""

    def change(document: dict[str, Any] | None) -> dict[str, Any]:
        group, count = merged(None if document is None else Group.model_validate(document), notification, sender, now)
        began[:] = [count]
        return group.model_dump(mode="json")

    return change


def _with_results(group: Group, found: Mapping[str, tuple[str, str]]) -> Group:
    for fingerprint, (result, run) in found.items():
        episode = group.episodes.get(fingerprint)
        if episode is not None:
            episode.pending, episode.result, episode.run = False, result, run
    return group


def _approval(rule: AlertRule) -> ApprovalRule | None:
    return ApprovalRule(name=f"alert {rule.name}", approvers=rule.approvers) if rule.approvers else None


def _summary(alert: Alert) -> str:
    return alert.annotations.get("summary") or alert.annotations.get("description") or ", ".join(f"{name}={value}" for name, value in alert.labels.items())
