# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Steps of a composite operation: what they are, and the planners that make them. Pure; runs on the controller.

PRIVATE to the collection and to the Lepton bot. A plan is a list of steps with a digest. It is shown, approved, and then given back
to the playbook, which does that list and nothing else; each step is checked against the world just before it is done.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Callable, Mapping, Sequence

from ._moving import drain_host, evacuate_host, move_node
from ._placement import PlacementError, locate, size_of
from ._rollout import adopt_service, balance_service, create_service, delete_service, reconcile_service, resize_service, scale_service, update_service
from ._service import ServiceError
from ._units import format_size, parse_size

# {title, host, module, args, before, after}: one module call on one host, and the fields that it must find and bring about. Optional:
# group: steps that belong together; one that fails ends those that follow of its group, where `stops` is "all" every step that follows
# undo: done only where its group was begun and failed, or was begun before everything was stopped
# needs_all: done only where nothing at all has failed
Step = dict[str, Any]
Answers = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by group of hosts and host
Planner = Callable[[Mapping[str, Any], Answers, Mapping[str, Any]], list[Step]]
PREFIX = "lepton.cloud."
# In which variable of a host the options stand that all modules of a kind share.
OPTIONS = {
    "host_fence": "lepton_fence",
    "host_placement": "lepton_host",
    "virtual_node": "lepton_host",
    "virtual_node_backup": "lepton_host",
    "virtual_node_migration": "lepton_host",
    "virtual_node_restore": "lepton_host",
    "container_dataset": "lepton_engine",
    "model_container": "lepton_engine",
    "model_deployment": "lepton_cluster",
    "load_balancer_info": "lepton_balancer",
    "load_balancer_server": "lepton_balancer",
    "load_balancer_service": "lepton_balancer",
}


DECLARED = "declared"  # of first_boot: as lepton_first_boot of the host has it


class StepError(ValueError):
    """A plan that cannot be made, or must not be done; the text says why."""


def make_plan(operation: str, arguments: Mapping[str, Any], answers: Answers, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of an operation, {steps, digest}, from what every host answered and what the inventory declares."""
    planner = PLANNERS.get(operation)
    if planner is None:
        raise StepError("there is no planner for %s, only for %s" % (operation, ", ".join(sorted(PLANNERS))))
    try:
        steps = planner(arguments, answers, declared)
    except (PlacementError, ServiceError) as error:
        raise StepError(str(error)) from error
    return {"steps": steps, "digest": digest(steps)}


def digest(steps: Sequence[Step]) -> str:
    """Return what tells one list of steps from every other."""
    return hashlib.sha256(json.dumps(list(steps), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_plan(plan: Any) -> list[Step]:
    """Return the steps of a plan that was handed in, or raise StepError when they are not those that its digest speaks of."""
    steps = plan.get("steps") if isinstance(plan, Mapping) else None
    if not isinstance(steps, (list, tuple)) or digest(steps) != plan.get("digest"):
        raise StepError("the plan that was handed in is not as it was made (something in it was masked or cut): it cannot be done as approved")
    for step in steps:
        options_of(step)
    return list(steps)


def options_of(step: Step) -> str:
    """Return the variable with the options that a step's module shares with others; raise StepError for a module that is no step's."""
    module = str(step["module"])
    name = OPTIONS.get(module[len(PREFIX) :]) if module.startswith(PREFIX) else None
    if name is None:
        raise StepError("a step may only call %s of lepton.cloud, not %s" % (", ".join(sorted(OPTIONS)), ascii(module[:80])))
    return name


def field_name(step: Step, field: str) -> str:
    """Return how a field that a step changes is called: with whose it is, where a plan is about several things of a host."""
    return "%s %s" % (step["args"]["name"], field) if step.get("group") else field


# What came of the steps so far, as it is handed from one to the next.
Outcomes = dict[str, Any]
NOTHING: Outcomes = {"begun": [], "failed": [], "stuck": [], "stopped": False, "trouble": []}


def due(step: Step, outcomes: Outcomes) -> bool:
    """Return whether a step is to be done after what came of the ones before it."""
    group = step.get("group", "")
    failed = group in outcomes["failed"]
    if step.get("undo"):
        # What could not be taken out, or started again, must not be removed next.
        return group not in outcomes["stuck"] and group in outcomes["begun"] and (failed or outcomes["stopped"])
    if step.get("needs_all") and outcomes["trouble"]:
        return False
    return not failed and not outcomes["stopped"]


def noted(step: Step, outcomes: Outcomes, trouble: str = "") -> Outcomes:
    """Return the outcomes with one more step; `trouble` is why it failed."""
    group = step.get("group", "")
    after = {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in outcomes.items()}
    if group and group not in after["begun"]:
        after["begun"].append(group)
    if not trouble:
        return after
    if step.get("undo"):
        after["stuck"].append(group)
        after["trouble"].append("taking that back, %s failed on %s, and %s is left as it is: %s" % (step["title"], step["host"], group, trouble))
        return after
    after["failed"].append(group)
    after["stopped"] = after["stopped"] or step.get("stops") == "all"
    taken_back = "" if not group else "; all of it was taken back" if after["stopped"] else "; what was begun of it was taken back, and nothing else"
    after["trouble"].append("%s: %s: %s%s" % (step["host"], step["title"], trouble.rstrip("."), taken_back))
    return after


def unmet(step: Step, diff: Mapping[str, Any]) -> str:
    """Return what a module's own diff has that is not as the step says, "" when all is.

    `diff` is what the module would change now: fields before and after. A step that has nothing left to change is not as it
    was planned either.
    """
    for when, word in (("before", "is"), ("after", "would become")):
        now = diff.get(when) or {}
        for field, planned in step[when].items():
            if field not in now:
                return "%s would not change any more, and was to go from %s to %s" % (
                    field,
                    json.dumps(step["before"].get(field)),
                    json.dumps(step["after"].get(field)),
                )
            if now[field] != planned:
                return "%s %s %s, and not %s as planned" % (field, word, json.dumps(now[field]), json.dumps(planned))
    return ""


def rebuild_node(arguments: Mapping[str, Any], asked: Answers, declared: Mapping[str, Any]) -> list[Step]:
    """Plan to make a node anew from an image, with the name, size, network and host that it has."""
    name, answers = arguments["node"], asked["hypervisors"]
    host = locate(name, answers)
    node = next(item for item in answers[host]["nodes"] if item["name"] == name)
    image = arguments.get("image") or node.get("image")
    known = answers[host].get("images") or []
    if image not in known:
        # Before anything is removed: a node without an image could not be made again.
        raise StepError("%s has no image %s: expected one of %s" % (host, ascii(str(image)[:80])[1:-1], ", ".join(sorted(known)) or "none"))
    size = size_of(node)
    _must_fit(name, host, size, answers[host])
    made = {field: size[field] for field in ("vcpus", "max_vcpus", "memory", "max_memory")}
    made["image"] = image
    made["network"] = node["network"]
    if node.get("disk"):
        made["disk"] = node["disk"]
    create = dict(made, name=name, state="running", update=False)
    if node.get("forward_ports"):
        create["forward_ports"] = node["forward_ports"]
    for field in ("labels", "devices", "cpuset", "hugepages", "numa", "mac"):
        if node.get(field):
            create[field] = node[field]
    if node.get("first_boot"):
        if not declared.get("first_boot"):
            raise StepError(
                "%s is not removed: it was told at its first boot who may log in, and nothing could tell it again: set lepton_first_boot of it" % name
            )
        create["first_boot"] = DECLARED  # what it holds is nobody's to read in a plan
    return [
        {
            "title": "remove %s with its disk" % name,
            "host": host,
            "module": PREFIX + "virtual_node",
            "args": {"name": name, "state": "absent"},
            "before": {"state": node["state"], "vcpus": size["vcpus"], "memory": size["memory"]},
            "after": {"state": "absent"},
        },
        {
            "title": "make %s from %s and start it" % (name, image),
            "host": host,
            "module": PREFIX + "virtual_node",
            "args": create,
            "before": {"state": "absent"},
            "after": dict(made, state="running"),
        },
    ]


def _must_fit(name: str, host: str, size: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Refuse what could not be made again once it is removed: the host may have changed since it was made."""
    room = {**answer["capacity"], **(answer["huge_pages"] if size.get("hugepages") else {})}
    disk = parse_size(size["disk"]) if size.get("disk") else 0
    for what, needed, there, shown in (
        ("max_vcpus", size["max_vcpus"], room["vcpus"], str),
        ("vcpus", size["vcpus"], room["vcpus"] - room["vcpus_used"] + size["vcpus"], str),
        ("max_memory", parse_size(size["max_memory"]), room["memory"], format_size),
        ("memory", parse_size(size["memory"]), room["memory"] - room["memory_used"] + parse_size(size["memory"]), format_size),
        # What removing the old disk frees is not counted: how much that is cannot be told from outside.
        ("disk", disk, disk if answer.get("disk_free") is None else answer["disk_free"], format_size),
    ):
        if needed > there:
            raise StepError(
                "%s could not be made again, so it is not removed: it has %s %s, and %s has %s for it" % (name, what, shown(needed), host, shown(max(0, there)))
            )
    if disk and (answer.get("image_size") or 0) > disk:
        raise StepError("%s is not removed: its disk has %s, and the image needs %s" % (name, format_size(disk), format_size(answer["image_size"])))


PLANNERS: dict[str, Planner] = {
    "host.drain": drain_host,
    "host.evacuate": evacuate_host,
    "node.move": move_node,
    "node.rebuild": rebuild_node,
    "service.adopt": adopt_service,
    "service.balance": balance_service,
    "service.create": create_service,
    "service.delete": delete_service,
    "service.reconcile": reconcile_service,
    "service.resize": resize_service,
    "service.scale": scale_service,
    "service.update": update_service,
}
