# SPDX-License-Identifier: Apache-2.0
"""What would come of a line in Slack or of an alert: verdict, plan and message, with nothing asked of anybody and nothing changed."""

from __future__ import annotations

import datetime
import json
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lepton_ai.access.matching import Caller
from lepton_ai.alerts.rules import Notification, asked_by
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.operations.parsing import Command, parse_command, split_words, typed_arguments
from lepton_ai.runs.model import Request
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.settings import Settings
from lepton_ai.slack.forms import Mode, form
from lepton_ai.slack.views import run_message
from lepton_ai.slack.words import missing_arguments

REFUSED = "refused"
NOTHING = "nothing"


@dataclass
class Simulated:
    """`verdict` is 'allowed', 'refused', 'approval' or 'nothing'; `blocks` is what Slack would be given: of a message, or of a form.

    `asked` is what was asked for in words, by an alert.
    """

    verdict: str
    rule: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    opens_form: bool = False
    asked: str = ""


def simulate(settings: Settings, line: str, *, user: str, team: str, channel: str, groups: Sequence[str] = ()) -> Simulated:
    """Judge a line as it would be typed in Slack, and plan it where it may be. The site's freezes count; its state stays as it is."""
    words = split_words(line.removeprefix(settings.slack.command))
    while words and words[0] in (Mode.PLAN, Mode.CANARY):
        words = words[1:]
    caller = Caller(f"slack:{team}/{user}", tuple(f"slack-group:{team}/{group}" for group in groups), channel)
    with _scratch(settings) as intake:
        catalog = intake.runs.catalog
        if len(words) >= 2 and missing_arguments(operation := catalog.find(words[0], words[1]), words[2:]):
            verdict = intake.verdict(caller, operation, None)
            view = form(operation, {}, {"channel": channel})
            return Simulated("allowed" if verdict.allowed else REFUSED, verdict.rule, view["blocks"] if verdict.allowed else [], verdict.allowed)
        return _judged(intake, caller, parse_command(catalog, words))


def simulate_alert(settings: Settings, content: str) -> list[Simulated]:
    """Judge what Alertmanager would post, alert by alert, by the site's rules, and plan what they ask for."""
    try:
        notification = Notification.model_validate(json.loads(content))
    except (ValueError, ValidationError) as error:
        raise LeptonError(f"this is not what Alertmanager posts: {error}", hint="expected JSON with receiver and a list of alerts") from error
    found = []
    with _scratch(settings) as intake:
        caller = Caller(f"alert:{notification.receiver}")
        now = datetime.datetime.now(settings.zone)
        for asked in (asked_by(alert, settings.alerts, now) for alert in notification.alerts):
            if asked.rule is None:
                found.append(Simulated(NOTHING, asked.why, asked=asked.alert.name))
                continue
            what = f"{asked.alert.name}, {asked.why}: {asked.rule.operation}"
            if asked.arguments is None:
                found.append(Simulated(REFUSED, asked.missing, asked=what))
                continue
            what += "".join(f" {name}={json.dumps(value)}" for name, value in asked.arguments.items())
            try:
                noun, _, verb = asked.rule.operation.partition(".")
                operation = intake.runs.catalog.find(noun, verb)
                judged = _judged(intake, caller, Command(operation, typed_arguments(operation, dict(asked.arguments))))
            except LeptonError as error:
                judged = Simulated(REFUSED, str(error))
            judged.asked = what
            found.append(judged)
    if notification.truncated_alerts:
        found.append(Simulated(NOTHING, f"Alertmanager left {notification.truncated_alerts} more alerts out"))
    return found


@contextmanager
def _scratch(settings: Settings) -> Iterator[Intake]:
    """Yield a way in over a state of its own, with the site's freezes in it."""
    with tempfile.TemporaryDirectory(prefix="lepton") as folder, closing(Store(Path(folder))) as scratch:
        with closing(Store(settings.state_dir, settings.database_url)) as store:
            for freeze in store.freezes():
                scratch.freeze(freeze)
        yield Intake(Runs(settings.model_copy(update={"state_dir": Path(folder)}), settings.catalog(), scratch), owner="")


def _judged(intake: Intake, caller: Caller, command: Command) -> Simulated:
    verdict, rule, frozen = intake.judge(caller, command)
    if not verdict.allowed or frozen is not None:
        return Simulated(REFUSED, str(frozen) if verdict.allowed else verdict.rule)
    spec = command.operation.spec
    if spec.plan == "none" and spec.risk != "read":
        raise LeptonError(f"{command.operation.name} cannot be planned, so nothing more can be shown", hint=f"it is allowed: {verdict.rule}")
    request = Request(command.operation.name, command.arguments, caller.principal, key=secrets.token_hex(8), check=True)
    run = intake.runs.execute(intake.runs.submit(request)[0].id)
    blocks = run_message(run, label=intake.runs.settings.label).blocks
    return Simulated("approval" if rule else "allowed", f"rule {rule.name}: {', '.join(rule.approvers)}" if rule else verdict.rule, blocks)
