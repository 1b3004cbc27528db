# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Nodes that go to another host: planned. Pure. PRIVATE to the collection and to the Lepton bot.

Stopped, a node is backed up into the folder that both hosts see, made anew on the other one, and only then removed from the first. Where one
of that fails it is started again where it was, and nothing of it is left elsewhere. Running, it is migrated by the hypervisors themselves.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ._fleet import WHOLE, Request
from ._pci import gpus_of
from ._placement import SERVICE_LABEL, PlacementError, locate, place, size_of
from ._planner import Step, a_step
from ._units import parse_size

Answers = Mapping[str, Mapping[str, Mapping[str, Any]]]
POWER_SECONDS = 120
LIVE, SUSPENDED = "live", "suspended"


def move_node(arguments: Mapping[str, Any], asked: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan to move a node to a host, or to the best one that has room."""
    name, answers = arguments["node"], asked["hypervisors"]
    source = locate(name, answers)
    node = next(item for item in answers[source]["nodes"] if item["name"] == name)
    if SERVICE_LABEL in (node.get("labels") or {}):
        raise PlacementError("%s is a replica of service %s, which load balancers know: service update with again puts it elsewhere" % (name, _service(node)))
    return _moved(node, source, _target(node, source, arguments.get("host"), answers), answers, arguments.get("mode"), declared)


def drain_host(arguments: Mapping[str, Any], asked: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan to close a host and to move every node off it, one after the other. Replicas of services stay: their services put them elsewhere."""
    host, answers = arguments["host"], asked["hypervisors"]
    if "nodes" not in answers.get(host, {}):
        known = ", ".join(sorted(answers)) or "none"
        raise PlacementError("%s does not answer, or is no host: expected one of %s" % (ascii(host[:64])[1:-1], known))
    reason = arguments.get("because") or "no reason given"
    closed = {**answers, host: {**answers[host], "closed": "drained: %s" % reason}}
    steps: list[Step] = []
    if answers[host].get("closed") != "drained: %s" % reason:
        before, after = {"closed": answers[host].get("closed")}, {"closed": "drained: %s" % reason}
        steps.append(a_step("have nothing new on %s" % host, host, "host_placement", {"closed": "drained: %s" % reason}, before, after))
    for node in answers[host]["nodes"]:
        # What has devices of its host is a part of it, and stays with it.
        if SERVICE_LABEL not in (node.get("labels") or {}) and not node.get("devices"):
            target = _target(node, host, None, closed)
            steps += _moved(node, host, target, answers, arguments.get("mode"), declared)
            closed = {**closed, target: _with(closed[target], node)}
    return steps


def evacuate_host(arguments: Mapping[str, Any], asked: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan to make the nodes of a lost host on others, each of its newest backup. That it is off is a person's word, or it is turned off first."""
    host, answers = arguments["host"], asked["hypervisors"]
    if host not in answers:
        raise PlacementError("there is no host %s: expected one of %s" % (ascii(host[:64])[1:-1], ", ".join(sorted(answers)) or "none"))
    if "nodes" in answers[host]:
        raise PlacementError("%s answers, so it is not lost: host drain brings its nodes elsewhere" % host)
    unasked = sorted(name for name, answer in answers.items() if not answer)
    if unasked:
        raise PlacementError("%s were not asked: run it without a limit, since only who was asked can be silent" % ", ".join(unasked))
    silent = sorted(name for name, answer in answers.items() if name != host and "nodes" not in answer)
    if silent:
        raise PlacementError("%s do not answer either, and may have what would be made twice: nothing is done before they do" % ", ".join(silent))
    off: list[Step] = []
    if not arguments.get("is_off"):
        if host not in (declared.get("fences") or ()):
            raise PlacementError(
                "%s does not answer, and that may be the network: a node that runs twice writes to two disks, and serves from both. See that the host is "
                "off and stays off (its power, its BMC), and say is_off=true; or set lepton_fence for it in the inventory, and it is turned off" % host
            )
        if not answers[host].get("unreachable"):
            why = "%s is reached, and only its libvirt does not answer: %s. What it carries may well run. Where it is to go, turn it off and say is_off=true"
            raise PlacementError(why % (host, str(answers[host].get("msg"))[:300]))
        off = [a_step("turn %s off, and see that it is" % host, host, "host_fence", {}, {}, {"power": "off"})]
    there = {node["name"] for answer in answers.values() for node in answer.get("nodes", ())}
    saved = declared.get("saved") or {}  # by host, each of which may have its own folder
    newest = {backup["node"]: backup for backup in sorted((each for found in saved.values() for each in found), key=lambda backup: backup["id"])}
    wanted = arguments.get("nodes") or sorted(name for name, backup in newest.items() if backup.get("host") == host and name not in there)
    strange = [name for name in wanted if newest.get(name, {}).get("host") != host or name in there]
    if strange or not wanted:
        raise PlacementError("no backup is of %s on %s, or another host has it" % (", ".join(ascii(name[:63])[1:-1] for name in strange) or "a node", host))
    steps = off
    left = {name: answer for name, answer in answers.items() if name != host}
    for name in wanted:
        node = {**newest[name], "name": name}
        having = [other for other, found in saved.items() if any((each["node"], each["id"]) == (name, node["id"]) for each in found)]
        target = _target(node, host, None, {other: answer for other, answer in left.items() if other in having})
        given = {"node": name, "name": name, "directory": _directory(declared, target), "backup": node["id"], "state": "running"}
        title = "make %s of its backup %s on %s" % (name, node["id"], target)
        steps.append(a_step(title, target, "virtual_node_restore", given, {"state": "absent"}, {"state": "running"}, group=name))
        left = {**left, target: _with(left[target], node)}
    return steps


def _service(node: Mapping[str, Any]) -> str:
    return ascii(str(node["labels"][SERVICE_LABEL])[:40])[1:-1]


def _directory(declared: Mapping[str, Any], host: str) -> str:
    found = (declared.get("directories") or {}).get(host)
    if not found:
        raise PlacementError("a node goes by a backup: set lepton_backups.directory in the inventory, a folder that both hosts see")
    return str(found)


def _target(node: Mapping[str, Any], source: str, host: str | None, answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return where a node goes; raise PlacementError where it cannot."""
    if host == source:
        raise PlacementError("%s is on %s already" % (node["name"], source))
    words = [str(word) for word in node.get("devices") or ()]
    if words and "state" in node:
        raise PlacementError("%s has devices of %s (%s), which stay there: it cannot go" % (node["name"], source, ", ".join(node["devices"])))
    others = {name: answer for name, answer in answers.items() if name != source}
    size = size_of(node)
    request = Request(
        cpus=size["vcpus"] * WHOLE, memory=parse_size(size["memory"]), gpus=gpus_of(words), numa=bool(node.get("numa")), huge=bool(node.get("hugepages")),
    )  # fmt: skip
    return place(node["name"], request, host=host, answers=others, labels={})[0]


def _with(answer: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a host answers when it has one more node."""
    size, room = size_of(node), answer["capacity"]
    pool = "huge_pages" if node.get("hugepages") else "capacity"
    less = {pool: {**answer[pool], "memory_free": answer[pool]["memory_free"] - parse_size(size["memory"])}}
    less["capacity"] = {**less.get("capacity", room), "vcpus_free": room["vcpus_free"] - size["vcpus"]}
    if node.get("numa"):
        less["host"] = {**answer.get("host", {}), "numa": _seated(node, answer.get("host", {}).get("numa", ()))}
    words, gpus = [str(word) for word in node.get("devices") or ()], list(answer.get("gpus") or ())
    if "state" not in node and words:  # of a lost host: those that it gets here are nobody else's
        free = [place for place, gpu in enumerate(gpus) if not gpu["why"]][: gpus_of(words)]
        less["gpus"] = [{**gpu, "why": "it is for %s" % node["name"]} if place in free else gpu for place, gpu in enumerate(gpus)]
    planned = {field: value for field, value in node.items() if field != "state"}
    return {**answer, **less, "nodes": [*answer["nodes"], planned]}


def _seated(node: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what NUMA nodes have left with one more node bound to the one that a host would choose: that which has least left then."""
    vcpus, memory = size_of(node)["vcpus"], parse_size(size_of(node)["memory"])
    kind = "huge_free" if node.get("hugepages") else "memory_free"
    fitting = [cell for cell in cells if cell["vcpus_free"] >= vcpus and cell[kind] >= memory]
    chosen = min(fitting, key=lambda cell: int(cell[kind]), default=None)
    return [{**cell, "vcpus_free": cell["vcpus_free"] - vcpus, kind: cell[kind] - memory} if cell is chosen else cell for cell in cells]


def _moved(
    node: Mapping[str, Any], source: str, target: str, answers: Mapping[str, Mapping[str, Any]], mode: str | None, declared: Mapping[str, Any]
) -> list[Step]:
    """Return how a node comes from one host to another. What does not run has nothing to migrate, and goes stopped."""
    name = node["name"]
    if mode in (LIVE, SUSPENDED) and node["state"] == "running":
        if node.get("numa_node") is not None or (node.get("numa") and answers[target].get("host", {}).get("numa")):
            raise PlacementError(
                "%s is bound to one NUMA node, and no migration binds it to another: without mode it goes stopped, and is bound anew (node move %s)"
                % (name, name)
            )
        return [_migrated(name, source, target, answers[target]["migration"], live=mode == LIVE)]
    return _carried(name, "running" if node["state"] == "running" else "stopped", source, target, declared)


def _migrated(name: str, source: str, target: str, there: Mapping[str, Any], *, live: bool) -> Step:
    if not there["uri"]:
        raise PlacementError("no running node comes to %s: set migration_uri in its lepton_host, where other hosts' libvirt reaches it" % target)
    given = {"name": name, "target_uri": there["uri"], "target_image_dir": there["image_dir"], "target_disk_dir": there["disk_dir"], "live": live}
    given.update(target_cpu_overcommit=there["cpu_overcommit"], target_memory_reserve=there["memory_reserve"])
    title = "migrate %s to %s%s" % (name, target, "" if live else ", held meanwhile")
    return a_step(title, source, "virtual_node_migration", given, {"state": "running"}, {"state": "absent"}, group=name)


def _carried(name: str, state: str, source: str, target: str, declared: Mapping[str, Any]) -> list[Step]:
    steps = []
    saving = {"name": name, "directory": _directory(declared, source), "full": True, "host_name": source}
    making = {"node": name, "name": name, "directory": _directory(declared, target), "written_by": source, "state": state}
    if state == "running":
        stop = {"name": name, "state": "stopped", "wait_seconds": POWER_SECONDS}
        steps.append(a_step("stop %s" % name, source, "virtual_node", stop, {"state": "running"}, {"state": "stopped"}, group=name))
    steps += [
        a_step("back %s up" % name, source, "virtual_node_backup", saving, group=name),
        a_step(
            "make %s of that on %s" % (name, target),
            target,
            "virtual_node_restore",
            making,
            {"state": "absent"},
            {"state": state},
            group=name,
        ),
        a_step(
            "remove %s from %s" % (name, source),
            source,
            "virtual_node",
            {"name": name, "state": "absent"},
            {"state": "stopped"},
            {"state": "absent"},
            group=name,
        ),
        # In this order: where the first host does not answer any more, what runs on the other one stays.
        a_step("have %s on %s as it was" % (name, source), source, "virtual_node", {"name": name, "state": state}, group=name, undo=True),
        a_step("remove %s from %s again" % (name, target), target, "virtual_node", {"name": name, "state": "absent"}, group=name, undo=True),
    ]
    return steps
