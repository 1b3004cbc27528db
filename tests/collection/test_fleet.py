# SPDX-License-Identifier: Apache-2.0
"""Which of many hosts gets what: what fits, why something does not, and which is best by each policy. Pure."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._fleet import Fleet, Free, Host, Request, lacking, nearest_miss, remaining
from ansible_collections.lepton.cloud.plugins.module_utils._packing import POLICIES, Mix

GIB = 1 << 30


def free(cpus: int = 8000, memory: int = 16, gpus: tuple[int, ...] = (), model: str = "") -> Free:
    return Free(cpus, memory * GIB, gpus, model, 8000, 16 * GIB)


def host(name: str, state: Free | None = None, **more: Any) -> Host:
    return Host(name, free() if state is None else state, **more)


def test_a_share_goes_to_each_gpu_that_makes_a_difference_and_whole_ones_to_idle_ones() -> None:
    state = free(gpus=(200, 500, 500, 1000))
    half = Request(1000, GIB, 1, 500)
    assert [left.gpus for left in remaining(state, half)] == [(0, 200, 500, 1000), (200, 500, 500, 500)]
    assert [left.gpus for left in remaining(state, Request(gpus=1))] == [(0, 200, 500, 500)]
    assert remaining(state, Request(gpus=2)) == []
    assert [left.gpus for left in remaining(free(gpus=(300, 1000, 1000)), Request(gpus=2))] == [(0, 0, 300)]
    (left,) = remaining(state, Request(1000, GIB))
    assert (left.cpus, left.memory, left.gpus) == (7000, 15 * GIB, state.gpus)


@pytest.mark.parametrize(
    ("of", "request_", "why"),
    [
        (host("h"), Request(9000), "it has 8 CPUs free of 9"),
        (host("h"), Request(memory=17 * GIB), "it has 16GiB free of 17GiB"),
        (host("h"), Request(memory=17 * GIB, huge=True), "it has 16GiB free as huge pages of 17GiB"),
        (host("h"), Request(gpus=1), "it has no 1 whole GPUs free, only none"),
        (host("h", free(gpus=(200, 400))), Request(gpus=1, gpu_share=500), "it has no 0.5 of a GPU free, only 0.2, 0.4"),
        (host("h", free(gpus=(1000,), model="T4")), Request(gpus=1, models=("A10", "H100")), "its GPUs are T4, and not A10 or H100"),
        (host("h"), Request(labels=(("zone", "a"),)), "its label zone is not there, and not a"),
        (host("h"), Request(near=("db",)), "no db runs there"),
        (host("h", carries={"db": 1}), Request(apart=("db",)), "db runs there, and is to be apart"),
        (host("h", closed="drained"), Request(), "drained"),
        (host("h", free(gpus=(1000,), model="T4")), Request(gpus=1, models=("T4",)), ""),
    ],
)
def test_why_a_host_cannot_have_it(of: Host, request_: Request, why: str) -> None:
    assert lacking(of, request_) == why
    chosen = Fleet([of], POLICIES["spread"](Mix([request_], [of]))).choose(request_)
    assert (chosen is None) == bool(why)


def test_the_nearest_miss_is_told_first() -> None:
    hosts = [host("small", free(1000)), host("closed", closed="drained"), host("large", free(4000))]
    assert [name for name, _why in nearest_miss(hosts, Request(6000))] == ["large", "small", "closed"]


def test_one_of_a_group_goes_where_fewest_of_it_are() -> None:
    hosts = [host("a1", labels={"rack": "a"}), host("a2", labels={"rack": "a"}), host("b1", free(4000, 8), labels={"rack": "b"})]
    request = Request(1000, GIB, group="chat", spread="rack")
    fleet = Fleet(hosts, POLICIES["spread"](Mix([request], hosts)))
    taken = []
    for _number in range(5):
        choice = fleet.choose(request)
        assert choice is not None
        fleet.take(choice, request)
        taken.append(choice.host)
    assert taken == ["a1", "b1", "a2", "b1", "a1"]
    assert {each.name: each.carries.get("chat", 0) for each in fleet.hosts()} == {"a1": 2, "a2": 1, "b1": 2}


@pytest.mark.parametrize(("policy", "chosen"), [("spread", "empty"), ("pack", "full"), ("best_fit", "full")])
def test_policies_differ_in_what_they_leave(policy: str, chosen: str) -> None:
    hosts, request = [host("empty"), host("full", free(2000, 4))], Request(1000, GIB)
    found = Fleet(hosts, POLICIES[policy](Mix([request], hosts))).choose(request)
    assert found is not None
    assert found.host == chosen


def test_what_is_left_stays_usable_for_what_usually_comes() -> None:
    usual = [Request(2000, GIB, 1, 500)] * 8 + [Request(1000, GIB, 1, 300)] + [Request(4000, GIB)]
    hosts = [host("whole", free(gpus=(1000,))), host("rest", free(gpus=(400,)))]
    mix = Mix(usual, hosts)
    small = Request(1000, GIB, 1, 300)
    for policy in ("usable", "fragmentation"):
        found = Fleet(hosts, POLICIES[policy](mix)).choose(small)
        assert found is not None
        assert found.host == "rest", policy  # which is too little for most, and enough for this one
    assert mix.fragmented(free(gpus=(400,))) > 300 > mix.fragmented(free(gpus=(1000,)))
    assert mix.stranded(free(1000, gpus=(1000,))) > 700
    assert mix.stranded(free(8000, gpus=(1000,))) == 0


def test_gpus_that_others_ask_for_by_name_are_dear() -> None:
    hosts = [host("rare", free(gpus=(1000,), model="A10")), *(host(f"common{number}", free(gpus=(1000,), model="T4")) for number in range(3))]
    usual = [Request(1000, GIB, 1, models=("A10",)), *[Request(1000, GIB, 1)] * 3]
    mix = Mix(usual, hosts)
    assert mix.price("A10") == 1
    assert mix.price("T4") == 0
    found = Fleet(hosts, POLICIES["usable"](mix)).choose(Request(1000, GIB, 1))
    assert found is not None
    assert found.host == "common0"


def test_what_is_alike_is_looked_at_once_and_the_same_seed_chooses_the_same() -> None:
    looked: list[Free] = []

    def score(_before: Free, after: Free, _request: Request) -> float:
        looked.append(after)
        return 0.0

    hosts = [host(f"h{number}") for number in range(1000)]
    taken = []
    for _again in range(2):
        fleet = Fleet(hosts, score, random.Random(7).choice)
        for _number in range(20):
            choice = fleet.choose(Request(1000, GIB))
            assert choice is not None
            fleet.take(choice, Request(1000, GIB))
            taken.append(choice.host)
    assert taken[:20] == taken[20:]
    assert len(set(taken)) > 10
    assert len(looked) < 10


def test_all_of_it_on_one_numa_node_is_more_than_enough_on_the_host() -> None:
    halves = free(gpus=(1000, 1000))._replace(cells=((3000, 8 * GIB, 2), (5000, 4 * GIB, 0)))
    (left,) = remaining(halves, Request(4000, GIB, numa=True))
    assert left.cells == ((1000, 3 * GIB, 0), (3000, 8 * GIB, 2))
    assert len(remaining(halves, Request(2000, GIB, numa=True))) == 2
    (with_gpu,) = remaining(halves, Request(2000, GIB, 1, numa=True))
    assert (with_gpu.cells, with_gpu.gpus) == (((1000, 7 * GIB, 1), (5000, 4 * GIB, 0)), (0, 1000))
    assert lacking(host("h", halves), Request(6000, GIB)) == ""
    said = "none of its NUMA nodes has all of it, only 3 CPUs, 8GiB and 2 GPUs, 5 CPUs, 4GiB and 0 GPUs"
    assert lacking(host("h", halves), Request(6000, GIB, numa=True)) == said
    assert lacking(host("h"), Request(6000, GIB, numa=True)) == ""  # which has but one


def test_another_host_than_one() -> None:
    request = Request(1000, GIB)
    fleet = Fleet([host("a"), host("b"), host("c", free(4000, 8))], POLICIES["spread"](Mix([request], [host("a")])))
    assert [choice.host for but in ("", "a") for choice in [fleet.choose(request, but=but)] if choice] == ["a", "b"]
    alone = Fleet([host("a")], POLICIES["spread"](Mix([request], [host("a")])))
    assert alone.choose(request, but="a") is None
