# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the host for a new node or container, from what every host answered."""

from __future__ import annotations

from collections import Counter
from typing import Any, Mapping

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils._fleet import WHOLE, Request
from ..module_utils._node import NodeError
from ..module_utils._packing import POLICIES
from ..module_utils._pci import gpus_of
from ..module_utils._placement import PlacementError, fit, place, place_container
from ..module_utils._units import parse_size
from ..plugin_utils._answers import answers_of

MOST = 1000  # nodes that are asked for together
THESE = "these"  # the group of those that are asked for together


class ActionModule(ActionBase):
    """Answers `host` and `why`, and fails where no host has room; or with `count`, `fit`: how many nodes fit where, and what hosts are lacking for one more."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(
        ("node", "container", "image", "vcpus", "cpus", "memory", "devices", "host", "group", "answers", "host_labels", "near", "apart", "policy", "numa",
         "count", "spread", "hugepages")
    )  # fmt: skip

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        answers = answers_of(task_vars or {}, args["group"], args["answers"])
        try:
            if "container" in args:
                found = _container(args, answers)
            else:
                hostvars = (task_vars or {})["hostvars"]
                labels = {name: _labels(hostvars[name].get("lepton_labels")) for name in answers}
                found = _node(args, answers, labels)
        except (PlacementError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(found, changed=False)
        return result


def _container(args: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    cpus, memory = float(args.get("cpus") or 0), parse_size(args["memory"]) if args.get("memory") else 0
    host, why = place_container(args["container"], image=args.get("image"), cpus=cpus, memory=memory, host=args.get("host") or None, answers=answers)
    return {"host": host, "why": why}


def _node(args: Mapping[str, Any], answers: Mapping[str, Any], labels: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    words = [str(pair).partition("=") for pair in args.get("host_labels") or ()]
    spread, memory = str(args.get("spread") or ""), parse_size(args["memory"]) if args.get("memory") else 0
    request = Request(
        cpus=int(args["vcpus"]) * WHOLE, memory=memory, gpus=gpus_of([str(word) for word in args.get("devices") or ()]),
        labels=tuple((name, value) for name, _equals, value in words), group=THESE if spread else "", spread=spread,
        near=tuple(map(str, args.get("near") or ())), apart=tuple(map(str, args.get("apart") or ())),
        numa=boolean(args.get("numa") or False), huge=boolean(args.get("hugepages") or False),
    )  # fmt: skip
    policy = str(args.get("policy") or "spread")
    if policy not in POLICIES:
        raise PlacementError("there is no policy %s: expected one of %s" % (ascii(policy[:40]), ", ".join(POLICIES)))
    if "count" not in args:
        host, why = place(args["node"], request, host=args.get("host") or None, answers=answers, labels=labels, policy=policy)
        return {"host": host, "why": why}
    if request.cpus < WHOLE or not 1 <= int(args["count"]) <= MOST:
        raise PlacementError("vcpus must be at least 1, not %s, and count from 1 to %d, not %s" % (args["vcpus"], MOST, args["count"]))
    found = fit(request, int(args["count"]), answers=answers, labels=labels, policy=policy)
    counted = Counter(found.hosts)
    lacking = [{"host": name, "why": why} for name, why in found.lacking]
    return {"fit": {"nodes": len(found.hosts), "hosts": [{"host": name, "nodes": counted[name]} for name in sorted(counted)], "lacking": lacking}}


def _labels(given: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in dict(given or {}).items()}
