# SPDX-License-Identifier: Apache-2.0
"""What one move makes room for: hosts and GPUs in small, and that nothing is lost or given twice in many random ones. Pure."""

from __future__ import annotations

import random
from collections import Counter

from ansible_collections.lepton.cloud.plugins.module_utils._fleet import WHOLE, Fleet, Free, Host, Request, Score
from ansible_collections.lepton.cloud.plugins.module_utils._packing import POLICIES, Mix
from ansible_collections.lepton.cloud.plugins.module_utils._repacking import Occupancy

GIB = 1 << 30


def occupancy(*hosts: tuple[int, tuple[int, ...]], score: Score | None = None) -> Occupancy:
    each = [Host(f"h{number}", Free(cpus, 64 * GIB, gpus, "", cpus, 64 * GIB)) for number, (cpus, gpus) in enumerate(hosts)]
    return Occupancy(Fleet(each, score or POLICIES["spread"](Mix([], each))))


def put(on: Occupancy, name: str, request: Request, host: str) -> None:
    others = [other.name for other in on.fleet.hosts() if other.name != host]
    closed = [on.fleet.host(other) for other in others]
    for other in closed:
        on.fleet.change(Host(other.name, other.free, other.labels, other.carries, "not now"))
    choice = on.fleet.choose(request)
    for other in closed:
        on.fleet.change(other)
    assert choice is not None
    on.take(name, choice, request)


def test_what_is_small_makes_room_for_what_is_large() -> None:
    on = occupancy((8000, ()), (4000, ()))
    put(on, "small", Request(2000, GIB, group="chat"), "h0")
    large = Request(8000, GIB)
    assert on.fleet.choose(large) is None
    move = on.find_move(large)
    assert move is not None
    assert (move.placed.name, move.from_host, move.to.host, move.room.host) == ("small", "h0", "h1", "h0")
    on.make_room(move, "large", large)
    assert [(host.free.cpus, dict(host.carries)) for host in on.fleet.hosts()] == [(0, {}), (2000, {"chat": 1})]


def test_a_share_goes_to_another_gpu_of_its_own_host_where_that_does() -> None:
    on = occupancy((64000, (WHOLE, WHOLE)), score=lambda _before, after, _request: after.gpus.count(WHOLE))
    for name in ("one", "two"):
        put(on, name, Request(1000, GIB, 1, 400), "h0")
    assert on.fleet.host("h0").free.gpus == (600, 600)
    move = on.find_move(Request(1000, GIB, 1))
    assert move is not None
    assert move.from_host == move.to.host == "h0"
    on.make_room(move, "whole", Request(1000, GIB, 1))
    assert on.fleet.host("h0").free.gpus == (0, 200)


def test_where_no_move_would_do_there_is_none_until_something_changes() -> None:
    on = occupancy((8000, ()), (1000, ()))
    put(on, "middle", Request(4000, GIB), "h0")
    large = Request(8000, GIB)
    assert on.find_move(large) is None
    put(on, "tiny", Request(500, GIB), "h1")
    assert on.find_move(large) is None
    closed = occupancy((8000, ()), (4000, ()))
    put(closed, "small", Request(2000, GIB), "h0")
    closed.fleet.change(Host("h0", closed.fleet.host("h0").free, closed="drained"))
    assert closed.find_move(large) is None  # nothing new may go there


def test_nothing_is_lost_or_given_twice() -> None:
    chance = random.Random(3)
    hosts = [(chance.choice((8000, 16000)), (WHOLE,) * chance.choice((0, 1, 2, 4))) for _number in range(12)]
    on = occupancy(*hosts)
    placed: dict[str, Request] = {}
    moves = 0
    for number in range(400):
        request = Request(chance.choice((500, 1000, 3000)), GIB, *chance.choice(((0, WHOLE), (1, 300), (1, 470), (1, 650), (1, WHOLE), (2, WHOLE))))
        choice, name = on.fleet.choose(request), f"t{number}"
        if choice is not None:
            on.take(name, choice, request)
            placed[name] = request
            continue
        move = on.find_move(request)
        if move is not None:
            on.make_room(move, name, request)
            placed[name], moves = request, moves + 1
    assert moves > 0
    left = Counter[str]()
    for host in on.fleet.hosts():
        left.update(cpus=host.free.cpus, memory=host.free.memory, gpu=sum(host.free.gpus))
        assert min((host.free.cpus, host.free.memory, *host.free.gpus)) >= 0
        assert max(host.free.gpus, default=0) <= WHOLE
    assert left["cpus"] == sum(cpus for cpus, _gpus in hosts) - sum(request.cpus for request in placed.values())
    assert left["gpu"] == sum(sum(gpus) for _cpus, gpus in hosts) - sum(request.gpu for request in placed.values())
    assert left["memory"] == (64 * len(hosts) - len(placed)) * GIB
