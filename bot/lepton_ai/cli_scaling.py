# SPDX-License-Identifier: Apache-2.0
"""`lepton scaling …`: policies checked, and tried on the past before they are switched on."""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from lepton_ai.cli_rights import SiteOption
from lepton_ai.errors import LeptonError
from lepton_ai.runs.store import Store
from lepton_ai.scaling.backtest import Replay, Report, Step, bound, by_policy, by_rule, first_size, judge, replay
from lepton_ai.scaling.decision import Decision, as_decision, explain
from lepton_ai.scaling.outlook import TICK_SECONDS, Array
from lepton_ai.scaling.peers import fixed, hpa, keda
from lepton_ai.scaling.policy import Policy, load_policy
from lepton_ai.scaling.series import from_csv, from_prometheus
from lepton_ai.settings import Settings, load_settings

scaling_app = typer.Typer(no_args_is_help=True, help="Scaling policies: checked, and tried on the past.")
out = Console(highlight=False, soft_wrap=True)
UNITS = {"m": 60, "h": 3600, "d": 86400}
PEER_TARGET = 0.7
SHOWN = 3  # decisions of each kind
LEAST_SECONDS = 86400.0  # of history that anything can be said of

PolicyFile = Annotated[Path, typer.Argument(help="The policy's file.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@scaling_app.command()
def check(policy: PolicyFile) -> None:
    """Say whether a policy can be used, or what is wrong in which line."""
    read = load_policy(policy)
    out.print(f"{policy}: {read.service} has {read.min_replicas} to {read.max_replicas} replicas, by {', '.join(signal.name for signal in read.signals)}")


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
    policies = [load_policy(path) for path in (policy, *(against or ()))]
    first = policies[0]
    signal = next(signal for signal in first.signals if signal.kind in ("load", "utilisation"))
    if signal.kind != "load":
        raise LeptonError(f"{signal.name} is of kind {signal.kind}, and how busy replicas would have been had there been others cannot be told from that",
                          hint="a back-test needs a signal of kind load, such as requests per second")  # fmt: skip
    if csv is not None:
        past = from_csv(csv)
    else:
        now = time.time()
        past = from_prometheus(prometheus, signal.promql, now - _seconds(window), now)
    if len(past) * TICK_SECONDS < LEAST_SECONDS:
        raise LeptonError(f"there are {len(past) * TICK_SECONDS / 3600:.1f} hours of it, and a back-test needs a day")
    loads = _whole(past)
    lead_seconds = lead if lead is not None else 60.0 if first.lead_seconds == "auto" else first.lead_seconds
    decisions: list[Decision] = []
    replays, reports = _compare(policies, past, loads, signal.capacity, lead_seconds, decisions)
    least = bound(loads, signal.capacity, first.max_utilisation, lead_seconds)
    if plot is not None:
        from lepton_ai.scaling.plot import draw  # matplotlib takes its time

        draw(plot, f"{first.service}, lead {lead_seconds:.0f} s", loads, signal.capacity, first.max_utilisation, replays[:3])
    if as_json:
        print(json.dumps({"lead_seconds": lead_seconds, "bound": least, "rules": [asdict(report) for report in reports]}, indent=2))
        return
    missing = sum(load is None for load in past)
    hours = f"{len(past) * TICK_SECONDS / 86400:.1f} days, {missing / len(past):.1%} of them without a sample"
    out.print(f"{first.service}: {hours}. A replica serves {lead_seconds:.0f} s after it is asked for.\n")
    out.print(_table(reports))
    limits = Counter(limit.partition(":")[0] for decision in decisions for limit in decision.limits)
    for limit, count in limits.most_common(SHOWN):
        out.print(f"\nLimited by {limit} in {count / len(decisions):.0%} of all moments.")
    out.print(f"\nNobody with this lead and without a violation can cost less than {least:.2f}. Decisions such as:")
    for outcome in ("grow", "cut", "ask"):
        for decision in [each for each in decisions if each.outcome == outcome][-SHOWN:]:
            out.print(f"  day {decision.when / 86400:.2f}: {explain(decision)}")


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
    record = _records(settings, service, at, limit=1)[0]
    if as_json:
        print(json.dumps(record, indent=2))
        return
    moment = datetime.datetime.fromtimestamp(record["when"], settings.zone).strftime("%a %Y-%m-%d %H:%M:%S")
    shadow = " (shadow: nothing is done)" if record["mode"] == "shadow" else ""
    out.print(f"{moment}{shadow}: {explain(as_decision(record))}")


@scaling_app.command()
def history(
    service: Annotated[str, typer.Argument(help="The service.")],
    *,
    limit: Annotated[int, typer.Option(help="How many.")] = 20,
    site: SiteOption = None,
) -> None:
    """Show when a service grew, was cut, or waited for a person's word, with the reasons."""
    settings = load_settings(site)
    for record in reversed(_records(settings, service, "", limit=limit, outcomes=("grow", "cut", "ask"))):
        moment = datetime.datetime.fromtimestamp(record["when"], settings.zone).strftime("%a %Y-%m-%d %H:%M:%S")
        done = "" if record["acted"] else f" ({'shadow' if record['mode'] == 'shadow' else 'not done'})"
        out.print(f"{moment}{done}: {explain(as_decision(record))}")


def _records(settings: Settings, service: str, at: str, *, limit: int, outcomes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    until = time.time()
    if at:
        now = datetime.datetime.now(settings.zone).astimezone(settings.zone)
        try:
            until = (
                (datetime.datetime.fromisoformat(at) if "-" in at else datetime.datetime.combine(now.date(), datetime.time.fromisoformat(at)))
                .replace(tzinfo=now.tzinfo)
                .timestamp()
            )
        except ValueError as error:
            raise LeptonError(f"{at} is no moment: expected 08:30 or a date such as 2026-11-27T08:30") from error
    with closing(Store(settings.state_dir, settings.database_url)) as store:
        found = store.scaling_records(service, until=until, limit=limit, outcomes=outcomes)
    if not found:
        raise LeptonError(f"nothing was decided of {service} until then", hint="has it a policy, and is scaling.prometheus set in lepton.yml?")
    return found


def _compare(
    policies: list[Policy], past: list[float | None], loads: Array, capacity: float, lead: float, decisions: list[Decision]
) -> tuple[list[Replay], list[Report]]:
    first = policies[0]
    peak = int(np.ceil(loads.max() / (first.max_utilisation * capacity)))
    steps: list[tuple[str, Step]] = [("this policy", by_policy(first, capacity, lead, decisions))]
    steps += [(f"{other.service} (against)", by_policy(other, capacity, lead)) for other in policies[1:]]
    steps += [(f"{name} {PEER_TARGET:.0%}", by_rule(rule(PEER_TARGET), capacity)) for name, rule in (("HPA", hpa), ("KEDA", keda))]
    steps.append((f"always {peak}", by_rule(fixed(peak), capacity)))
    begin = min(max(first_size(float(loads[0]), capacity, first.max_utilisation), first.min_replicas), first.max_replicas)
    replays = [replay(name, past, step, lead_seconds=lead, begin=begin) for name, step in steps]
    half = len(past) * TICK_SECONDS / 2
    return replays, [judge(done, loads, capacity, first.max_utilisation, after_seconds=half) for done in replays]


def _table(reports: list[Report]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "too busy", "unserved", "hours", "cost", "changes/d", "reversals/d"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for report in reports:
        table.add_row(
            report.name, f"{report.violations:.3%}", f"{report.unmet:.4%}", f"{report.replica_hours:.0f}", f"{report.cost:.2f}",
            f"{report.actions_per_day:.0f}", f"{report.reversals_per_day:.1f}",
        )  # fmt: skip
    return table


def _whole(past: list[float | None]) -> Array:
    """Return the past with what is missing as the last value before it, since clients did not go away."""
    last = next((load for load in past if load is not None), 0.0)
    whole = []
    for load in past:
        last = last if load is None else load
        whole.append(last)
    return np.array(whole)


def _seconds(text: str) -> float:
    try:
        return float(text[:-1]) * UNITS[text[-1]]
    except (ValueError, KeyError, IndexError) as error:
        raise LeptonError(f"{text!r} is not a length of time: expected one such as 7d, 36h or 90m") from error
