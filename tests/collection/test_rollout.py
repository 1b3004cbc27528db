# SPDX-License-Identifier: Apache-2.0
"""Plans of services, and what comes of steps that fail. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._rollout import LONGEST_FETCH, weights
from ansible_collections.lepton.cloud.plugins.module_utils._service import read_service, revision
from ansible_collections.lepton.cloud.plugins.module_utils._steps import NOTHING, StepError, check_plan, due, make_plan, noted

GIB = 1 << 30
DECLARED = {"image": "model:1", "port": 8080, "listen_port": 8000, "max_replicas": 5, "memory": "1GiB", "cpus": 1.0}
SERVICE = read_service("chat", DECLARED)


def container(number: int, *, state: str = "running", declared: dict[str, Any] | None = None, image_id: str = "sha256:1", **more: Any) -> dict[str, Any]:
    return {
        "name": f"chat-{number}", "state": state, "image_id": image_id, "owned": True, "ports": [f"127.0.0.1:{20000 + number}:8080"], "cpus": 1.0,
        "memory": "1GiB", "labels": {"cloud.lepton.service": "chat", "cloud.lepton.revision": revision(read_service("chat", declared or DECLARED))}, **more,
    }  # fmt: skip


def engine(*containers: dict[str, Any], memory: int = 16, address: str = "127.0.0.1") -> dict[str, Any]:
    return {
        "containers": list(containers), "room": {"cpus_free": 8.0, "memory_free": memory * GIB}, "ports_free": [20100, 20101, 20102, 20103, 20104],
        "address": address, "container_images": {"model:1": "sha256:1", "model:2": "sha256:2"},
    }  # fmt: skip


def server(number: int, status: str = "UP", **more: Any) -> dict[str, Any]:
    return {"name": f"chat-{number}", "state": "ready", "weight": 100, "status": status, **more}


def table(*servers: dict[str, Any], replicas: int = 2, version: int = 3, declared: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"services": [{"name": "chat", "replicas": replicas, "version": version, "declaration": declared or DECLARED, "servers": list(servers)}]}


EMPTY: dict[str, Any] = {"services": []}
SILENT = {"msg": "no route to host"}


def steps(operation: str, engines: dict[str, Any], balancers: dict[str, Any], declared: dict[str, Any] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    answers = {"container_hosts": engines, "load_balancers": balancers}
    given = {"service": "chat", "image": None, "replicas": None, **arguments}
    plan = make_plan(f"service.{operation}", given, answers, {"chat": DECLARED} if declared is None else declared)
    return check_plan(plan)


def forward(planned: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(step["host"], step["title"]) for step in planned if not step.get("undo")]


TWO = {"h1": engine(container(1), container(2))}
LB = {"lb": table(server(1), server(2))}


def test_create_keeps_the_wish_first_and_starts_all_before_it_waits_for_any() -> None:
    planned = steps("create", {"h1": engine(), "h2": engine(memory=32)}, {"lb": EMPTY}, replicas=3)
    assert forward(planned) == [
        ("lb", "keep that chat is wanted so"), ("h2", "start chat-1 from model:1"), ("h1", "start chat-2 from model:1"), ("h2", "start chat-3 from model:1"),
        ("h2", "wait until chat-1 is healthy"), ("lb", "send requests to chat-1"), ("h1", "wait until chat-2 is healthy"), ("lb", "send requests to chat-2"),
        ("h2", "wait until chat-3 is healthy"), ("lb", "send requests to chat-3"),
    ]  # fmt: skip
    assert planned[1]["args"]["ports"] == ["127.0.0.1:20100:8080"]
    assert planned[3]["args"]["ports"] == ["127.0.0.1:20101:8080"]
    assert planned[-1]["args"] == {"name": "chat", "state": "absent"}


def test_a_replica_on_another_machine_is_published_where_the_balancer_reaches_it() -> None:
    planned = steps("create", {"h1": engine(address="10.0.0.7")}, {"lb": EMPTY})
    assert planned[1]["args"]["ports"] == ["10.0.0.7:20100:8080"]
    assert next(step for step in planned if step["title"] == "send requests to chat-1")["args"]["address"] == "10.0.0.7"


@pytest.mark.parametrize(
    ("replicas", "kept", "titles"),
    [
        ("3", 3, ["start chat-3 from model:1", "wait until chat-3 is healthy", "send requests to chat-3"]),
        ("+2", 4, ["start chat-3 from model:1", "start chat-4 from model:1", "wait until chat-3 is healthy", "send requests to chat-3"]),
        ("1", 1, ["drain chat-2 and take it out", "remove chat-2"]),
        ("-1", 1, ["drain chat-2 and take it out", "remove chat-2"]),
    ],
)
def test_scale(replicas: str, kept: int, titles: list[str]) -> None:
    planned = steps("scale", TWO, LB, replicas=replicas)
    assert planned[0]["args"] == {"name": "chat", "version": 4, "replicas": kept}
    assert [title for _host, title in forward(planned)][1 : len(titles) + 1] == titles
    assert not steps("scale", TWO, LB, replicas="2")


def test_a_service_that_may_have_no_replica_begins_with_one_and_can_lose_it() -> None:
    sleepy = {**DECLARED, "min_replicas": 0}
    assert steps("create", {"h1": engine()}, {"lb": EMPTY}, {"chat": sleepy})[0]["args"]["replicas"] == 1
    one = {"h1": engine(container(1, declared=sleepy))}
    lb = {"lb": table(server(1), replicas=1, declared=sleepy)}
    assert forward(steps("scale", one, lb, replicas="0")) == [
        ("lb", "keep that chat is wanted so"), ("lb", "drain chat-1 and take it out"), ("h1", "remove chat-1"),
    ]  # fmt: skip
    none = {"lb": table(replicas=0, declared=sleepy)}
    assert not steps("reconcile", {"h1": engine()}, none)
    assert [title for _host, title in forward(steps("scale", {"h1": engine()}, none, replicas="1"))][1] == "start chat-1 from model:1"


def test_resize_changes_every_replica_where_it_serves_and_replaces_none() -> None:
    stale = {"h1": engine(container(1), container(2, image_id="sha256:0"))}
    planned = steps("resize", stale, LB, cpus=2.0)
    assert [(title, step["before"], step["after"]) for (_host, title), step in zip(forward(planned), planned, strict=False)] == [
        ("resize chat-1", {"cpus": 1.0}, {"cpus": 2.0}),
        ("resize chat-2", {"cpus": 1.0}, {"cpus": 2.0}),
        ("keep that chat is wanted so", {"cpus": 1.0}, {"cpus": 2.0}),
    ]
    assert [step["title"] for step in planned if step.get("undo")] == ["keep that chat is wanted as before", "resize chat-1 back", "resize chat-2 back"]
    assert not steps("resize", TWO, LB, cpus=1.0)
    nodes = {"h1": hypervisor(node(1, max_vcpus=4), node(2, max_vcpus=4))}
    assert [step["args"]["vcpus"] for step in node_steps("resize", nodes, 1, 2, replicas=2, cpus=4) if step["title"] in ("resize edge-1", "resize edge-2")] == [
        4,
        4,
    ]
    for size, told in (
        ({"cpus": 5}, "edge-1 can be given 4 vCPUs while it runs, and not 5"),
        ({"cpus": 1.5}, "a whole number of cpus"),
        ({"memory": "8GiB"}, "edge-1 can be given 4294967296 bytes of memory while it runs"),
    ):
        limited = {"h1": hypervisor(*(node(number, max_vcpus=4, max_memory="4GiB") for number in (1, 2)))}
        with pytest.raises(StepError, match=told):
            node_steps("resize", limited, 1, 2, replicas=2, **size)
    large = {"h1": hypervisor(node(1, vcpus=4, max_vcpus=4))}
    with pytest.raises(StepError, match="edge-1 has 4 vCPUs, and a node gives none back while it runs"):
        node_steps("resize", large, 1, cpus=2)
    with pytest.raises(StepError, match="h1 has no room for replicas of that size: they need 126 CPUs and 0B more, and there is"):
        steps("resize", TWO, LB, cpus=64.0)


def test_the_replica_that_does_not_serve_goes_first_then_the_fullest_host() -> None:
    down = {"lb": table(server(1, "DOWN"), server(2))}
    assert forward(steps("scale", TWO, down, replicas="1"))[1][1] == "drain chat-1 and take it out"
    spread = {"h1": engine(container(1), container(2)), "h2": engine(container(3))}
    assert forward(steps("scale", spread, {"lb": table(server(1), server(2), server(3), replicas=3)}, replicas="2"))[1][1] == "drain chat-2 and take it out"


@pytest.mark.parametrize(
    ("operation", "engines", "balancers", "arguments", "reason"),
    [
        ("scale", TWO, LB, {"replicas": "6"}, "may have 1 to 5 replicas, not 6"),
        ("scale", TWO, LB, {"replicas": "-2"}, "may have 1 to 5 replicas, not 0"),
        ("scale", TWO, LB, {"replicas": "many"}, "expected a number such as 4"),
        ("scale", TWO, {"lb": EMPTY}, {"replicas": "1"}, "there is no service chat"),
        ("scale", {"h1": engine(container(1), container(2), memory=0)}, LB, {"replicas": "3"}, "no host has room for a replica with 1 CPUs and 1GiB"),
        ("scale", TWO, {"lb": SILENT}, {"replicas": "3"}, "no load balancer answers"),
        ("scale", TWO, {**LB, "lb2": SILENT}, {"replicas": "1"}, "chat is not scaled down: lb2 did not answer: no route to host"),
        ("scale", TWO, {}, {"replicas": "1"}, "no host in the group load_balancers"),
        ("create", TWO, {"lb": EMPTY}, {}, "replicas of a service chat are there already: chat-1, chat-2"),
        ("create", {"h1": engine()}, LB, {}, "there is a service chat already"),
        ("create", {"h1": engine()}, {"lb": EMPTY}, {"replicas": 9}, "may have 1 to 5 replicas, not 9"),
        ("update", TWO, LB, {"image": "-v"}, "is not an image"),
        ("update", TWO, LB, {"declared": {"chat": {**DECLARED, "health_path": "/other"}}}, "have the new image answer there too"),
        ("update", {**TWO, "h2": SILENT}, LB, {"image": "model:2"}, "chat is not updated: h2 did not answer"),
        ("delete", TWO, {**LB, "lb2": SILENT}, {}, "chat is not deleted: lb2 did not answer"),
        ("create", {"h1": engine()}, {"lb": EMPTY}, {"declared": {}}, "the inventory declares no service chat"),
        (
            "create",
            {"h1": engine()},
            {"lb": {"services": [{**table()["services"][0], "name": "other"}]}},
            {},
            "port 8000 of lb is another service's already",
        ),
    ],
)
def test_what_cannot_be_planned(operation: str, engines: Any, balancers: Any, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(StepError, match=reason):
        steps(operation, engines, balancers, **arguments)


def test_a_dead_replica_is_replaced_and_one_that_may_live_is_not() -> None:
    dead = {"h1": engine(container(1), container(2, state="exited"))}
    assert forward(steps("reconcile", dead, LB)) == [
        ("lb", "drain chat-2 and take it out"), ("h1", "remove chat-2"), ("h1", "start chat-3 from model:1"),
        ("h1", "wait until chat-3 is healthy"), ("lb", "send requests to chat-3"),
    ]  # fmt: skip
    assert not steps("reconcile", TWO, LB)
    # Its container is gone, but a host that may have it does not answer: it may serve, so nothing is started.
    assert not steps("reconcile", {"h1": engine(container(1)), "h2": SILENT}, LB)
    # Nobody knows its container, but a load balancer finds it up: it lives somewhere.
    assert not steps("reconcile", {"h1": engine(container(1)), "h2": engine()}, LB)
    gone = {"lb": table(server(1), server(2, "DOWN"))}
    assert [title for _host, title in forward(steps("reconcile", {"h1": engine(container(1)), "h2": engine()}, gone))][:2] == [
        "drain chat-2 and take it out", "start chat-3 from model:1",
    ]  # fmt: skip


def test_a_balancer_that_was_away_is_brought_up_to_date() -> None:
    balancers = {"lb1": table(server(1), server(2)), "lb2": table(server(1), replicas=1, version=2)}
    planned = steps("reconcile", TWO, balancers)
    assert forward(planned) == [("lb2", "bring lb2 up to date with what is wanted"), ("h1", "wait until chat-2 is healthy"), ("lb2", "send requests to chat-2")]
    assert planned[0]["args"]["version"] == 3


def test_update_has_the_new_one_serve_before_the_old_one_goes_and_keeps_the_old_one_until_all_are_new() -> None:
    planned = steps("update", TWO, LB, image="model:2")
    assert [title for _host, title in forward(planned)] == [
        "start chat-3 from model:2", "wait until chat-3 is healthy", "send requests to chat-3", "drain chat-1 and take it out",
        "stop chat-1, and keep it until all are new",
        "start chat-4 from model:2", "wait until chat-4 is healthy", "send requests to chat-4", "drain chat-2 and take it out",
        "stop chat-2, and keep it until all are new",
        "keep that chat is wanted so", "remove chat-1", "remove chat-2",
    ]  # fmt: skip
    assert not steps("update", TWO, LB)


def test_update_changes_limits_in_place_and_follows_an_image_of_the_same_name() -> None:
    declared = {"chat": {**DECLARED, "memory": "2GiB"}}
    planned = steps("update", TWO, LB, declared)
    assert [title for _host, title in forward(planned)] == ["resize chat-1", "resize chat-2", "keep that chat is wanted so"]
    rebuilt = {"h1": engine(container(1, image_id="sha256:0"), container(2))}
    assert forward(steps("update", rebuilt, LB))[0][1] == "start chat-3 from model:1"


def test_balance_weighs_by_measured_time_and_spreads_replicas() -> None:
    assert weights({"a": 10, "b": 19, "c": 0, "d": 1000}) == {"a": 100, "b": 50, "c": 100, "d": 10}
    assert weights({"a": 0, "b": 0}) == {"a": 100, "b": 100}
    measured = {"lb": table(server(1, response_ms=10), server(2, response_ms=20))}
    (step,) = steps("balance", TWO, measured)
    assert (step["title"], step["args"]["weight"], step["before"], step["after"]) == ("weigh chat-2 by what it gets done", 50, {"weight": 100}, {"weight": 50})
    planned = steps("balance", {**TWO, "h2": engine()}, LB)
    assert forward(planned)[0] == ("h2", "start chat-3 from model:1")
    assert forward(planned)[-1] == ("h1", "remove chat-2")


def run(planned: Sequence[dict[str, Any]], *failing: str) -> tuple[list[str], dict[str, Any]]:
    """Return what is done of a plan, in the playbook's order, when the steps with these titles fail."""
    outcomes: dict[str, Any] = NOTHING
    done = []
    for undo in (False, True):
        for step in planned:
            if bool(step.get("undo")) is undo and due(step, outcomes):
                done.append(step["title"])
                outcomes = noted(step, outcomes, "it broke" if step["title"] in failing and not undo else "")
    return done, outcomes


def test_a_replica_that_fails_takes_back_only_itself() -> None:
    done, outcomes = run(steps("scale", TWO, LB, replicas="4"), "wait until chat-3 is healthy")
    assert done[-4:] == ["wait until chat-4 is healthy", "send requests to chat-4", "drain chat-3 and take it out", "remove chat-3"]
    assert outcomes["trouble"] == ["h1: wait until chat-3 is healthy: it broke; what was begun of it was taken back, and nothing else"]


def test_a_drain_that_does_not_end_leaves_its_replica_serving() -> None:
    done, _outcomes = run(steps("scale", TWO, LB, replicas="1"), "drain chat-2 and take it out")
    assert done[-2:] == ["start chat-2 again", "send requests to chat-2 again"]
    assert "remove chat-2" not in done


def test_an_update_that_fails_late_is_taken_back_as_a_whole() -> None:
    done, outcomes = run(steps("update", TWO, LB, image="model:2"), "wait until chat-4 is healthy")
    assert done[5:] == [
        "start chat-4 from model:2", "wait until chat-4 is healthy",
        "start chat-2 again", "send requests to chat-2 again", "drain chat-4 and take it out", "remove chat-4",
        "start chat-1 again", "send requests to chat-1 again", "drain chat-3 and take it out", "remove chat-3",
    ]  # fmt: skip
    assert outcomes["trouble"] == ["h1: wait until chat-4 is healthy: it broke; all of it was taken back"]


def test_a_creation_that_fails_leaves_nothing() -> None:
    done, _outcomes = run(steps("create", {"h1": engine()}, {"lb": EMPTY}, replicas=2), "wait until chat-1 is healthy")
    assert done[-5:] == [
        "drain chat-1 and take it out", "remove chat-1", "drain chat-2 and take it out", "remove chat-2", "keep that chat is wanted as before",
    ]  # fmt: skip


def test_what_is_wanted_is_kept_only_when_all_are_new() -> None:
    done, _outcomes = run(steps("update", TWO, LB, image="model:2"), "keep that chat is wanted so")
    assert "remove chat-1" not in done
    assert done.count("send requests to chat-1 again") == 1


def test_what_cannot_be_removed_at_the_end_is_no_reason_to_go_back() -> None:
    done, outcomes = run(steps("update", TWO, LB, image="model:2"), "remove chat-1")
    assert not [title for title in done if title.endswith("again")]
    assert len(outcomes["trouble"]) == 1


def test_a_step_calls_only_modules_that_are_steps() -> None:
    (step,) = steps("balance", TWO, {"lb": table(server(1, response_ms=10), server(2, response_ms=20))})
    from ansible_collections.lepton.cloud.plugins.module_utils._steps import digest

    for module in ("ansible.builtin.command", "lepton.cloud.operation", "lepton.cloud."):
        forged = [{**step, "module": module}]
        with pytest.raises(StepError, match="a step may only call"):
            check_plan({"steps": forged, "digest": digest(forged)})


def test_what_could_not_be_taken_out_is_not_removed() -> None:
    planned = steps("update", TWO, LB, image="model:2")
    outcomes: dict[str, Any] = NOTHING
    for step in planned:
        if not step.get("undo") and due(step, outcomes):
            outcomes = noted(step, outcomes, "it broke" if step["title"] == "wait until chat-4 is healthy" else "")
    done = []
    for step in planned:
        if step.get("undo") and due(step, outcomes):
            done.append(step["title"])
            outcomes = noted(step, outcomes, "sessions do not end" if step["title"] == "drain chat-3 and take it out" else "")
    assert "remove chat-3" not in done
    assert "remove chat-4" in done
    assert "chat-3 is left as it is: sessions do not end" in outcomes["trouble"][-1]


def test_a_replica_that_hangs_is_replaced_before_it_is_removed() -> None:
    hangs = {"lb": table(server(1), server(2, "DOWN"))}
    titles = [title for _host, title in forward(steps("reconcile", TWO, hangs))]
    assert titles[:3] == ["start chat-3 from model:1", "wait until chat-3 is healthy", "send requests to chat-3"]
    assert titles[3:] == ["drain chat-2 and take it out", "remove chat-2"]


def test_a_replica_that_was_left_draining_takes_requests_again() -> None:
    left = {"lb": table(server(1), server(2, "DRAIN", state="drain"))}
    (step,) = steps("reconcile", TWO, left)
    assert (step["title"], step["before"], step["after"]) == ("send requests to chat-2 again", {"state": "drain"}, {"state": "ready"})


def test_what_a_silent_balancer_may_still_send_to_keeps_its_port() -> None:
    dead = {"h1": engine(container(1), container(2, state="exited"))}
    planned = steps("reconcile", dead, {**LB, "lb2": SILENT})
    assert [title for _host, title in forward(planned)] == ["start chat-3 from model:1", "wait until chat-3 is healthy", "send requests to chat-3"]


def test_one_name_on_two_hosts_is_nothing_to_guess_about() -> None:
    with pytest.raises(StepError, match="h1 and h2 both have a replica chat-1"):
        steps("reconcile", {"h1": engine(container(1)), "h2": engine(container(1))}, LB)


def test_balance_moves_nothing_where_there_is_no_room_and_changes_no_weight_for_a_little() -> None:
    measured = {"lb": table(server(1, response_ms=10), server(2, response_ms=11))}
    assert not steps("balance", {**TWO, "h2": engine(memory=0)}, measured)


NEW = {**DECLARED, "image": "model:2"}


def mixed(*ages: int) -> dict[str, Any]:
    """One replica as declared and two of another declaration: what an update leaves that was cut short."""
    declarations = [DECLARED, NEW, NEW]
    return {
        "h1": engine(
            *(container(number + 1, declared=declared, age_seconds=age) for number, (declared, age) in enumerate(zip(declarations, ages, strict=True)))
        )
    }


def test_what_an_update_left_that_was_cut_short_goes_back_to_what_is_wanted() -> None:
    three = {"lb": table(server(1), server(2), server(3), replicas=3)}
    planned = steps("reconcile", mixed(9000, 9000, 9000), three)
    titles = [title for _host, title in forward(planned)]
    assert titles == [
        "start chat-4 from model:1", "wait until chat-4 is healthy", "send requests to chat-4", "drain chat-2 and take it out", "remove chat-2",
        "start chat-5 from model:1", "wait until chat-5 is healthy", "send requests to chat-5", "drain chat-3 and take it out", "remove chat-3",
    ]  # fmt: skip
    # One more than wanted: the other one goes, and none is started for it.
    two = {"lb": table(server(1), server(2), server(3), replicas=2)}
    assert [title for _host, title in forward(steps("reconcile", mixed(9000, 9000, 9000), two))][:2] == ["drain chat-3 and take it out", "remove chat-3"]


def test_a_change_that_may_be_going_on_is_left_alone() -> None:
    three = {"lb": table(server(1), server(2), server(3), replicas=3)}
    longest = LONGEST_FETCH + SERVICE.start_seconds + SERVICE.watch_seconds + SERVICE.drain_seconds + SERVICE.stop_seconds
    assert not steps("reconcile", mixed(9000, 9000, longest - 1), three)
    assert steps("reconcile", mixed(9000, 9000, longest), three)
    more = {"h1": engine(container(1, age_seconds=9000), container(2, age_seconds=3))}
    assert not steps("reconcile", more, {"lb": table(server(1), server(2), replicas=1)})
    # One that died is replaced however young the others are.
    assert steps("reconcile", {"h1": engine(container(1, age_seconds=3), container(2, state="exited"))}, LB)


def test_of_nodes_nothing_is_assumed_while_they_are_of_two_declarations() -> None:
    """How long a node runs is not known, and one that was stopped in an update is what the update goes back to."""
    newer = {**EDGE, "image": "guest-2"}
    assert not node_steps("reconcile", {"h1": hypervisor(node(1, state="stopped"), node(2), node(3, declared=newer))}, 2, 3, replicas=2)


def test_what_a_node_gets_at_its_next_start_is_not_asked_for_again() -> None:
    waiting = {"h1": hypervisor({**node(1), "vcpus": 2, "config": {"vcpus": 1, "memory": "128MiB"}})}
    assert not node_steps("update", waiting, 1)


def test_all_of_another_declaration_are_no_accident() -> None:
    both = {"h1": engine(*(container(number, declared=NEW, age_seconds=9000) for number in (1, 2)))}
    assert not steps("reconcile", both, LB)


def test_an_update_again_replaces_what_is_as_declared() -> None:
    assert not steps("update", TWO, LB)
    assert [title for _host, title in forward(steps("update", TWO, LB, again=True)) if title.startswith("start")] == [
        "start chat-3 from model:1",
        "start chat-4 from model:1",
    ]


# Nodes in place of containers

EDGE = {"backend": "node", "image": "guest", "port": 80, "listen_port": 8100, "cpus": 1, "memory": "128MiB", "max_replicas": 4, "health_path": "/"}


def node(number: int, *, state: str = "running", declared: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    labels = {"cloud.lepton.service": "edge", "cloud.lepton.revision": revision(read_service("edge", declared or EDGE))}
    return {
        "name": f"edge-{number}", "state": state, "vcpus": 1, "memory": "128MiB", "labels": labels, "forward_ports": [f"127.0.0.1:{21000 + number}:80"], **more,
    }  # fmt: skip


def hypervisor(*nodes: dict[str, Any], memory: int = 16) -> dict[str, Any]:
    capacity = {"vcpus_free": 8, "memory_free": memory * GIB}
    return {"nodes": list(nodes), "capacity": capacity, "ports_free": [21100, 21101, 21102], "address": "10.0.0.7", "images": ["guest", "guest-2"]}


def node_steps(
    operation: str, hypervisors: dict[str, Any], *servers: int, replicas: int = 1, declared: dict[str, Any] | None = None, **arguments: Any
) -> list[Any]:
    entry = {
        "name": "edge",
        "replicas": replicas,
        "version": 1,
        "declaration": EDGE,
        "servers": [{**server(1), "name": f"edge-{number}"} for number in servers],
    }
    answers = {"hypervisors": hypervisors, "load_balancers": {"lb": {"services": [entry] if servers else []}}, "container_hosts": {"h9": SILENT}}
    given = {"service": "edge", "image": None, "replicas": None, **arguments}
    return check_plan(make_plan(f"service.{operation}", given, answers, {"edge": declared or EDGE}))


def test_a_service_of_nodes_is_made_where_there_is_room_for_a_node() -> None:
    """A container host that does not answer is none of its business."""
    planned = node_steps("create", {"h1": hypervisor(), "h2": hypervisor(memory=32)})
    assert forward(planned) == [
        ("lb", "keep that edge is wanted so"),
        ("h2", "start edge-1 from guest"),
        ("h2", "wait until edge-1 is healthy"),
        ("lb", "send requests to edge-1"),
    ]
    assert (planned[1]["module"], planned[2]["module"]) == ("lepton.cloud.virtual_node", "lepton.cloud.virtual_node")
    args = planned[1]["args"]
    assert (args["vcpus"], args["memory"], args["image"], args["labels"]["cloud.lepton.service"]) == (1, "128MiB", "guest", "edge")
    assert args["forward_ports"][0].startswith("10.0.0.7:211")
    assert args["forward_ports"][0].endswith(":80")
    assert planned[2]["args"]["health_port"] == 80
    assert planned[-2]["args"] == {"name": "edge-1", "state": "absent"}  # what undoes it
    with pytest.raises(StepError, match="h2 did not answer"):
        node_steps("create", {"h1": hypervisor(), "h2": SILENT})


def test_nodes_are_scaled_mended_rolled_and_resized_as_containers_are() -> None:
    two = {"h1": hypervisor(node(1), node(2))}
    assert not node_steps("reconcile", two, 1, 2, replicas=2)
    stopped = {"h1": hypervisor(node(1), node(2, state="stopped"))}
    assert [title for _host, title in forward(node_steps("reconcile", stopped, 1, 2, replicas=2))][:3] == [
        "drain edge-2 and take it out", "remove edge-2", "start edge-3 from guest",
    ]  # fmt: skip
    bigger = node_steps("update", two, 1, 2, replicas=2, declared={**EDGE, "cpus": 2})
    assert [step["args"] for step in bigger if step["title"].startswith("resize") and not step.get("undo")] == [
        {"vcpus": 2, "name": "edge-1"},
        {"vcpus": 2, "name": "edge-2"},
    ]
    rolled = node_steps("update", two, 1, 2, replicas=2, declared={**EDGE, "image": "guest-2"})
    stops = [step for step in rolled if step["title"].startswith("stop ")]
    assert [(step["args"]["state"], step["args"]["wait_seconds"], step["after"]) for step in stops] == [("stopped", 60, {"state": "stopped"})] * 2
    with pytest.raises(StepError, match="one of kind container is another service"):
        node_steps("update", two, 1, 2, declared=DECLARED)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"environment": {"A": "b"}}, "environment: a node has what its image brings"),
        ({"secrets": ["a"]}, "secrets: a node"),
        ({"cpus": 1.5}, "a whole number of cpus"),
        ({"cpus": None}, "a whole number of cpus"),
        ({"memory": None}, "a node needs memory"),
        ({"memory": "1000000B"}, "whole MiB"),
        ({"image": "../x"}, "not the name of a node's image"),
        ({"health_path": "no path"}, "is not a path"),
    ],
)
def test_what_a_node_cannot_be(change: dict[str, Any], told: str) -> None:
    with pytest.raises(StepError, match=told):
        node_steps("create", {"h1": hypervisor()}, declared={**EDGE, **change})
