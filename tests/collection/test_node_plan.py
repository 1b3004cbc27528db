# SPDX-License-Identifier: Apache-2.0
"""The pure plan: what follows from a wish and a state, without a hypervisor."""

from dataclasses import replace

import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._node import Boot, Capacity, Change, Node, NodeError, Size, Wish, check_name, grows, make_plan

MIB = 1 << 20
SIZE = Size(vcpus=2, memory=512 * MIB, max_vcpus=4, max_memory=1024 * MIB)
BOOT = Boot(image="debian", disk=None, network="user", forward_ports=())
STOPPED = Node(name="web-1", config=SIZE, boot=BOOT)
RUNNING = replace(STOPPED, live=SIZE, memory_used=200 * MIB)
ROOM = Capacity(vcpus=16, memory=8192 * MIB, vcpus_used=3, memory_used=512 * MIB)


def test_of_huge_pages_nothing_is_changed_that_nobody_asks_for() -> None:
    shrunk = replace(STOPPED, huge=True)  # from before they were a room of their own
    assert actions(Wish("web-1", "running"), shrunk) == ["start"]
    assert actions(Wish("web-1", "running"), replace(shrunk, saved=True)) == ["start"]
    (step,) = make_plan(Wish("web-1", memory=256 * MIB), shrunk, ROOM).steps
    assert step.size == Size(2, 256 * MIB, 4, 256 * MIB)
    with pytest.raises(NodeError, match="it must be its memory"):
        make_plan(Wish("web-1", max_memory=768 * MIB), shrunk, ROOM)


def test_the_hosts_room_matters_only_to_what_grows() -> None:
    for wish in (Wish("web-1", "stopped"), Wish("web-1", vcpus=1), Wish("web-1", "absent"), Wish("web-1", "restarted", memory=256 * MIB)):
        assert not grows(wish, RUNNING)
        assert make_plan(wish, RUNNING, None).steps == make_plan(wish, RUNNING, ROOM).steps
    for wish in (Wish("web-1", vcpus=3), Wish("web-1", memory=768 * MIB), Wish("web-1", max_vcpus=5), Wish("web-1", max_memory=2048 * MIB)):
        assert grows(wish, RUNNING)
    assert grows(Wish("web-2"), None)
    assert not grows(Wish("web-2", "absent"), None)


def actions(wish: Wish, node: Node | None, room: Capacity = ROOM) -> list[str]:
    return [step.action for step in make_plan(wish, node, room).steps]


def test_a_new_node_is_defined_before_its_disk_so_that_a_crash_leaves_the_mark() -> None:
    wish = Wish("web-1", "running", image="debian", vcpus=2, memory=512 * MIB)
    plan = make_plan(wish, None, ROOM)
    assert [step.action for step in plan.steps] == ["define", "create_disk", "finish", "start"]
    assert plan.steps[0].size == SIZE
    assert plan.diff()["after"]["vcpus"] == 2


@pytest.mark.parametrize(
    ("wish", "node", "expected"),
    [
        (Wish("web-1"), RUNNING, []),
        (Wish("web-1", "running"), RUNNING, []),
        (Wish("web-1", "running"), STOPPED, ["start"]),
        (Wish("web-1", "stopped"), RUNNING, ["shutdown"]),
        (Wish("web-1", "stopped"), STOPPED, []),
        (Wish("web-1", "restarted"), RUNNING, ["shutdown", "start"]),
        (Wish("web-1", "restarted"), STOPPED, ["start"]),
        (Wish("web-1", "absent"), None, []),
        (Wish("web-1", "running"), replace(RUNNING, paused=True), ["resume"]),
        (Wish("web-1", "running"), replace(STOPPED, unfinished="creating"), ["create_disk", "finish", "start"]),
        (Wish("web-1", "restarted", memory=64 * MIB), RUNNING, ["resize_config", "shutdown", "start"]),
        (Wish("web-1", "absent"), STOPPED, ["mark_releasing", "delete_disk", "undefine"]),
        (Wish("web-1", "absent"), RUNNING, ["mark_releasing", "destroy", "delete_disk", "undefine"]),
        (Wish("web-1", vcpus=3), RUNNING, ["resize_live", "resize_config"]),
        (Wish("web-1", vcpus=3), STOPPED, ["resize_config"]),
        (Wish("web-1", vcpus=2), RUNNING, []),
        (Wish("web-1", memory=768 * MIB), RUNNING, ["resize_live", "resize_config"]),
        (Wish("web-1", "restarted", vcpus=8), RUNNING, ["resize_config", "shutdown", "start"]),
        (Wish("web-1", "running", image="debian", vcpus=2, memory=512 * MIB, update=False), RUNNING, []),
    ],
)
def test_steps(wish: Wish, node: Node | None, expected: list[str]) -> None:
    assert actions(wish, node) == expected


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (Wish("web-1", vcpus=8), "above the 4 reserved"),
        (Wish("web-1", vcpus=1), "not reliable"),
        (Wish("web-1", memory=2048 * MIB), "above the 1GiB reserved"),
        (Wish("web-1", max_vcpus=8), "only be reserved at a start"),
    ],
)
def test_what_a_running_node_cannot_take_waits_for_its_restart(wish: Wish, reason: str) -> None:
    plan = make_plan(wish, RUNNING, ROOM)
    assert [step.action for step in plan.steps] == ["resize_config"]
    assert any(reason in why for why in plan.restart_reasons)
    assert all(change.effective == "at the next start" for change in plan.changes)


def test_a_second_run_changes_nothing_and_still_says_that_a_restart_is_needed() -> None:
    node = replace(RUNNING, config=replace(SIZE, vcpus=1))
    plan = make_plan(Wish("web-1", vcpus=1), node, ROOM)
    assert not plan.changed
    assert not plan.changes
    assert plan.restart_reasons


def test_taking_back_a_pending_change_is_a_change_of_the_next_start_only() -> None:
    node = replace(RUNNING, config=replace(SIZE, vcpus=1))
    plan = make_plan(Wish("web-1", vcpus=2), node, ROOM)
    assert [step.action for step in plan.steps] == ["resize_config"]
    assert plan.changes == (Change("vcpus", 1, 2, "at the next start"),)


@pytest.mark.parametrize(
    ("wish", "node", "message"),
    [
        (Wish("web-1", memory=64 * MIB), RUNNING, "uses 200MiB now"),
        (Wish("web-1", vcpus=16), RUNNING, "does not fit on this host"),
        (Wish("web-1", memory=8192 * MIB), replace(STOPPED, config=replace(SIZE, memory=64 * MIB)), "memory is not overcommitted"),
        (Wish("web-1", max_vcpus=17), STOPPED, "above the 16 vCPUs"),
        (Wish("web-1", max_memory=9000 * MIB), STOPPED, "above the 8GiB"),
        (Wish("web-1", "running"), replace(STOPPED, disk_path="/gone", disk_missing=True), "disk of web-1 is not where it was"),
        (Wish("web-1", "running"), replace(STOPPED, unfinished="releasing"), "release it again"),
        (Wish("web-1", vcpus=1), replace(STOPPED, saved=True), "suspended to disk"),
        (Wish("web-1", vcpus=0), STOPPED, "at least 1"),
        (Wish("web-1", memory=MIB), STOPPED, "at least 16MiB"),
        (Wish("web-1", image="other"), RUNNING, "cannot be changed"),
        (Wish("web-1", vcpus=3, update=False), RUNNING, "use 'node resize'"),
        (Wish("web-1", vcpus=1), replace(RUNNING, boot=None), "not made by Lepton"),
        (Wish("web-1", "absent"), replace(RUNNING, boot=None), "not made by Lepton"),
        (Wish("web-1", "running"), None, "there is no node web-1"),
        (Wish("web-1", image="x", vcpus=1, memory=64 * MIB, network="tap:x"), None, "not a network"),
        (Wish("web-1", image="x", vcpus=1, memory=64 * MIB, forward_ports=("80",)), None, "not a port forward"),
        (Wish("web-1", image="x", vcpus=1, memory=64 * MIB, network="none", forward_ports=("8080:80",)), None, "only on network user"),
        (Wish("web-1", image="x", vcpus=4, max_vcpus=2, memory=64 * MIB), None, "below vcpus"),
    ],
)
def test_what_cannot_be_had_is_said_and_nothing_is_planned(wish: Wish, node: Node | None, message: str) -> None:
    with pytest.raises(NodeError, match=message):
        make_plan(wish, node, ROOM)


def test_memory_is_not_taken_from_a_guest_that_does_not_say_what_it_uses() -> None:
    plan = make_plan(Wish("web-1", memory=256 * MIB), replace(RUNNING, memory_used=None), ROOM)
    assert [step.action for step in plan.steps] == ["resize_config"]
    assert "does not say" in plan.restart_reasons[0]


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a" * 64, "web 1; rm -rf /", "{{ lookup('pipe','id') }}", "wéb", "web\u200b1", "a/../b", "\u202eweb"]
)
def test_names_are_dns_labels(name: str) -> None:
    with pytest.raises(NodeError, match="not a node name"):
        check_name(name)


def test_the_plan_of_a_restart_shows_what_was_waiting_for_it() -> None:
    plan = make_plan(Wish("web-1", "restarted"), replace(RUNNING, config=replace(SIZE, vcpus=1)), ROOM)
    assert plan.changes == (Change("vcpus", 2, 1), Change("state", "running", "restarted"))


def test_headroom_stays_within_the_host() -> None:
    plan = make_plan(Wish("web-1", image="x", vcpus=10, memory=6144 * MIB), None, replace(ROOM, vcpus_used=0, memory_used=0))
    assert plan.steps[0].size == Size(10, 6144 * MIB, 16, 8192 * MIB)
