# SPDX-License-Identifier: Apache-2.0
"""Scaling policies on traces of real load, ours and those of others, by violations, cost and how restless they are.

    uv run python tests/benchmarks/scaling.py --data DIR [--json] [--trace NAME …] [--lead SECONDS …] [--plot FILE]

DIR holds folders of traces as `../shared/data/README.md` lists them; a CSV with a first column of seconds or moments and a second of load
will do. One replica serves a twelfth of the mean load; ticks are 15 s. Of the trace, the first week is only learned from, in the report
nothing of it counts; traces of less than two weeks count from their second half on. Ours runs with its defaults on all of them. Peers run
at every target, so that no tuning in hindsight beats what is shown of them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lepton_ai.scaling.backtest import Report, bound, by_policy, by_rule, first_size, judge, replay
from lepton_ai.scaling.outlook import TICK_SECONDS, Array
from lepton_ai.scaling.peers import Rule, alert_step, fixed, hpa, keda, kpa, target_tracking
from lepton_ai.scaling.policy import Policy

REPLICAS = 12  # of the mean load
WEEK = 7 * 86400
LEADS = (60.0, 180.0, 600.0)
TARGETS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
MOST_UTILISED = 0.9
# How much more than a Poisson process arrivals vary, where rates of ten minutes say nothing of the bursts within; 0: as they are.
BURSTS = {"servegen": 6.0}
TRACES = {
    "servegen": ("servegen/servegen_language_m-large_rate10min.csv", None),
    # From its first busy week to the end; before that, hardly anybody came, and the mean would be of nothing.
    "worldcup98": ("worldcup98/invocation_count.csv", ("1998-05-30", "1998-07-13")),
    "nab-elb": ("nab/elb_request_count_8c0756.csv", None),
}
PEERS: dict[str, Callable[[float], Rule]] = {"HPA": hpa, "KEDA": keda, "KPA": kpa, "target tracking": target_tracking}


def read_trace(path: Path, part: tuple[str, str] | None, bursts: float) -> Array:
    """Return load per second at each tick."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    moments = np.array([_seconds(row[0]) for row in rows])
    loads = np.array([float(row[1]) for row in rows])
    if part is not None:
        low, high = (_seconds(moment) for moment in part)
        chosen = (moments >= low) & (moments < high)
        moments, loads = moments[chosen], loads[chosen]
    ticks = np.arange(moments[0], moments[-1], TICK_SECONDS)
    found: Array = np.interp(ticks, moments, loads)
    if bursts:
        expected = found * TICK_SECONDS
        drawn = np.random.default_rng(1).normal(expected, np.sqrt(bursts * np.maximum(expected, 1e-9)))
        found = np.maximum(0.0, drawn) / TICK_SECONDS
    return found


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


def reports(loads: Array, lead: float) -> list[Report]:
    """Return what came of ours and of everybody else's rules at every target."""
    capacity = float(loads.mean()) / REPLICAS
    after = WEEK if len(loads) * TICK_SECONDS > 2 * WEEK - 86400 else len(loads) * TICK_SECONDS / 2
    begin = first_size(float(loads[0]), capacity, MOST_UTILISED)
    values = loads.tolist()
    policy = Policy.model_validate({"service": "s", "min_replicas": 1, "max_replicas": 100000, "signals": [{"name": "load"}]})
    steps = [("ours", by_policy(policy, capacity, lead))]
    steps += [(f"{name} {target:.0%}", by_rule(peer(target), capacity)) for name, peer in PEERS.items() for target in TARGETS]
    steps.append(("alert +1", by_rule(alert_step(), capacity)))
    steps.append(("fixed peak", by_rule(fixed(math.ceil(float(loads.max()) / (MOST_UTILISED * capacity))), capacity)))
    return [judge(replay(name, values, step, lead_seconds=lead, begin=begin), loads, capacity, MOST_UTILISED, after_seconds=after) for name, step in steps]


def dominating(found: Iterable[Report]) -> list[str]:
    """Return which of the others were at least as good as ours in violations and in cost, and better in one of them."""
    ours, *others = found
    return [
        other.name
        for other in others
        if other.violations <= ours.violations and other.cost <= ours.cost and (other.violations, other.cost) != (ours.violations, ours.cost)
    ]


def table(name: str, lead: float, found: list[Report], least: float) -> str:
    """Return the figures as Markdown; of each peer only the targets that no other target of it beats."""
    lines = [
        f"### {name}, lead {lead:.0f} s", "", f"Nobody with this lead and no violation can cost less than {least:.2f}.", "",
        "| rule | violations % | unmet % | cost | actions/day | reversals/day |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for report in found:
        family = report.name.rpartition(" ")[0]
        same = [other for other in found if other.name.rpartition(" ")[0] == family]
        if any(other.violations <= report.violations and other.cost < report.cost for other in same):
            continue
        numbers = (100 * report.violations, 100 * report.unmet, report.cost, report.actions_per_day, report.reversals_per_day)
        shown = "{:.3f} | {:.4f} | {:.2f} | {:.0f} | {:.1f}".format(*numbers)
        lines.append(f"| {report.name} | {shown} |")
    calm = next(report for report in found if report.name == "HPA 70%").reversals_per_day
    better = dominating(found)
    lines += ["", f"At least as good as ours in both violations and cost: {', '.join(better) or 'none'}."]
    lines.append(f"Reversals: {found[0].reversals_per_day / calm:.2f} of HPA's at 70 %." if calm else "HPA made no reversals.")
    return "\n".join([*lines, ""])


def plot(path: Path, results: dict[tuple[str, float], list[Report]]) -> None:
    """Draw cost against violations, one panel a trace and lead."""
    from matplotlib import pyplot

    names = sorted({name for name, _lead in results})
    leads = sorted({lead for _name, lead in results})
    figure, panels = pyplot.subplots(len(names), len(leads), figsize=(4.2 * len(leads), 3.4 * len(names)), squeeze=False)
    for (name, lead), found in results.items():
        panel = panels[names.index(name)][leads.index(lead)]
        for family in PEERS:
            points = [report for report in found if report.name.startswith(family + " ")]
            panel.plot([p.cost for p in points], [100 * p.violations for p in points], marker="o", markersize=3, linewidth=1, label=family)
        panel.plot(found[0].cost, 100 * found[0].violations, marker="*", markersize=14, color="black", linestyle="none", label="ours, untuned")
        panel.set_yscale("symlog", linthresh=0.01)
        panel.set_title(f"{name}, lead {lead:.0f} s", fontsize=9)
        panel.set_xlabel("replica hours / perfect foresight", fontsize=8)
        panel.set_ylabel("violations, % of time", fontsize=8)
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trace", action="append")
    parser.add_argument("--lead", type=float, action="append")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    results: dict[tuple[str, float], list[Report]] = {}
    for name in given.trace or TRACES:
        path, part = TRACES.get(name, (name, None))
        loads = read_trace(given.data / path, part, BURSTS.get(name, 0.0))
        for lead in given.lead or LEADS:
            found = results[name, lead] = reports(loads, lead)
            least = bound(loads, float(loads.mean()) / REPLICAS, MOST_UTILISED, lead)
            if not given.json:
                print(table(name, lead, found, least), flush=True)
    if given.json:
        shown = [{"trace": name, "lead_seconds": lead, "rules": [asdict(report) for report in found]} for (name, lead), found in results.items()]
        json.dump(shown, sys.stdout, indent=1)
    if given.plot:
        plot(given.plot, results)


if __name__ == "__main__":
    main()
