# SPDX-License-Identifier: Apache-2.0
"""`lepton access`, `lepton audit` and `lepton freeze`: rights that can be reviewed and tested, and what was done with them."""

from __future__ import annotations

import datetime
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from rich.console import Console

from lepton_ai.access.freezes import EVERYTHING, Freeze, read_until
from lepton_ai.access.matching import Caller
from lepton_ai.access.rules import Rules
from lepton_ai.errors import LeptonError
from lepton_ai.intake import Intake
from lepton_ai.operations.parsing import parse_command, split_words
from lepton_ai.runs import audit, leases
from lepton_ai.runs.service import Runs
from lepton_ai.runs.store import Store
from lepton_ai.settings import CASES_FILE, Settings, load_settings
from lepton_ai.web.api import os_principal
from lepton_ai.web.client import service

SiteOption = Annotated[Path | None, typer.Option("--site", help="The site's folder; else $LEPTON_SITE, else the nearest lepton.yml upwards.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data instead of text.")]
access_app = typer.Typer(no_args_is_help=True, help="Who may do what, without doing it.")
audit_app = typer.Typer(no_args_is_help=True, help="The trail of all that was asked, decided and done.")
locks_app = typer.Typer(invoke_without_command=True, help="Who holds which lock.")
out = Console(highlight=False, soft_wrap=True)


class Case(BaseModel):
    """One case of `lepton access test`: who asks for what, and what must come of it."""

    model_config = ConfigDict(extra="forbid")

    who: str
    groups: list[str] = Field(default_factory=list)
    channel: str | None = None
    asks: str
    expect: str = Field(pattern="^(allowed|refused|approval)$")
    rule: str = ""


def _judge(settings: Settings, store: Store, caller: Caller, words: list[str]) -> tuple[str, str]:
    """Return ('allowed', 'refused' or 'approval', the rule that says so)."""
    intake = Intake(Runs(settings, settings.catalog(), store), owner=os_principal(os.getuid()))
    verdict, rule, frozen = intake.judge(caller, parse_command(intake.runs.catalog, words))
    if not verdict.allowed or frozen is not None:
        return "refused", str(frozen) if verdict.allowed else verdict.rule
    return ("allowed", verdict.rule) if rule is None else ("approval", f"rule {rule.name}: {', '.join(rule.approvers)}")


@access_app.command("check")
def access_check(
    who: Annotated[str, typer.Argument(help="A principal, such as slack:T012345/U012345.")],
    words: Annotated[list[str], typer.Argument(help="NOUN VERB [VALUE…] [NAME=VALUE…]")],
    group: Annotated[list[str] | None, typer.Option(help="A group the principal is in; may be repeated.")] = None,
    channel: Annotated[str | None, typer.Option(help="The Slack channel it is asked from.")] = None,
    site: SiteOption = None,
) -> None:
    """Say whether somebody may do something, and by which rule."""
    settings = load_settings(site)
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        outcome, rule = _judge(settings, store, Caller(who, tuple(group or ()), channel), words)
    out.print(f"{outcome}: {rule}", markup=False)
    raise typer.Exit(1 if outcome == "refused" else 0)


@access_app.command("test")
def access_test(
    cases: Annotated[Path | None, typer.Argument(help=f"A file of cases; {CASES_FILE} of the site by default.")] = None, site: SiteOption = None
) -> None:
    """Check the rules against cases of who may do what, as code is tested."""
    settings = load_settings(site)
    path = cases or settings.site / CASES_FILE
    try:
        read = TypeAdapter(list[Case]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise LeptonError(f"there is no {path}", hint="a list of {who, asks, expect: allowed, refused or approval}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise LeptonError(f"{path}: {error}") from error
    wrong = 0
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        for number, case in enumerate(read, 1):
            outcome, rule = _judge(settings, store, Caller(case.who, tuple(case.groups), case.channel), split_words(case.asks))
            if outcome != case.expect or case.rule not in rule:
                wrong += 1
                out.print(f"✗ {number}: {case.who} {case.asks}: expected {case.expect} {case.rule}, and it is {outcome}: {rule}", markup=False)
    out.print(f"{len(read) - wrong} of {len(read)} cases are as expected")
    raise typer.Exit(1 if wrong else 0)


@access_app.command("schema")
def access_schema() -> None:
    """Print the JSON schema of the `access` part of a site's settings, for editors and reviews."""
    print(json.dumps(Rules.model_json_schema(), indent=2))


@audit_app.command("verify")
def audit_verify(site: SiteOption = None) -> None:
    """Check that nothing of the trail was changed or removed. Note the head elsewhere to see a trail that was cut short."""
    settings = load_settings(site)
    with closing(Store(settings.state_dir, settings.database_url)) as store, store.engine.connect() as connection:
        chain = audit.verify(connection)
    if chain.trouble:
        raise LeptonError(f"the audit trail does not hold: {chain.trouble}", hint=f"{chain.entries} entries before it hold")
    out.print(f"{chain.entries} entries hold; head {chain.head} {chain.hash}")


@audit_app.command("export")
def audit_export(since: Annotated[str, typer.Option(help="Only from this date on: 2026-11-23.")] = "", site: SiteOption = None) -> None:
    """Print the trail as JSON lines, oldest first."""
    settings = load_settings(site)
    begin = _date(since) if since else 0.0
    with closing(Store(settings.state_dir, settings.database_url)) as store, store.engine.connect() as connection:
        for entry in audit.entries(connection, begin):
            print(json.dumps(entry, sort_keys=True))


@audit_app.command("prune")
def audit_prune(before: Annotated[str, typer.Option(help="Remove what is older than this date: 2025-11-23.")], site: SiteOption = None) -> None:
    """Remove the oldest part of the trail; a checkpoint takes its place, so that the rest can still be verified."""
    settings = load_settings(site)
    with closing(Store(settings.state_dir, settings.database_url)) as store, store.transaction() as connection:
        out.print(f"{audit.prune(connection, _date(before), os_principal(os.getuid()))} entries removed")


def _date(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError as error:
        raise LeptonError(f"{text} is not a date: expected one such as 2026-11-23") from error


def read_moment(settings: Settings, word: str) -> float:
    """Return the time that a word says, in the site's time zone, as seconds since the epoch."""
    found = read_until(word, datetime.datetime.now(settings.zone).astimezone(settings.zone))
    if found is None:
        raise LeptonError(f"{word} is no time: expected 30m, 2h, 1d, 18:00 or a date such as 2026-12-24T02:00")
    return found.timestamp()


def freeze(
    target: Annotated[str, typer.Argument(help="What may not change: node/web-1, node/prod-*, or * for everything.")] = EVERYTHING,
    until: Annotated[str, typer.Option(help="30m, 2h, 18:00 or a date; until it is lifted by default.")] = "",
    why: Annotated[str, typer.Option(help="A reason, shown to whoever is refused.")] = "",
    site: SiteOption = None,
) -> None:
    """Stop all changes of a target, at every door, until it is lifted."""
    settings = load_settings(site)
    end = read_moment(settings, until) if until else None
    client = service(settings.socket)
    if client is not None:
        frozen: dict[str, Any] = client.freeze(target, end, why)
        out.print(str(Freeze(**frozen)), markup=False)
        return
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        written = Freeze(target, end, os_principal(os.getuid()), why)
        store.freeze(written)
        out.print(str(written), markup=False)


def unfreeze(target: Annotated[str, typer.Argument(help="The target as it was frozen.")] = EVERYTHING, site: SiteOption = None) -> None:
    """Lift a freeze."""
    settings = load_settings(site)
    client = service(settings.socket)
    if client is not None:
        lifted = client.unfreeze(target)
    else:
        with closing(Store(settings.state_dir, settings.database_url)) as store:
            lifted = store.unfreeze(target, os_principal(os.getuid()))
    out.print(f"{target} may change again" if lifted else f"{target} is not frozen", markup=False)


@locks_app.callback()
def locks(context: typer.Context, site: SiteOption = None) -> None:
    """List the locks and their holders."""
    if context.invoked_subcommand is None:
        settings = load_settings(site)
        client = service(settings.socket)
        if client is not None:
            held = [(lock, owner) for lock, owner in client.locks()]
        else:
            with closing(Store(settings.state_dir, settings.database_url)) as store:
                held = leases.locks(store)
        for lock, owner in held:
            out.print(f"{lock}  {owner.partition('/')[0]}", markup=False)


@locks_app.command("steal")
def locks_steal(
    lock: Annotated[str, typer.Argument(help="A lock, such as node/web-1.")],
    why: Annotated[str, typer.Option(help="A reason for the audit trail.")],
    site: SiteOption = None,
) -> None:
    """Take a lock from its holder: a run is canceled, a playbook run by hand loses its lease. Written into the audit trail."""
    client = service(load_settings(site).socket)
    if client is None:
        raise LeptonError("no service runs here", hint="a run in a terminal ends with Ctrl-C there, and its locks with it")
    out.print(f"taken from {client.steal(lock, why)}", markup=False)
