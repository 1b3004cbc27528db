# SPDX-License-Identifier: Apache-2.0
"""Scaling policies on traces of real load, ours and those of others, by violations, cost and how restless they are.

    uv run python tests/benchmarks/scaling.py --data DIR [--json] [--trace NAME …] [--lead SECONDS …] [--plot FILE]

DIR holds folders of traces as `../shared/data/README.md` lists them, and any other CSV with a heading, a first column of seconds or moments
and a second of load, a day of it at least. One replica serves a twelfth of the mean load; ticks are 15 s. The first week of a trace is only
learned from, and nothing of it counts in the report; of traces of less than two weeks it is the first half. Ours runs with its defaults on
all of them. Peers run at every target, so that no tuning in hindsight beats what is shown of them.

False alarms are counted with the same trace and what monitoring does to it: samples that are missing, rates that are 0 while clients are
there, single samples of three times the load. Wrong is a cut on what is missing or 0, and growth on a single sample.
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

from lepton_ai.scaling.backtest import Report, Step, bound, by_policy, by_rule, first_size, judge, needed, replay
from lepton_ai.scaling.outlook import TICK_SECONDS, Array
from lepton_ai.scaling.peers import Rule, alert_step, fixed, hpa, keda, kpa, target_tracking
from lepton_ai.scaling.policy import Policy

REPLICAS = 12  # of the mean load
WEEK = 7 * 86400
LEADS = (60.0, 180.0, 600.0)
TARGETS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
SHOWN = 0.7  # of the targets
MOST_UTILISED = 0.9
# How much more than a Poisson process arrivals vary, where rates of ten minutes say nothing of the bursts within; 0: as they are.
BURSTS = {"servegen": 6.0}
TRACES = {
    "servegen": ("servegen/servegen_language_m-large_rate10min.csv", None),
    # From its first busy week to the end; before that, hardly anybody came, and the mean would be of nothing.
    "worldcup98": ("worldcup98/invocation_count.csv", ("1998-05-30", "1998-07-13")),
    "nab-elb": ("nab/elb_request_count_8c0756.csv", None),
}
# What monitoring does to a trace: the share of samples that are missing, minutes a day without any, minutes a day of 0, and spikes a day.
DISTURBED = {
    "5 % missing": (0.05, 0, 0, 0), "20 % missing": (0.2, 0, 0, 0), "10 min blackout": (0, 10, 0, 0), "10 min of 0": (0, 0, 10, 0), "spikes": (0, 0, 0, 8),
}  # fmt: skip
NO_LOAD = ("azure", "openb")  # folders of single requests, and of machines
DAY_TICKS = int(86400 / TICK_SECONDS)
SEEN_TICKS = 4  # after a spike, in which an action is still its doing
PEERS: dict[str, Callable[[float], Rule]] = {"HPA": hpa, "KEDA": keda, "KPA": kpa, "target tracking": target_tracking}


def read_trace(path: Path, part: tuple[str, str] | None, bursts: float) -> Array:
    """Return load per second at each tick; raise ValueError for what is no trace of load."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    moments = np.array([_seconds(row[0]) for row in rows])
    loads = np.array([float(row[1]) for row in rows])
    if len(moments) < 2 or not (np.diff(moments) > 0).all():
        raise ValueError("its times do not go up from row to row")
    if not (np.isfinite(loads).all() and (loads >= 0).all() and loads.any()):
        raise ValueError("its second column has values that are no load")
    if moments[-1] - moments[0] < 2 * 86400:
        raise ValueError("it is shorter than two days")
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


def ours(capacity: float, lead: float) -> Step:
    policy = Policy.model_validate({"service": "s", "min_replicas": 1, "max_replicas": 100000, "signals": [{"name": "load"}]})
    return by_policy(policy, capacity, lead)


def reports(loads: Array, lead: float) -> list[Report]:
    """Return what came of ours and of everybody else's rules at every target, and what an oracle would have done."""
    capacity = float(loads.mean()) / REPLICAS
    after = WEEK if len(loads) * TICK_SECONDS > 2 * WEEK - 86400 else len(loads) * TICK_SECONDS / 2
    begin = first_size(float(loads[0]), capacity, MOST_UTILISED)
    values = loads.tolist()
    steps = [("ours", ours(capacity, lead))]
    steps += [(f"{name} {target:.0%}", by_rule(peer(target), capacity)) for name, peer in PEERS.items() for target in TARGETS]
    steps.append(("alert +1", by_rule(alert_step(), capacity)))
    steps.append(("fixed peak", by_rule(fixed(math.ceil(float(loads.max()) / (MOST_UTILISED * capacity))), capacity)))
    found = [judge(replay(name, values, step, lead_seconds=lead, begin=begin), loads, capacity, MOST_UTILISED, after_seconds=after) for name, step in steps]
    rest = loads[int(after / TICK_SECONDS) :]
    hours = float(needed(rest, capacity, MOST_UTILISED).sum()) * TICK_SECONDS / 3600
    least = bound(rest, capacity, MOST_UTILISED, lead)
    return [*found, Report("oracle with this lead", 0.0, 0.0, hours * least, least, 0.0, 0.0)]


def false_alarms(loads: Array, lead: float) -> dict[str, dict[str, float]]:
    """Return wrong actions a day by disturbance and rule."""
    capacity = float(loads.mean()) / REPLICAS
    days = len(loads) / DAY_TICKS
    found: dict[str, dict[str, float]] = {}
    for name, disturbance in DISTURBED.items():
        seen, wrong = disturbed(loads, *disturbance)
        rules = {"ours": ours(capacity, lead), "HPA 70%": by_rule(hpa(0.7), capacity), "KEDA 70%": by_rule(keda(0.7), capacity)}
        for rule, step in rules.items():
            done = replay(rule, seen, step, lead_seconds=lead, begin=first_size(float(loads[0]), capacity, MOST_UTILISED))
            up = name == "spikes"
            count = sum(wrong[int(action.when / TICK_SECONDS)] and (action.after > action.before) is up for action in done.actions)
            found.setdefault(name, {})[rule] = count / days
    return found


def disturbed(loads: Array, missing: float, blackout: int, zeros: int, spikes: int) -> tuple[list[float | None], list[bool]]:
    """Return a trace as monitoring shows it on a bad day, and the ticks at which an action would be the disturbance's doing."""
    rng = np.random.default_rng(4)
    seen: list[float | None] = loads.tolist()
    wrong = np.zeros(len(loads) + 4 * DAY_TICKS, bool)
    for tick in np.flatnonzero(rng.random(len(loads)) < missing):
        seen[tick], wrong[tick] = None, True
    for day in range(1, len(loads) // DAY_TICKS):
        for minutes, value in ((blackout, None), (zeros, 0.0)):
            if minutes:
                at = day * DAY_TICKS + int(rng.integers(DAY_TICKS - minutes * 4))
                seen[at : at + minutes * 4] = [value] * (minutes * 4)
                wrong[at : at + minutes * 4] = True
        for at in day * DAY_TICKS + rng.integers(DAY_TICKS, size=spikes):
            seen[at] = 3 * float(loads[at])
            wrong[at : at + SEEN_TICKS] = True
    return seen, wrong[: len(loads)].tolist()


def dominating(found: Iterable[Report]) -> list[str]:
    """Return which of the others were at least as good as ours in violations and in cost, and better in one of them."""
    mine, *others = found
    return [
        other.name
        for other in others
        if not other.name.startswith("oracle")
        and other.violations <= mine.violations
        and other.cost <= mine.cost
        and (other.violations, other.cost) != (mine.violations, mine.cost)
    ]


def table(name: str, lead: float, found: list[Report]) -> str:
    """Return the figures as Markdown; of each peer only what most people set. All are in the JSON and in the plot."""
    lines = [
        f"### {name}, lead {lead:.0f} s", "",
        "| rule | violations % | unmet % | cost | actions/day | reversals/day |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for report in found:
        if report.name.endswith("%") and not report.name.endswith(f" {SHOWN:.0%}"):
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
    alarms: dict[str, dict[str, dict[str, float]]] = {}
    for name, path, part in traces(given.data, given.trace):
        try:
            loads = read_trace(path, part, BURSTS.get(name, 0.0))
        except (ValueError, IndexError) as error:
            if given.trace:
                parser.error(f"{path}: {error}")
            print(f"{path}: not a trace of load: {error}", file=sys.stderr)
            continue
        for lead in given.lead or LEADS:
            results[name, lead] = reports(loads, lead)
            if not given.json:
                print(table(name, lead, results[name, lead]), flush=True)
        alarms[name] = false_alarms(loads, (given.lead or LEADS)[0])
        if not given.json:
            print(alarm_table(name, alarms[name]), flush=True)
    if given.json:
        shown = [{"trace": name, "lead_seconds": lead, "rules": [asdict(report) for report in found]} for (name, lead), found in results.items()]
        json.dump({"scaling": shown, "false_alarms_per_day": alarms}, sys.stdout, indent=1)
    if given.plot:
        plot(given.plot, results)


def traces(data: Path, wanted: list[str] | None) -> list[tuple[str, Path, tuple[str, str] | None]]:
    """Return the traces of a folder, those that are known by their short names, or only those that are wanted."""
    if wanted:
        return [(name, data / TRACES.get(name, (name, None))[0], TRACES.get(name, (name, None))[1]) for name in wanted]
    found = [(name, data / path, part) for name, (path, part) in TRACES.items() if (data / path).exists()]
    known = {path for _name, path, _part in found}
    others = [path for path in sorted(data.rglob("*.csv")) if path not in known and path.parent.name not in NO_LOAD]
    return [*found, *((str(path.relative_to(data)), path, None) for path in others)]


def alarm_table(name: str, alarms: dict[str, dict[str, float]]) -> str:
    rules = list(next(iter(alarms.values())))
    lines = [f"### {name}, false alarms: wrong actions a day", "", f"| disturbance | {' | '.join(rules)} |", f"| --- |{' --- |' * len(rules)}"]
    lines += [f"| {disturbance} | {' | '.join(f'{found[rule]:.2f}' for rule in rules)} |" for disturbance, found in alarms.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
