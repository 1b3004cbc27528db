# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose a size for a node by what it has used, of what its host measured and of what Prometheus knows."""

from __future__ import annotations

import json
import time
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode

from ansible.errors import AnsibleActionFail
from ansible.module_utils.urls import open_url
from ansible.plugins.action import ActionBase

from ..module_utils._node import NodeError, Size
from ..module_utils._sizing import Bounds, choose_size
from ..module_utils._units import format_size, parse_size

STEP_SECONDS = 15
USED = "rate(libvirt_domain_info_cpu_time_seconds_total{domain=%s}[1m])"
ANSWER_SECONDS = 10


class ActionModule(ActionBase):
    """Answers a size and its reasons; where too little is known, the error says of what."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("usage", "prometheus", "window_minutes", "min_vcpus", "max_vcpus", "min_memory", "max_memory"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args, usage = self._task.args, self._task.args["usage"]
        node = usage["node"]
        size = Size(int(node["vcpus"]), parse_size(node["memory"]), int(node["max_vcpus"]), parse_size(node["max_memory"]))
        try:
            bounds = Bounds(
                int(args.get("min_vcpus") or 1), int(args.get("max_vcpus") or size.max_vcpus), parse_size(args.get("min_memory") or "128MiB"),
                parse_size(args["max_memory"]) if args.get("max_memory") else size.max_memory,
            )  # fmt: skip
            used, source = list(usage["vcpus_used"]), "its host, just now"
            if args.get("prometheus"):
                minutes = int(args.get("window_minutes") or 60)
                used, source = _asked(str(args["prometheus"]), str(node["name"]), minutes), "Prometheus, over %d minutes" % minutes
            choice = choose_size(size, used, list(usage["memory_used"]), bounds)
        except ValueError as error:  # NodeError is one
            raise AnsibleActionFail("%s: %s" % (node["name"], error)) from error
        reasons = ["by %s: %s" % (source, choice.reasons[0]), *choice.reasons[1:]]
        result.update(changed=False, vcpus=choice.vcpus, memory=format_size(choice.memory), size_reasons=reasons)
        return result


def _asked(address: str, node: str, minutes: int) -> list[float]:
    """Return how many vCPUs a node kept busy at each tick, by Prometheus; raise NodeError where that does not answer."""
    now = time.time()
    query = urlencode({"query": USED % json.dumps(node), "start": now - 60 * minutes, "end": now, "step": STEP_SECONDS})
    try:
        answer = json.loads(open_url("%s/api/v1/query_range?%s" % (address.rstrip("/"), query), timeout=ANSWER_SECONDS, follow_redirects="none").read())
        series = [[float(value) for _when, value in each["values"]] for each in answer["data"]["result"]]
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise NodeError("Prometheus at %s does not tell what it uses: %s" % (address, error)) from error
    if len(series) > 1:
        raise NodeError("Prometheus at %s knows %d nodes of that name: which is meant cannot be told" % (address, len(series)))
    return series[0] if series else []
