# SPDX-License-Identifier: Apache-2.0
"""What people type, whichever way it comes: an answer in words, a form to fill in, or a run."""

from __future__ import annotations

import datetime
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lepton_ai import policies
from lepton_ai.access.freezes import EVERYTHING, Freeze, read_until
from lepton_ai.access.matching import Caller
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake, must_be_possible
from lepton_ai.operations.catalog import Catalog, Operation
from lepton_ai.operations.help import help_text
from lepton_ai.operations.parsing import parse_command, read_arguments
from lepton_ai.runs.model import Run
from lepton_ai.scaling.plot import draw
from lepton_ai.scaling.policy import Policy
from lepton_ai.scaling.series import from_prometheus
from lepton_ai.scaling.trial import signal_of, trial
from lepton_ai.slack.forms import Mode
from lepton_ai.slack.views import escape, moment, runs_text

AT, LOGIN, SCALING = "at", "login", "scaling"
ZONED = frozenset({AT, "freeze", SCALING, Mode.CANARY, Mode.PLAN})  # words after which a time of day may stand
OWN_WORDS = (
    "`at 02:00 NOUN VERB …` does it later · `canary NOUN VERB …` does it on one host first · "
    "`freeze [TARGET] [UNTIL] [REASON]` and `unfreeze [TARGET]` stop and allow changes · "
    "`why [NOUN VERB …]` explains a refusal, `why SERVICE [at 08:30]` a size · "
    "`scaling [history|pin|unpin|undo|backtest] SERVICE …` is about policies · `login` leads to the pages"
)
SHOW, HISTORY = "service.show", 8  # what one must be allowed to hear of a service's decisions; how many are said
WINDOW = "7d"  # of a back-test


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


@dataclass(frozen=True)
class Later:
    """An answer that takes a while: what is said at once, and what makes the answer and a picture (PNG, alternative text)."""

    text: str
    make: Callable[[], tuple[str, tuple[bytes, str]]]


def read(
    intake: Intake, caller: Caller, words: Sequence[str], prefix: str, *, key: str, origin: Mapping[str, Any], zone: datetime.tzinfo | None
) -> Told | Asked | Later | Run:
    """Take a line of words. Raises LeptonError for what is wrong with it or not allowed. Reads and writes the database.

    `zone` is the asker's time zone, None for this machine's.
    """
    now = datetime.datetime.now(zone).astimezone(zone)
    if not words or words[0] == "help":
        return Told(_help(intake, caller, words[1:], prefix))
    if words[0] == "runs":
        seen = [run for run in intake.runs.store.runs(100) if intake.may_see(caller, run).allowed]
        return Told(runs_text(seen[:10]))
    if words[0] == SCALING:
        return _scaling(intake, caller, words[1:], now)
    if words[0] == "why" and (len(words) == 2 or words[2:3] == [AT]):
        intake.must_be_allowed(caller, SHOW, {"service": words[1]})
        return Told(escape(policies.why(intake.runs.settings, intake.runs.store, words[1], words[3] if len(words) > 3 else "")))
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


def _scaling(intake: Intake, caller: Caller, words: Sequence[str], now: datetime.datetime) -> Told | Later:
    """Answer what is asked about a service's policy, or overrule that for a while."""
    settings, store = intake.runs.settings, intake.runs.store
    usage = "scaling history SERVICE · pin SERVICE REPLICAS UNTIL [REASON] · unpin SERVICE · undo SERVICE · backtest SERVICE [7d] · why SERVICE [08:30]"
    verb, service, *rest = [*words, "", ""]
    if not service or verb not in ("why", "history", "pin", "unpin", "undo", "backtest"):
        raise LeptonError("scaling is asked about a service", hint=usage)
    intake.must_be_allowed(caller, SHOW, {"service": service})
    rest = [word for word in rest if word]
    if verb == "why":
        return Told(escape(policies.why(settings, store, service, rest[0] if rest else "")))
    if verb == "history":
        return Told(escape("\n".join(policies.history(settings, store, service, HISTORY))))
    _path, policy = policies.policy_of(settings, service)
    if verb == "backtest":
        return _backtest(intake, policy, rest[0] if rest else WINDOW)
    if verb == "unpin":
        was = intake.unpin(caller, service)
        return Told(f":round_pushpin: {escape(service)} is its policy's again" if was else f"{escape(service)} is not pinned", for_all=was)
    if verb == "undo":
        replicas, until, why = policies.undoing(store, service)
    else:
        end = read_until(rest[1], now) if len(rest) > 1 else None
        if end is None or not rest[0].isdecimal():
            raise LeptonError("say how many replicas, and until when", hint="such as: scaling pin chat 6 18:00 because of the launch")
        replicas, until, why = int(rest[0]), end.timestamp(), " ".join(rest[2:])
    policies.must_be_pinnable(policy, replicas)
    intake.pin(caller, service, replicas, until, why)
    return Told(f":pushpin: *{escape(service)} is pinned to {replicas}* until {moment(until)}" + (f": {escape(why)}" if why else ""), for_all=True)


def _backtest(intake: Intake, policy: Policy, window: str) -> Later:
    span, prometheus = policies.seconds(window), intake.runs.settings.scaling.prometheus
    if not prometheus:
        raise LeptonError("nobody knows which Prometheus to ask", hint="set scaling.prometheus in lepton.yml to its address")

    def make() -> tuple[str, tuple[bytes, str]]:
        now = time.time()
        done = trial([policy], from_prometheus(prometheus, signal_of(policy).promql, now - span, now))
        picture = io.BytesIO()
        draw(picture, done)
        said = "\n".join(escape(remark) for remark in done.remarks())
        return f"{escape(done.title())}\n```\n{escape(done.table())}\n```\n{said}", (picture.getvalue(), done.table())

    return Later(f"The last {escape(window)} of {escape(policy.service)} are replayed…", make)


def _thing(target: str) -> str:
    return "everything" if target == EVERYTHING else target
