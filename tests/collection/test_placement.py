# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.action.place import _node as chosen
from ansible_collections.lepton.cloud.plugins.module_utils._fleet import Request
from ansible_collections.lepton.cloud.plugins.module_utils._placement import PlacementError, choose, fit, locate, place

GIB = 1 << 30


def room(vcpus: int, gigabytes: int, *nodes: str) -> dict[str, object]:
    return {"capacity": {"vcpus_free": vcpus, "memory_free": gigabytes * GIB}, "nodes": [sized(name) for name in nodes]}


def sized(name: str, vcpus: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "running", "vcpus": vcpus, "memory": "1GiB", **more}


def put(*, host: str | None, answers: dict[str, dict[str, object]], policy: str = "spread", **request: Any) -> tuple[str, str]:
    labels = {"a": {"rack": "1"}, "b": {"rack": "2"}}
    return place("web-1", Request(cpus=2000, memory=GIB, **request), host=host, answers=answers, labels=labels, policy=policy)


def has(*nodes: str) -> dict[str, object]:
    return {"nodes": [{"name": name} for name in nodes]}


def test_the_one_host_that_has_it_is_found() -> None:
    assert locate("web-1", {"a": has(), "b": has("web-1"), "c": {"msg": "no route"}}) == "b"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"a": has(), "b": has()}, "no host has a node web-1 .asked a, b"),
        ({"a": has(), "b": {"msg": "no route"}}, "b did not answer and may have it: no route"),
        ({"a": has("web-1"), "b": has("web-1")}, "several hosts have a node web-1: a, b"),
        ({}, "asked none"),
    ],
)
def test_none_and_several_are_errors(answers: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        locate("web-1", answers)


def test_the_host_with_most_free_memory_is_chosen_and_the_reason_given() -> None:
    host, why = put(host=None, answers={"a": room(8, 4), "b": room(8, 16), "c": room(1, 64)})
    assert host == "b"
    assert why == "the best of 2 hosts that can have it, by policy spread: 6 vCPUs and 15GiB are left there then"
    assert put(host=None, answers={"a": room(8, 4), "b": room(8, 16)}, policy="best_fit")[0] == "a"


def test_labels_of_hosts_and_of_what_runs_there_are_heeded() -> None:
    answers = {"a": {**room(8, 64), "nodes": [sized("db-1", labels={"app": "db"})]}, "b": room(8, 16)}
    assert put(host=None, answers=answers, apart=("app=db",))[0] == "b"
    assert put(host=None, answers=answers, near=("app=db",))[0] == "a"
    assert put(host=None, answers=answers, labels=(("rack", "2"),))[0] == "b"
    with pytest.raises(PlacementError, match="a: app=db runs there, and is to be apart; b: its label rack is 2, and not 1"):
        put(host=None, answers=answers, apart=("app=db",), labels=(("rack", "1"),))
    with pytest.raises(PlacementError, match="b: drained by ada: new memory"):
        put(host=None, answers={"b": {**room(8, 16), "closed": "drained by ada: new memory"}})


def test_a_node_that_exists_stays_where_it_is() -> None:
    assert put(host=None, answers={"a": room(8, 64), "b": room(0, 0, "web-1")})[0] == "b"


@pytest.mark.parametrize(
    ("host", "answers", "message"),
    [
        (None, {"a": room(1, 64), "b": room(64, 0)}, "no host can have a node with 2 vCPUs and 1GiB: b: it has 0B free of 1GiB; a: it has 1 CPUs free of 2"),
        ("x", {"a": room(8, 8)}, "there is no host x: expected one of a"),
        ("a", {"a": room(8, 8), "b": room(8, 8, "web-1")}, "exists already on b"),
        (None, {"a": {}}, "a node web-1 may exist already; a did not answer"),
        (None, {"a": room(8, 8), "b": {"msg": "down"}}, "b did not answer and may have it: down"),
        ("b", {"a": room(8, 8), "b": {}}, "no host answered"),
    ],
)
def test_no_room_and_wrong_hosts_are_said(host: str | None, answers: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        put(host=host, answers=answers)


def test_what_may_be_there_already_goes_where_it_is_or_where_it_is_told_to_go() -> None:
    here, none = {"deployments": [{"name": "chat"}]}, {"deployments": []}
    assert choose("chat", {"a": none, "b": here}, "deployment", None, "clusters") == "b"
    assert choose("chat", {"a": none}, "deployment", None, "clusters") == "a"
    assert choose("chat", {"a": none, "b": here}, "deployment", "a", "clusters") == "a"  # one on each is what several clusters are for
    assert locate("chat", {"a": here, "b": here}, "deployment", "b") == "b"
    for answers, host, words in (
        ({"a": none, "b": none}, None, "name one of a, b"),
        ({"a": here, "b": here}, None, "several hosts have a deployment chat"),
        ({"a": none, "b": {"msg": "no route"}}, None, "b did not answer and may have it: no route"),
        ({"a": none}, "c", "there is no host c: expected one of a"),
    ):
        with pytest.raises(PlacementError, match=words):
            choose("chat", answers, "deployment", host, "clusters")
    with pytest.raises(PlacementError, match="b has no deployment chat"):
        locate("chat", {"a": here, "b": none}, "deployment", "b")


def test_hosts_tell_of_the_gpus_that_are_free() -> None:
    free, held = {"why": ""}, {"why": "it is of node web-9"}
    hosts = {"a": {**room(8, 8), "gpus": [free, held]}, "b": {**room(8, 8), "gpus": [free, free]}}
    assert put(host=None, answers=hosts, gpus=2)[0] == "b"
    with pytest.raises(PlacementError, match="no host can have a node with 2 vCPUs and 1GiB and 3 GPUs: b: it has no 3 whole GPUs free"):
        put(host=None, answers=hosts, gpus=3)


def test_several_at_once_go_one_after_the_other_and_what_is_short_is_said() -> None:
    answers = {"a": room(4, 8), "b": room(4, 3), "c": {"msg": "no route"}}
    labels = {"a": {"rack": "1"}, "b": {"rack": "2"}}
    one = Request(cpus=1000, memory=GIB)
    assert fit(one, 3, answers=answers, labels=labels).hosts == ("a", "b", "a")
    found = fit(one, 1000, answers=answers, labels=labels)
    assert (found.hosts.count("a"), found.hosts.count("b")) == (4, 3)
    assert found.lacking == (("b", "it has 0B free of 1GiB"), ("a", "it has 0 CPUs free of 1"), ("c", "no route"))
    spread = Request(cpus=1000, memory=GIB, group="these", spread="rack")
    assert fit(spread, 4, answers=answers, labels=labels).hosts == ("a", "b", "a", "b")
    assert fit(Request(cpus=1000, memory=GIB, group="these", apart=("these",)), 9, answers=answers, labels=labels).hosts == ("a", "b")


def test_where_one_node_could_make_room_by_moving_that_is_said() -> None:
    answers: dict[str, dict[str, Any]] = {
        "a": {**room(3, 8), "nodes": [sized("big", 5), sized("small", 1, config={"vcpus": 1, "memory": "1GiB"})]},
        "b": {**room(1, 8), "nodes": []},
    }

    def why(**changes: list[dict[str, Any]]) -> str:
        told = {**answers, **{host: {**answers[host], "nodes": nodes} for host, nodes in changes.items()}}
        with pytest.raises(PlacementError) as refused:
            place("web-1", Request(cpus=4000, memory=GIB), host=None, answers=told, labels={})
        return str(refused.value)

    assert why().endswith("a: it has 3 CPUs free of 4; b: it has 1 CPUs free of 4. a has room once small, which is running, has moved to b: node move small b")
    assert why(a=[sized("small", 1, devices=["nvidia-gpu:1"])]).endswith("of 4")
    assert why(a=[sized("small", 1, labels={"cloud.lepton.service": "chat"})]).endswith("of 4")
    told = {**answers, "a": {**answers["a"], "nodes": [sized("small", labels={"app": "db"})]}}
    with pytest.raises(PlacementError, match=r"b: no app=db runs there$"):  # by moving it away nothing would come near it
        place("web-1", Request(cpus=4000, memory=GIB, near=("app=db",)), host=None, answers=told, labels={})
    assert why(a=[sized("big", 5)]).endswith("of 4")


def test_huge_pages_are_a_room_of_their_own() -> None:
    answers: dict[str, dict[str, Any]] = {"a": {**room(8, 64), "huge_pages": {"memory": 0, "memory_free": 0}}}
    answers["b"] = {**room(8, 1), "huge_pages": {"memory": 8 * GIB, "memory_free": 8 * GIB}}
    assert put(host=None, answers=answers)[0] == "a"
    assert put(host=None, answers=answers, huge=True)[0] == "b"
    with pytest.raises(PlacementError, match="a: it has 0B free as huge pages of 1GiB"):
        put(host="a", answers=answers, huge=True)


@pytest.mark.parametrize("host", ["a", "b"])
def test_what_only_takes_a_name_needs_no_size(host: str) -> None:
    """As node restore, rename and adopt ask: whether another host has a node of that name."""
    answers = {"a": room(0, 0), "b": {"msg": "no route"}}
    arguments = {"node": "web-1", "vcpus": 0, "host": host}
    if host == "a":
        assert chosen(arguments, answers, {})["host"] == "a"
        with pytest.raises(PlacementError, match="exists already on c"):
            chosen(arguments, {**answers, "c": room(8, 8, "web-1")}, {})
    else:
        with pytest.raises(PlacementError, match="no host answered"):
            chosen(arguments, answers, {})
