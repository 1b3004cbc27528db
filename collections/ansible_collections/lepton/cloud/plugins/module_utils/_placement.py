# Copyright (c) 2026, Lepton contributors
# BSD-2-Clause license (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Which host has a node, and which host gets a new one: pure. PRIVATE to the collection and to the Lepton bot."""

from __future__ import annotations

from typing import Any, Mapping

from ._units import format_size

MIB = 1024 * 1024


class PlacementError(ValueError):
    """There is no such host; the text says what each host answered."""


def locate(node: str, answers: Mapping[str, list[dict[str, Any]] | None]) -> str:
    """Return the one host that has the node. `answers` holds each host's nodes, None for a host that did not answer."""
    silent = sorted(host for host, nodes in answers.items() if nodes is None)
    found = sorted(host for host, nodes in answers.items() if nodes and any(item["name"] == node for item in nodes))
    if len(found) > 1:
        raise PlacementError("several hosts have a node %s: %s. Which one is meant cannot be told: release or rename all but one" % (node, ", ".join(found)))
    if not found:
        asked = sorted(set(answers) - set(silent))
        unknown = "; %s did not answer and may have it" % ", ".join(silent) if silent else ""
        raise PlacementError("no host has a node %s (asked %s%s)" % (ascii(node[:64])[1:-1], ", ".join(asked) or "none", unknown))
    return found[0]


def place(node: str, *, vcpus: int, memory: int, host: str | None, answers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return (host, why) for a new node, or the host that already has a node of this name.

    `answers` holds each host's `capacity` and `nodes` as M(lepton.cloud.host_info) returns them, empty for a host that
    did not answer. The host with most free memory is chosen; ties go to the first name.
    """
    having = sorted(name for name, answer in answers.items() if any(item["name"] == node for item in answer.get("nodes", ())))
    if host is not None and host not in answers:
        raise PlacementError("there is no host %s: expected one of %s" % (ascii(host[:64])[1:-1], ", ".join(sorted(answers)) or "none"))
    if having:
        if host is not None and having != [host]:
            raise PlacementError("a node %s exists already on %s" % (node, ", ".join(having)))
        return locate(node, {name: list(answer.get("nodes", ())) for name, answer in answers.items()}), "it has this node already"
    rooms = {name: answer["capacity"] for name, answer in answers.items() if answer.get("capacity") and host in (None, name)}
    fitting = [name for name, room in rooms.items() if room["vcpus_free"] >= vcpus and room["memory_free"] >= memory]
    if not fitting:
        shown = "; ".join(
            "%s has %d vCPUs and %s free" % (name, room["vcpus_free"], format_size(room["memory_free"] // MIB * MIB)) for name, room in sorted(rooms.items())
        )
        raise PlacementError("no host has room for %d vCPUs and %s: %s" % (vcpus, format_size(memory), shown or "no host answered"))
    best = min(fitting, key=lambda name: (-rooms[name]["memory_free"], name))
    return best, "most free memory: %s of %d hosts with room" % (format_size(rooms[best]["memory_free"] // MIB * MIB), len(fitting))
