# SPDX-License-Identifier: Apache-2.0
"""Placement on Alibaba's production GPU trace, by the protocol of "Beware of Fragmentation" (ATC'23): ours beside seven others.

    uv run python tests/benchmarks/placement.py --data ../shared/data [--json] [--seeds N] [--trace NAME …] [--results FILE] [--plot FILE]

A task list is shuffled and resampled until the GPUs asked for reach 130 % of those there are. Tasks come one by one and stay; one that fits
nowhere is dropped. Ties go to a random host for everybody, as in a real scheduler: the published simulator breaks them by name, which is a
hidden first-fit. `--results` keeps each replay in a file as it ends, and takes what is there already from it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import rich
from ansible_collections.lepton.cloud.plugins.module_utils._fleet import WHOLE, Fleet, Free, Host, Request, Score
from ansible_collections.lepton.cloud.plugins.module_utils._packing import Mix, best_fit, fragmentation, usable
from ansible_collections.lepton.cloud.plugins.module_utils._repacking import Occupancy
from rich.progress import track

MIB = 1024 * 1024
ASKED = 1.3  # of the GPUs there are
MARKS = (95, 100, 130)
SEEDS, SEEDS_ELSEWHERE = 10, 3
STUDENT = {1: 12.7, 2: 4.3, 3: 3.18, 4: 2.78, 9: 2.26}  # of a 95 % interval, by degrees of freedom
PER_MOVE = 20  # placements
PUBLISHED_AS = {
    "ours": "06-FGD", "ours, repacking": "06-FGD",
    "FGD": "06-FGD", "best-fit": "05-BestFit", "GPU packing": "04-GpuPacking", "GPU clustering": "03-GpuClustering",
    "dot-product": "02-DotProd", "random": "01-Random",
}  # fmt: skip


def any_of_them(_mix: Mix) -> Score:
    """Take any host that has room."""
    return lambda _before, _after, _request: 0.0


def dot_product(mix: Mix) -> Score:
    """Take the host whose free resources are most like what is asked for (Tetris)."""
    largest, gpus = mix.largest, mix.most_gpus

    def score(before: Free, _after: Free, request: Request) -> float:
        alike = before.cpus * request.cpus / largest.cpus**2 + before.memory * request.memory / largest.memory**2
        return -(alike + sum(before.gpus) * request.gpu / gpus**2)

    return score


def gpu_packing(_mix: Mix) -> Score:
    """Share a GPU that is shared before one that is idle on a host in use, before one on an idle host; then leave least GPU."""

    def score(before: Free, after: Free, _request: Request) -> float:
        fresh = before.gpus.count(WHOLE) - after.gpus.count(WHOLE)
        idle = all(some == WHOLE for some in before.gpus)
        return fresh * 100 + idle * 10 + sum(after.gpus) / (len(after.gpus) * WHOLE or 1)

    return score


def gpu_clustering(_mix: Mix) -> Score:
    """Take the host with most GPUs that tasks of the same share use, as can be told from what is used of them (Gandiva)."""

    def score(before: Free, _after: Free, request: Request) -> float:
        share = request.gpu_share if request.gpus else 0
        return -sum(some < WHOLE and share > 0 and (WHOLE - some) % share == 0 for some in before.gpus)

    return score


def _share_free(after: Free) -> float:
    return (after.cpus / max(after.all_cpus, 1) + after.memory / max(after.all_memory, 1)) / 2


POLICIES: dict[str, Callable[[Mix], Score]] = {
    "ours": usable,
    "ours, repacking": usable,
    "FGD": fragmentation,
    "best-fit": best_fit,
    "GPU packing": gpu_packing,
    "GPU clustering": gpu_clustering,
    "dot-product": dot_product,
    "LeastAllocated": lambda _mix: lambda _before, after, _request: -_share_free(after),
    "MostAllocated": lambda _mix: lambda _before, after, _request: _share_free(after),
    "random": any_of_them,
}


def read_hosts(folder: Path) -> list[Host]:
    with (folder / "openb_node_list_gpu_node.csv").open() as file:
        return [
            Host(row["sn"], Free(cpus, memory, (WHOLE,) * int(row["gpu"]), row["model"], cpus, memory))
            for row in csv.DictReader(file)
            for cpus, memory in [(int(row["cpu_milli"]), int(row["memory_mib"]) * MIB)]
        ]


def read_tasks(path: Path) -> list[Request]:
    with path.open() as file:
        return [
            Request(
                int(row["cpu_milli"]), int(row.get("memory_mib") or 0) * MIB, int(row["num_gpu"]), int(row["gpu_milli"] or 0) or WHOLE,
                tuple(sorted(filter(None, (row.get("gpu_spec") or "").split("|")))),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def arrivals(tasks: Sequence[Request], capacity: int, seed: int) -> Iterator[Request]:
    """Yield tasks until the GPUs that were asked for reach 130 % of those there are."""
    chance = random.Random(seed)
    order, asked = [*tasks], 0
    chance.shuffle(order)
    for request in order:
        if asked >= ASKED * capacity:
            return
        asked += request.gpu
        yield request
    while asked < ASKED * capacity:
        request = chance.choice(tasks)
        asked += request.gpu
        yield request


def ceiling(tasks: Sequence[Request], capacity: int, seed: int) -> float:
    """Return how much of the GPUs, in %, can be allocated at all where everything is placed that comes before 95 % is asked for, whatever moves later.

    Where a share of 0.81 runs, 0.19 is left for shares as small as that, and where these are too few the rest is lost. CPUs are not looked at.
    """
    asked, early, shares = 0, [0], [0]
    for request in arrivals(tasks, capacity, seed):
        asked += request.gpu
        if request.gpus == 1:
            shares.append(request.gpu)
            if asked * 100 < MARKS[0] * capacity:
                early.append(request.gpu)
    gaps = {WHOLE - share for share in early if share > WHOLE / 2}
    lost = max(sum(WHOLE - share for share in early if share >= WHOLE - gap) - sum(share for share in shares if share <= gap) for gap in gaps)
    return 100 - 100 * lost / capacity


def replay(folder: Path, trace: str, policy: str, seed: int) -> dict[str, Any]:
    """Replay one list by one policy, and return what was allocated, in % of the GPUs there are."""
    hosts, tasks = read_hosts(folder), read_tasks(folder / f"openb_pod_list_{trace}.csv")
    capacity = sum(sum(host.free.gpus) for host in hosts)
    mix = Mix(tasks, hosts)
    fleet = Fleet(hosts, POLICIES[policy](mix), random.Random(1000 + seed).choice)
    running, repacks = Occupancy(fleet), policy.endswith("repacking")
    asked = allocated = placed = moves = 0
    took: list[float] = []
    at: dict[str, float] = {}
    curve = []
    for request in arrivals(tasks, capacity, seed):
        asked += request.gpu
        began = time.thread_time()  # of this thread: two replays run side by side
        choice = fleet.choose(request)
        if choice is not None:
            running.take(str(len(took)), choice, request)
        elif repacks and (moves + 1) * PER_MOVE <= placed:
            move = running.find_move(request)
            if move is not None:
                running.make_room(move, str(len(took)), request)
                choice, moves = move.room, moves + 1
        took.append(time.thread_time() - began)
        placed += choice is not None
        allocated += request.gpu if choice is not None else 0
        for mark in MARKS:
            if asked * 100 >= mark * capacity and str(mark) not in at:
                at[str(mark)] = 100 * allocated / capacity
        if len(took) % 100 == 0:
            curve.append([round(100 * asked / capacity, 2), round(100 * allocated / capacity, 2)])
    fragmented = sum(mix.fragmented(host.free) for host in fleet.hosts()) * 100 / capacity
    return {
        "trace": trace, "policy": policy, "seed": seed, "allocated": at, "fragmented": fragmented, "ms": statistics.mean(took) * 1000,
        "p99_ms": statistics.quantiles(took, n=100)[98] * 1000, "decisions": len(took), "placed": placed, "moves": moves, "curve": curve,
    }  # fmt: skip


def published(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the published means by trace and policy."""
    with (folder / "published_allocation.csv").open() as file:
        return {
            (row["trace"].removeprefix("openb_pod_list_"), row["policy"]): {str(mark): float(row[f"allocated_pct_at_{mark}"]) for mark in MARKS}
            for row in csv.DictReader(file)
        }


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of a mean."""
    if len(values) < 2:
        return float("nan")
    return STUDENT.get(len(values) - 1, 2.0) * statistics.stdev(values) / len(values) ** 0.5


def table(trace: str, results: Sequence[dict[str, Any]], known: dict[tuple[str, str], dict[str, float]]) -> str:
    """Return what came of one trace, as Markdown."""
    lines = [f"### {trace}", "", "| policy | at 95 % | at 100 % | at 130 % | published at 130 % | fragmented % | ms/decision | p99 |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for policy in POLICIES:
        mine = [result for result in results if (result["trace"], result["policy"]) == (trace, policy)]
        if not mine:
            continue
        cells = [f"{statistics.mean(values):.2f} ± {interval(values):.2f}" for mark in MARKS for values in [[each["allocated"][str(mark)] for each in mine]]]
        there = known.get((trace, PUBLISHED_AS.get(policy, "")), {}).get("130")
        said = "" if there is None else f"FGD {there:.2f}" if policy.startswith("ours") else f"{there:.2f}"
        rest = [statistics.mean(each[field] for each in mine) for field in ("fragmented", "ms", "p99_ms")]
        lines.append(f"| {policy} | {' | '.join(cells)} | {said} | {rest[0]:.2f} | {rest[1]:.2f} | {rest[2]:.2f} |")
    return "\n".join(lines)


def summary(traces: Sequence[str], results: Sequence[dict[str, Any]], known: dict[tuple[str, str], dict[str, float]]) -> str:
    """Say by how much ours is above the published FGD."""
    gains = {}
    for trace in traces:
        there = known.get((trace, "06-FGD"))
        mine = [result["allocated"]["130"] for result in results if (result["trace"], result["policy"]) == (trace, "ours")]
        if there and mine:
            gains[trace] = statistics.mean(mine) - there["130"]
    if not gains:
        return ""
    each = ", ".join(f"{trace} {gain:+.2f}" for trace, gain in gains.items())
    return f"Ours above the published FGD at 130 %, in points: {each}; on average {statistics.mean(gains.values()):+.2f}, at least {min(gains.values()):+.2f}."


def ceilings(folder: Path, wanted: Iterable[tuple[str, int]]) -> str:
    """Say how much could be allocated at most, by trace."""
    capacity = sum(sum(host.free.gpus) for host in read_hosts(folder))
    most: dict[str, list[float]] = {}
    for trace, seed in wanted:
        most.setdefault(trace, []).append(ceiling(read_tasks(folder / f"openb_pod_list_{trace}.csv"), capacity, seed))
    # Where it is below that, nobody can place all that comes before.
    each = ", ".join(f"{trace} {mean:.2f}" for trace, values in most.items() for mean in [statistics.mean(values)] if mean >= MARKS[0])
    return f"Nobody who places all that comes before 95 % can allocate more than this at 130 %, with moves or without: {each}."


def draw(path: Path, trace: str, results: Sequence[dict[str, Any]]) -> None:
    """Draw what was allocated by what was asked for, of the first seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for policy in POLICIES:
        mine = next((result for result in results if (result["trace"], result["policy"]) == (trace, policy)), None)
        if mine is not None:
            asked, allocated = zip(*[point for point in mine["curve"] if point[0] > 75], strict=True)
            axes.plot(asked, allocated, label=f"{policy} {mine['allocated']['130']:.1f}", linewidth=2.5 if policy.startswith("ours") else 1.2)
    axes.set(xlabel="GPUs asked for, % of those there are", ylabel="GPUs allocated, %", title=f"Alibaba 2023, {trace}: 1,213 hosts, 6,212 GPUs, random ties")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path)


def replays(folder: Path, wanted: Sequence[tuple[str, str, int]], kept: Path | None) -> list[dict[str, Any]]:
    """Return the results of replays: those that are in the file, and the others as they end."""
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept is not None and kept.exists() else []
    found = {(each["trace"], each["policy"], each["seed"]): each for each in known}
    missing = [key for key in wanted if key not in found]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(replay, folder, *key) for key in missing]
        for done in track(running, description="Replaying", console=rich.console.Console(stderr=True)):
            result = done.result()
            found[result["trace"], result["policy"], result["seed"]] = result
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    return [found[key] for key in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with openb/, or one laid out like that")
    parser.add_argument("--trace", nargs="+", help="the lists to replay; all of them where not given")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=[*POLICIES])
    parser.add_argument("--seeds", type=int, help=f"how many; {SEEDS} on default and {SEEDS_ELSEWHERE} elsewhere where not given")
    parser.add_argument("--results", type=Path, help="keep each replay there, and go on from what is there")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = args.data / "openb" if (args.data / "openb").is_dir() else args.data
    there = sorted(path.stem.removeprefix("openb_pod_list_") for path in folder.glob("openb_pod_list_*.csv"))
    traces = args.trace or sorted(there, key=lambda trace: trace != "default")
    wanted = [
        (trace, policy, seed)
        for trace in traces
        for seed in range(args.seeds or (SEEDS if trace == "default" else SEEDS_ELSEWHERE))
        for policy in args.policy
    ]  # fmt: skip
    results = replays(folder, wanted, args.results)
    known = published(folder) if (folder / "published_allocation.csv").exists() else {}
    if args.plot is not None:
        draw(args.plot, traces[0], results)
    if args.json:
        print(json.dumps([{key: value for key, value in result.items() if key != "curve"} for result in results], indent=2))
        return
    most = ceilings(folder, dict.fromkeys((trace, seed) for trace, _policy, seed in wanted))
    print("\n\n".join([*(table(trace, results, known) for trace in traces), summary(traces, results, known), most]))


if __name__ == "__main__":
    main()
