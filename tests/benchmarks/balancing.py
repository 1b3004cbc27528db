# SPDX-License-Identifier: Apache-2.0
"""How long requests take behind unequal servers, by how they are shared out, in one run: Azure's traces of LLM requests, then a real HAProxy.

A server holds so many requests at once as slots and works on each at its own speed, as continuous batching does; a request takes a time for
its context and one for each token that it generates. Weights are what `service balance` makes of the mean response times that HAProxy's own
table has, every ten minutes. Reported is what comes after the first ten.

Usage: PYTHONPATH=. .venv/bin/python tests/benchmarks/balancing.py --data DIR [--json] [--haproxy]
`--haproxy` replays a part of the first trace, sped up, through a real HAProxy before servers that sleep.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import datetime
import heapq
import itertools
import json
import random
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from ansible_collections.lepton.cloud.plugins.module_utils._balancer import FULL_WEIGHT, Entry, Server, read_servers, read_statistics, render
from ansible_collections.lepton.cloud.plugins.module_utils._rollout import weights
from ansible_collections.lepton.cloud.plugins.module_utils._service import Service

from lepton_ai.sandbox.balancer import start_balancer, stop_balancer
from lepton_ai.sandbox.stand import free_port

SPEEDS = (1.0, 1.0, 0.5, 0.25)  # two of one kind of GPU, one of half and one of a quarter of its speed
CONTEXT_SECONDS, TOKEN_SECONDS = 0.0002, 0.015  # at speed 1
UTILISATION = 0.5
BALANCE_SECONDS = 600.0
AVERAGED = 1024  # responses that HAProxy's averages are of
SPEEDUP, REPLAYED, REWEIGHED = 30.0, 900.0, 300.0  # of the replay through HAProxy: how much faster, how many seconds, how often weighed


class Call(NamedTuple):
    """A request: when, and how long it takes at speed 1, in seconds."""

    at: float
    work: float


@dataclass
class Node:
    """A server as a load balancer sees it."""

    speed: float
    slots: int
    weight: int = FULL_WEIGHT
    active: int = 0
    given: float = 0.0  # by weight, for round robin
    waiting: deque[tuple[float, float]] = field(default_factory=deque)
    answered: deque[float] = field(default_factory=lambda: deque(maxlen=AVERAGED))

    @property
    def held(self) -> int:
        return self.active + len(self.waiting)


Choose = Callable[[Sequence[Node], random.Random], Node]


def round_robin(nodes: Sequence[Node], _dice: random.Random) -> Node:
    node = min(nodes, key=lambda each: each.given + FULL_WEIGHT / each.weight)
    node.given += FULL_WEIGHT / node.weight
    return node


def least_connections(nodes: Sequence[Node], dice: random.Random) -> Node:
    return min(nodes, key=lambda each: ((each.held + 1) / each.weight, dice.random()))


def two_random(nodes: Sequence[Node], dice: random.Random) -> Node:
    drawn = dice.choices(nodes, [each.weight for each in nodes], k=2)
    return min(drawn, key=lambda each: each.held / each.weight)


def soonest(nodes: Sequence[Node], _dice: random.Random) -> Node:
    """What nobody can do who does not know how fast each is and what each request will take."""
    return min(nodes, key=lambda each: (max(0, each.held + 1 - each.slots) + each.slots) / (each.speed * each.slots))


RULES: dict[str, tuple[Choose, bool]] = {
    "round robin": (round_robin, False),
    "round robin, balanced": (round_robin, True),
    "least connections": (least_connections, False),
    "least connections, balanced": (least_connections, True),
    "two at random": (two_random, False),
    "two at random, balanced": (two_random, True),
    "knows each speed": (soonest, False),
}


def read_trace(path: Path) -> list[Call]:
    calls = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"]).replace(tzinfo=datetime.UTC).timestamp()
            calls.append(Call(at, int(row["ContextTokens"]) * CONTEXT_SECONDS + int(row["GeneratedTokens"]) * TOKEN_SECONDS))
    begin = calls[0].at
    return [Call(call.at - begin, call.work) for call in calls]


def slots_for(calls: Sequence[Call]) -> int:
    """Return how many slots each server has, so that all together are so much in use."""
    busy = sum(call.work for call in calls) / calls[-1].at
    return max(1, round(busy / UTILISATION / sum(SPEEDS)))


def simulate(calls: Sequence[Call], slots: int, choose: Choose, *, balanced: bool) -> list[float]:
    """Return how long the requests took that came after the first ten minutes."""
    nodes, dice = [Node(speed, slots) for speed in SPEEDS], random.Random(1)
    ends: list[tuple[float, int, int, float]] = []  # when, number, node, came at
    numbers, took, next_balance = itertools.count(), list[float](), BALANCE_SECONDS

    def begin(index: int, now: float, came: float, work: float) -> None:
        nodes[index].active += 1
        heapq.heappush(ends, (now + work / nodes[index].speed, next(numbers), index, came))

    def until(now: float) -> None:
        while ends and ends[0][0] <= now:
            when, _number, index, came = heapq.heappop(ends)
            node = nodes[index]
            node.active -= 1
            node.answered.append(when - came)
            if came > BALANCE_SECONDS:
                took.append(when - came)
            if node.waiting:
                begin(index, when, *node.waiting.popleft())

    for call in calls:
        until(call.at)
        if balanced and call.at > next_balance:
            next_balance += BALANCE_SECONDS
            measured = {str(index): 1000 * sum(node.answered) / len(node.answered) if node.answered else 0.0 for index, node in enumerate(nodes)}
            for index, weight in weights(measured).items():
                nodes[int(index)].weight = weight
        index = nodes.index(choose(nodes, dice))
        if nodes[index].active < slots:
            begin(index, call.at, call.at, call.work)
        else:
            nodes[index].waiting.append((call.at, call.work))
    until(float("inf"))
    return took


def summary(took: Sequence[float]) -> dict[str, float]:
    return {"requests": len(took), "mean_s": float(np.mean(took)), "p50_s": float(np.quantile(took, 0.5)), "p99_s": float(np.quantile(took, 0.99))}


# -- a real HAProxy ------------------------------------------------------------------------------------------------


async def serve(port: int, speed: float, slots: int) -> asyncio.Server:
    """Serve as a model of this speed does: what a request asks for takes its time, in so many slots."""
    free = asyncio.Semaphore(slots)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                if path.startswith("/work/"):
                    async with free:
                        await asyncio.sleep(float(path.removeprefix("/work/")) / speed)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port)


def runtime(folder: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "admin.sock"))
        client.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


async def through_haproxy(calls: Sequence[Call], slots: int, balance: str, *, balanced: bool) -> dict[str, float]:
    """Replay a trace through an HAProxy that is configured as a service's file is, and weigh its servers as `service balance` does."""
    ports, listen = [free_port() for _speed in SPEEDS], free_port()
    servers = [await serve(port, speed, slots) for port, speed in zip(ports, SPEEDS, strict=True)]
    service = Service(image="m:1", port=1, listen_port=listen, balance=balance, health_path="/")
    entry = Entry("chat", service, len(ports), tuple(Server(f"chat-{number}", "127.0.0.1", port) for number, port in enumerate(ports)))
    took, first = list[float](), REWEIGHED / SPEEDUP
    with tempfile.TemporaryDirectory(prefix="lep") as folder:
        (Path(folder) / "haproxy/services").mkdir(parents=True)
        (Path(folder) / "haproxy/services/chat.cfg").write_text(render(entry, "127.0.0.1"))
        haproxy = await asyncio.to_thread(start_balancer, Path(folder))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listen}", limits=httpx.Limits(max_connections=None), timeout=60) as client:
                begin = time.monotonic()

                async def one(call: Call) -> None:
                    came = time.monotonic()
                    (await client.get(f"/work/{call.work / SPEEDUP:.6f}")).raise_for_status()
                    if call.at / SPEEDUP > first:
                        took.append((time.monotonic() - came) * SPEEDUP)

                async with asyncio.TaskGroup() as group:
                    next_balance = first
                    for call in calls:
                        await asyncio.sleep(max(0.0, begin + call.at / SPEEDUP - time.monotonic()))
                        if balanced and call.at / SPEEDUP > next_balance:
                            next_balance += first
                            rows = read_statistics(runtime(haproxy.folder, "show stat"))["chat"]
                            found = weights({row["name"]: float(row.get("response_ms") or 0) for row in rows if row["name"].startswith("chat-")})
                            for name, weight in found.items():
                                runtime(haproxy.folder, f"set server chat/{name} weight {weight}")
                        group.create_task(one(call))
            assert len(read_servers(runtime(haproxy.folder, "show servers state"))["chat"]) == len(ports)
        finally:
            stop_balancer(Path(folder))
            for server in servers:
                server.close()
    return summary(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--haproxy", action="store_true")
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    traces = sorted((asked.data / "azure").glob("*.csv"))
    for path in traces:
        calls = read_trace(path)
        slots = slots_for(calls)
        found[path.stem] = {name: summary(simulate(calls, slots, choose, balanced=balanced)) for name, (choose, balanced) in RULES.items()}
    if asked.haproxy:
        calls = [call for call in read_trace(traces[-1]) if call.at < REPLAYED]
        real = {}
        for name, balanced in (("least connections", False), ("least connections, balanced", True)):
            real[name] = asyncio.run(through_haproxy(calls, slots_for(calls), "leastconn", balanced=balanced))
        found["through HAProxy"] = real
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for trace, rules in found.items():
        print(f"\n{trace}\n| rule | mean s | p50 s | p99 s | p99 by the first's |\n| --- | --- | --- | --- | --- |")
        for name, row in rules.items():
            print(f"| {name} | {row['mean_s']:.2f} | {row['p50_s']:.2f} | {row['p99_s']:.2f} | {row['p99_s'] / next(iter(rules.values()))['p99_s']:.2f} |")


if __name__ == "__main__":
    main()
