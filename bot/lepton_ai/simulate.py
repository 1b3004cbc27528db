# SPDX-License-Identifier: Apache-2.0
"""What would come of a line in Slack: verdict, plan and message, with nothing asked of Slack and nothing changed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.operations.parsing import parse_command, split_words
from lepton_ai.runs.model import Request
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.settings import Settings
from lepton_ai.slack.forms import form
from lepton_ai.slack.views import run_message
from lepton_ai.slack.words import missing_arguments


@dataclass
class Simulated:
    """`verdict` is 'allowed', 'refused' or 'approval'; `blocks` is what Slack would be given: of a message, or of a form."""

    verdict: str
    rule: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    opens_form: bool = False


def simulate(settings: Settings, line: str, *, user: str, team: str, channel: str, groups: Sequence[str] = ()) -> Simulated:
    """Judge a line as it would be typed in Slack, and plan it where it may be. The site's freezes count; its state stays as it is."""
    words = split_words(line.removeprefix(settings.slack.command))
    if words and words[0] == "plan":
        words = words[1:]
    catalog = settings.catalog()
    caller = Caller(f"slack:{team}/{user}", tuple(f"slack-group:{team}/{group}" for group in groups), channel)
    with tempfile.TemporaryDirectory(prefix="lepton") as folder, closing(Store(Path(folder))) as scratch:
        with closing(Store(settings.state_dir, settings.database_url)) as store:
            for freeze in store.freezes():
                scratch.freeze(freeze)
        runs = Runs(settings.model_copy(update={"state_dir": Path(folder)}), catalog, scratch)
        intake = Intake(runs, owner="")
        if len(words) >= 2 and missing_arguments(operation := catalog.find(words[0], words[1]), words[2:]):
            verdict = intake.verdict(caller, operation, None)
            view = form(operation, {}, {"channel": channel})
            return Simulated("allowed" if verdict.allowed else "refused", verdict.rule, view["blocks"] if verdict.allowed else [], verdict.allowed)
        command = parse_command(catalog, words)
        verdict, rule, frozen = intake.judge(caller, command)
        if not verdict.allowed or frozen is not None:
            return Simulated("refused", str(frozen) if verdict.allowed else verdict.rule)
        if command.operation.spec.plan == "none" and command.operation.spec.risk != "read":
            raise LeptonError(f"{command.operation.name} cannot be planned, so nothing more can be shown", hint=f"it is allowed: {verdict.rule}")
        request = Request(command.operation.name, command.arguments, caller.principal, key="simulated", check=True)
        run = runs.execute(runs.submit(request)[0].id)
        blocks = run_message(run, label=settings.label).blocks
    return Simulated("approval" if rule else "allowed", f"rule {rule.name}: {', '.join(rule.approvers)}" if rule else verdict.rule, blocks)
