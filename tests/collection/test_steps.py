# SPDX-License-Identifier: Apache-2.0
"""Plans of composite operations: pure, and never half as approved."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._steps import StepError, check_plan, digest, make_plan, unmet

NODE = {
    "name": "web-1", "state": "running", "vcpus": 1, "max_vcpus": 4, "memory": "128MiB", "max_memory": "256MiB", "image": "guest", "network": "user",
    "forward_ports": ["8080:80"], "disk": "64MiB", "restart_required": False,
}  # fmt: skip
MIB = 1 << 20
ROOM = {"vcpus": 4, "vcpus_used": 4, "vcpus_free": 0, "memory": 512 * MIB, "memory_used": 500 * MIB, "memory_free": 12 * MIB}
ANSWERS: dict[str, Any] = {
    "h1": {"nodes": [], "images": ["guest"], "capacity": ROOM},
    "h2": {"nodes": [NODE], "images": ["guest", "other"], "capacity": ROOM, "disk_free": 64 * MIB, "image_size": None},
}


def plan(arguments: dict[str, Any], answers: Any = None) -> list[dict[str, Any]]:
    return list(make_plan("node.rebuild", {"image": None, **arguments}, {"hypervisors": answers or ANSWERS}, {})["steps"])


def test_a_node_is_made_anew_where_it_is_and_as_it_is() -> None:
    remove, make = plan({"node": "web-1"})
    assert (remove["host"], make["host"]) == ("h2", "h2")
    assert remove["args"] == {"name": "web-1", "state": "absent"}
    assert remove["before"] == {"state": "running", "vcpus": 1, "memory": "128MiB"}
    assert make["before"] == {"state": "absent"}
    assert make["args"] == {
        "name": "web-1", "state": "running", "update": False, "image": "guest", "vcpus": 1, "max_vcpus": 4, "memory": "128MiB", "max_memory": "256MiB",
        "network": "user", "disk": "64MiB", "forward_ports": ["8080:80"],
    }  # fmt: skip
    assert plan({"node": "web-1", "image": "other"})[1]["args"]["image"] == "other"


def test_a_size_that_waits_for_the_next_start_is_the_size_of_the_new_one() -> None:
    waiting = {**NODE, "vcpus": 4, "restart_required": True, "config": {"vcpus": 1, "max_vcpus": 2, "memory": "64MiB", "max_memory": "128MiB"}}
    remove, make = plan({"node": "web-1"}, {"h": {**ANSWERS["h2"], "nodes": [waiting]}})
    assert (remove["before"]["vcpus"], make["args"]["vcpus"], make["args"]["memory"]) == (1, 1, "64MiB")


def test_what_a_node_was_told_at_its_first_boot_it_is_told_again() -> None:
    answers = {"hypervisors": {"h": {**ANSWERS["h2"], "nodes": [{**NODE, "first_boot": True}]}}}
    with pytest.raises(StepError, match=r"web-1 is not removed: .* set lepton_first_boot of it"):
        make_plan("node.rebuild", {"node": "web-1", "image": None}, answers, {"first_boot": False})
    steps = make_plan("node.rebuild", {"node": "web-1", "image": None}, answers, {"first_boot": True})["steps"]
    assert steps[1]["args"]["first_boot"] == "declared"  # and nothing of what it holds


@pytest.mark.parametrize(
    ("operation", "arguments", "answers", "reason"),
    [
        ("node.rebuild", {"node": "web-2"}, ANSWERS, "no host has a node web-2"),
        ("node.rebuild", {"node": "web-1", "image": "nope"}, ANSWERS, "h2 has no image nope: expected one of guest, other"),
        ("node.rebuild", {"node": "web-1"}, {"h": {"nodes": [{**NODE, "image": "/old"}], "images": []}}, "has no image /old: expected one of none"),
        ("node.rebuild", {"node": "web-1"}, {"h1": {"nodes": [NODE]}, "h2": {"nodes": [NODE]}}, "several hosts have a node web-1"),
        ("node.explode", {}, ANSWERS, "there is no planner for node.explode, only for host.drain, host.evacuate, node.move, node.rebuild"),
    ],
)
def test_what_cannot_be_planned_is_said(operation: str, arguments: dict[str, Any], answers: Any, reason: str) -> None:
    with pytest.raises(StepError, match=reason):
        make_plan(operation, {"image": None, **arguments}, {"hypervisors": answers}, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"disk_free": 63 * MIB}, "it has disk 64MiB, and h2 has 63MiB for it"),
        ({"disk_free": None}, ""),
        ({"image_size": 65 * MIB}, "its disk has 64MiB, and the image needs 65MiB"),
        ({"capacity": {**ROOM, "vcpus": 3}}, "it has max_vcpus 4, and h2 has 3 for it"),
        ({"capacity": {**ROOM, "vcpus_used": 5}}, "it has vcpus 1, and h2 has 0 for it"),
        ({"capacity": {**ROOM, "memory": 255 * MIB}}, "it has max_memory 256MiB, and h2 has 255MiB for it"),
        ({"capacity": {**ROOM, "memory_used": 513 * MIB}}, "it has memory 128MiB, and h2 has 127MiB for it"),
    ],
)
def test_what_could_not_be_made_again_is_not_removed(change: dict[str, Any], reason: str) -> None:
    answers = {"h2": {**ANSWERS["h2"], **change}}
    if not reason:
        assert plan({"node": "web-1"}, answers)
        return
    with pytest.raises(StepError, match=reason):
        plan({"node": "web-1"}, answers)


def test_a_plan_comes_back_as_it_was_made_or_is_refused() -> None:
    made = make_plan("node.rebuild", {"node": "web-1", "image": None}, {"hypervisors": ANSWERS}, {})
    assert check_plan(json.loads(json.dumps(made))) == made["steps"]
    forged = json.loads(json.dumps(made))
    forged["steps"][0]["args"]["name"] = "web-2"
    for handed_in in (forged, {}, None, {"steps": made["steps"]}, {**made, "steps": made["steps"][:1]}):
        with pytest.raises(StepError, match="is not as it was made"):
            check_plan(handed_in)
    foreign = [{**made["steps"][0], "module": "ansible.builtin.command"}]
    with pytest.raises(StepError, match=r"a step may only call"):
        check_plan({"steps": foreign, "digest": digest(foreign)})


@pytest.mark.parametrize(
    ("diff", "reason"),
    [
        ({"before": {"state": "running", "vcpus": 1, "memory": "128MiB", "disk": "/x"}, "after": {"state": "absent", "vcpus": None}}, ""),
        ({"before": {"state": "stopped", "vcpus": 1, "memory": "128MiB"}, "after": {"state": "absent"}}, 'state is "stopped", and not "running" as planned'),
        ({"before": {"state": "running", "vcpus": 2, "memory": "128MiB"}, "after": {"state": "absent"}}, "vcpus is 2, and not 1 as planned"),
        ({"before": {"state": "running", "vcpus": 1, "memory": "128MiB"}, "after": {"state": "stopped"}}, 'state would become "stopped"'),
        ({}, 'state would not change any more, and was to go from "running" to "absent"'),
    ],
)
def test_a_step_is_done_only_where_the_world_is_as_planned(diff: dict[str, Any], reason: str) -> None:
    found = unmet(plan({"node": "web-1"})[0], diff)
    assert found == reason if not reason else reason in found
