# SPDX-License-Identifier: Apache-2.0
"""`lepton scaling …`: policies checked, and tried on the past before they are switched on."""

from __future__ import annotations

import datetime
import json
import os
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lepton_ai import policies
from lepton_ai.cli_rights import SiteOption, read_moment
from lepton_ai.errors import LeptonError
from lepton_ai.runs.store import Store
from lepton_ai.scaling.policy import Policy, differences, load_policy
from lepton_ai.scaling.series import from_csv, from_prometheus
from lepton_ai.scaling.trial import signal_of, trial
from lepton_ai.settings import Settings, load_settings
from lepton_ai.web.api import os_principal
from lepton_ai.web.client import service as connected

scaling_app = typer.Typer(no_args_is_help=True, help="Scaling policies: checked, tried on the past, explained, and overruled for a while.")
out = Console(highlight=False, soft_wrap=True)

PolicyFile = Annotated[Path, typer.Argument(help="The policy's file.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@scaling_app.command()
def check(policy: PolicyFile, site: SiteOption = None) -> None:
    """Say whether a policy can be used, or what is wrong in which line; and what it would change of the one that is in force."""
    read = load_policy(policy)
    out.print(f"{policy}: {read.service} has {read.min_replicas} to {read.max_replicas} replicas, by {', '.join(signal.name for signal in read.signals)}")
    try:
        _path, in_force = policies.policy_of(load_settings(site), read.service)
    except LeptonError:
        return  # there is no site here, or no policy yet
    for line in differences(in_force, read):
        out.print(f"  {line}", markup=False)


@scaling_app.command()
def schema() -> None:
    """Print the JSON schema of policies, for editors."""
    print(json.dumps(Policy.model_json_schema(), indent=2))


@scaling_app.command()
def backtest(
    policy: PolicyFile,
    window: Annotated[str, typer.Argument(help="How much of Prometheus' past, such as 7d or 36h.")] = "7d",
    *,
    csv: Annotated[Path | None, typer.Option(help="A CSV of time and load, in place of Prometheus.")] = None,
    prometheus: Annotated[str, typer.Option(help="Where Prometheus is.")] = "http://127.0.0.1:9090",
    against: Annotated[list[Path] | None, typer.Option(help="Another policy to compare with.")] = None,
    lead: Annotated[float | None, typer.Option(help="Seconds from asking for a replica until it serves; the policy's where not given.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw what came of it, as PNG or SVG.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Replay the past through a policy: what would have been too few, what it would have cost, and how often it would have changed its mind.

    The first half of the past is only learned from; what is reported is the second.
    """
    tried = [load_policy(path) for path in (policy, *(against or ()))]
    if csv is not None:
        past = from_csv(csv)
    else:
        now = time.time()
        past = from_prometheus(prometheus, signal_of(tried[0]).promql, now - policies.seconds(window), now)
    done = trial(tried, past, lead)
    if plot is not None:
        from lepton_ai.scaling.plot import draw  # matplotlib takes its time

        draw(plot, done)
    if as_json:
        print(json.dumps({"lead_seconds": done.lead_seconds, "bound": done.bound, "rules": [asdict(report) for report in done.reports]}, indent=2))
        return
    out.print(f"{done.title()}\n\n{done.table()}\n", markup=False)
    for remark in done.remarks():
        out.print(remark, markup=False)


@scaling_app.command()
def why(
    service: Annotated[str, typer.Argument(help="The service.")],
    *,
    at: Annotated[str, typer.Option(help="Of which moment, such as 08:30 or 2026-11-27T08:30; now where not given.")] = "",
    as_json: JsonFlag = False,
    site: SiteOption = None,
) -> None:
    """Say what was decided of a service last, and why, of a moment at which nothing was done too."""
    settings = load_settings(site)
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        record = policies.records(store, service, policies.moment(settings, at), 1)[0]
    print(json.dumps(record, indent=2)) if as_json else out.print(policies.said(settings, record), markup=False)


@scaling_app.command()
def history(
    service: Annotated[str, typer.Argument(help="The service.")],
    *,
    limit: Annotated[int, typer.Option(help="How many.")] = 20,
    site: SiteOption = None,
) -> None:
    """Show when a service grew, was cut, or waited for a person's word, with the reasons."""
    settings = load_settings(site)
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        for line in policies.history(settings, store, service, limit):
            out.print(line, markup=False)


@scaling_app.command()
def pin(
    service: Annotated[str, typer.Argument(help="The service.")],
    replicas: Annotated[int, typer.Argument(min=0, help="How many replicas it is to have.")],
    *,
    until: Annotated[str, typer.Option(help="30m, 2h, 3d, 18:00 or a date.")],
    because: Annotated[str, typer.Option(help="A reason, which is said with every decision meanwhile.")] = "",
    site: SiteOption = None,
) -> None:
    """Hold a service at a number of replicas for a while, whatever its policy wants."""
    settings = load_settings(site)
    _set(settings, service, replicas, read_moment(settings, until), because)


@scaling_app.command()
def unpin(service: Annotated[str, typer.Argument(help="The service.")], site: SiteOption = None) -> None:
    """Give a service back to its policy."""
    settings = load_settings(site)
    client = connected(settings.socket)
    if client is not None:
        was = client.unpin(service)
    else:
        with closing(Store(settings.state_dir, settings.database_url)) as store:
            was = store.unpin(service, os_principal(os.getuid()))
    out.print(f"{service} is its policy's again" if was else f"{service} is not pinned", markup=False)


@scaling_app.command()
def undo(service: Annotated[str, typer.Argument(help="The service.")], site: SiteOption = None) -> None:
    """Take back what a policy did last, and hold that for an hour."""
    settings = load_settings(site)
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        replicas, until, because = policies.undoing(store, service)
    _set(settings, service, replicas, until, because)


def _set(settings: Settings, service: str, replicas: int, until: float, because: str) -> None:
    policies.must_be_pinnable(policies.policy_of(settings, service)[1], replicas)
    client = connected(settings.socket)
    if client is not None:
        client.pin(service, replicas, until, because)
    else:
        with closing(Store(settings.state_dir, settings.database_url)) as store:
            store.pin(service, replicas, until, os_principal(os.getuid()), because)
    end = datetime.datetime.fromtimestamp(until, settings.zone).strftime("%a %Y-%m-%d %H:%M")
    out.print(f"{service} is pinned to {replicas} until {end}" + (f": {because}" if because else ""), markup=False)
