# SPDX-License-Identifier: Apache-2.0
"""What people type, whichever way it comes: an answer in words, a form to fill in, or a run."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lepton_ai.access.freezes import EVERYTHING, Freeze, read_until
from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, must_be_possible
from lepton_ai.operations.catalog import Catalog, Operation
from lepton_ai.operations.help import help_text
from lepton_ai.operations.parsing import parse_command, read_arguments
from lepton_ai.runs.model import Run
from lepton_ai.slack.forms import Mode
from lepton_ai.slack.views import escape, runs_text

AT, LOGIN = "at", "login"
ZONED = frozenset({AT, "freeze", Mode.CANARY, Mode.PLAN})  # words after which a time of day may stand
OWN_WORDS = (
    "`at 02:00 NOUN VERB …` does it later · `canary NOUN VERB …` does it on one host first · "
    "`freeze [TARGET] [UNTIL] [REASON]` and `unfreeze [TARGET]` stop and allow changes · "
    "`why [NOUN VERB …]` explains a refusal · `login` leads to the pages"
)


@dataclass(frozen=True)
class Told:
    """An answer in words, for the asker or, when it concerns everybody, for the channel."""

    text: str
    for_all: bool = False


@dataclass(frozen=True)
class Asked:
    """An operation whose arguments are still to be given in a form."""

    operation: Operation
    values: dict[str, Any] = field(default_factory=dict)
    mode: Mode = Mode.RUN
    due: float = 0.0


def read(
    intake: Intake, caller: Caller, words: Sequence[str], prefix: str, *, key: str, origin: Mapping[str, Any], zone: datetime.tzinfo | None
) -> Told | Asked | Run:
    """Take a line of words. Raises LeptonError for what is wrong with it or not allowed. Reads and writes the database.

    `zone` is the asker's time zone, None for this machine's.
    """
    now = datetime.datetime.now(zone).astimezone(zone)
    if not words or words[0] == "help":
        return Told(_help(intake, caller, words[1:], prefix))
    if words[0] == "runs":
        seen = [run for run in intake.runs.store.runs(100) if intake.may_see(caller, run).allowed]
        return Told(runs_text(seen[:10]))
    if words[0] == "why":
        return Told(_why(intake, caller, words[1:]))
    if words[0] == "freeze":
        return Told(f":snowflake: *{escape(_freeze(intake, caller, words[1:], now))}*", for_all=True)
    if words[0] == "unfreeze":
        target = words[1] if len(words) > 1 else EVERYTHING
        lifted = intake.unfreeze(caller, target)
        return Told(f":sunny: {escape(_thing(target))} may change again" if lifted else f"{escape(_thing(target))} is not frozen", for_all=lifted)
    rest, mode, due = list(words), Mode.RUN, 0.0
    while rest and rest[0] in (Mode.PLAN, Mode.CANARY, AT):
        word = rest.pop(0)
        if word == AT:
            due = _due(rest.pop(0) if rest else "", now)
        elif mode is not Mode.RUN:
            raise LeptonError(f"{mode} and {word} cannot both be done", hint=f"say {Mode.PLAN} or {Mode.CANARY}")
        else:
            mode = Mode(word)
    return _operate(intake, caller, rest, mode, key=key, origin={**origin, **({"due": due} if due else {})})


def missing_arguments(operation: Operation, words: Sequence[str]) -> list[str]:
    """Return the required arguments that these words do not give."""
    given = read_arguments(operation, words)
    return [name for name, option in operation.spec.options.items() if option.get("required") and name not in given]


def allowed(intake: Intake, caller: Caller) -> Catalog:
    """Return the operations that this caller may ask for on any target."""
    catalog = intake.runs.catalog
    return replace(catalog, operations={name: operation for name, operation in catalog.operations.items() if intake.may(caller, operation)})


def _due(word: str, now: datetime.datetime) -> float:
    due = read_until(word, now)
    if due is None:
        raise LeptonError("say when: at 02:00, at 30m (from now), at 2026-12-24T02:00", hint="such as: at 02:00 node stop web-1")
    return due.timestamp()


def _operate(intake: Intake, caller: Caller, words: Sequence[str], mode: Mode, *, key: str, origin: Mapping[str, Any]) -> Asked | Run:
    if len(words) >= 2:
        operation = intake.runs.catalog.find(words[0], words[1])
        # A form shows nothing that is not shown anyway, but is only for those who could submit it.
        if missing_arguments(operation, words[2:]) and intake.may(caller, operation):
            must_be_possible(operation, check=mode is Mode.PLAN, hosts=(), canary=mode is Mode.CANARY)
            return Asked(operation, dict(read_arguments(operation, words[2:])), mode, float(origin.get("due") or 0.0))
    command = parse_command(intake.runs.catalog, words)
    # What destroys is planned first, and its message asks for the confirmation.
    confirm = command.operation.spec.risk == "destroy" and mode is not Mode.PLAN
    return intake.submit(caller, command, key=key, check=mode is Mode.PLAN, confirm=confirm, origin=origin, canary=mode is Mode.CANARY)[0]


def _help(intake: Intake, caller: Caller, words: Sequence[str], prefix: str) -> str:
    mine = allowed(intake, caller)
    if not mine.operations:
        return f"You have no role here yet. Ask whoever keeps the settings to grant one to `{caller.principal}`."
    text = help_text(mine, list(words), prefix)
    return text if words else f"{text}\n{OWN_WORDS}"


def _freeze(intake: Intake, caller: Caller, words: Sequence[str], now: datetime.datetime) -> Freeze:
    rest, target, until = list(words), EVERYTHING, None
    if rest and ("/" in rest[0] or rest[0] == EVERYTHING):
        target = rest.pop(0)
    if rest and (end := read_until(rest[0], now)) is not None:
        until = end.timestamp()
        rest.pop(0)
    return intake.freeze(caller, target, until, " ".join(rest))


def _why(intake: Intake, caller: Caller, words: Sequence[str]) -> str:
    if len(words) >= 2:
        command = parse_command(intake.runs.catalog, words)
        verdict, rule, frozen = intake.judge(caller, command)
        lines = [f"{':white_check_mark: you may' if verdict.allowed else ':x: you may not'} {escape(' '.join(words))}: {escape(verdict.rule)}"]
        if verdict.allowed and rule is not None:
            lines.append(f":lock: it needs the approval of {escape(', '.join(rule.approvers))}: rule {escape(rule.name)}")
        if frozen is not None:
            lines.append(f":snowflake: {escape(frozen)}")
        return "\n".join(lines)
    refused = intake.runs.store.refusals(caller.principal, 3)
    if not refused:
        return "Nothing was refused to you lately."
    return "\n".join(f":x: {escape(entry['operation'])} {escape(' '.join(entry.get('targets', ())))}: {escape(entry['rule'])}" for entry in refused)


def _thing(target: str) -> str:
    return "everything" if target == EVERYTHING else target
