# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the host for a new node or container, from what every host answered."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._fleet import WHOLE, Request
from ..module_utils._node import NodeError
from ..module_utils._packing import POLICIES
from ..module_utils._pci import gpus_of
from ..module_utils._placement import PlacementError, place, place_container
from ..module_utils._units import parse_size
from ..plugin_utils._answers import answers_of


class ActionModule(ActionBase):
    """Answers `host` and `why`; where no host has room, the error says what each has."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(
        ("node", "container", "image", "vcpus", "cpus", "memory", "devices", "host", "group", "answers", "host_labels", "near", "apart", "policy")
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        answers = answers_of(task_vars or {}, args["group"], args["answers"])
        try:
            memory, wanted = parse_size(args["memory"]) if args.get("memory") else 0, args.get("host") or None
            if "container" in args:
                cpus = float(args.get("cpus") or 0)
                host, why = place_container(args["container"], image=args.get("image"), cpus=cpus, memory=memory, host=wanted, answers=answers)
            else:
                hostvars = (task_vars or {})["hostvars"]
                labels = {name: _labels(hostvars[name].get("lepton_labels")) for name in answers}
                words = [str(pair).partition("=") for pair in args.get("host_labels") or ()]
                request = Request(
                    cpus=int(args["vcpus"]) * WHOLE, memory=memory, gpus=gpus_of([str(word) for word in args.get("devices") or ()]),
                    labels=tuple((name, value) for name, _equals, value in words),
                    near=tuple(map(str, args.get("near") or ())), apart=tuple(map(str, args.get("apart") or ())),
                )  # fmt: skip
                policy = str(args.get("policy") or "spread")
                if policy not in POLICIES:
                    raise PlacementError("there is no policy %s: expected one of %s" % (ascii(policy[:40]), ", ".join(POLICIES)))
                host, why = place(args["node"], request, host=wanted, answers=answers, labels=labels, policy=policy)
        except (PlacementError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(changed=False, host=host, why=why)
        return result


def _labels(given: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in dict(given or {}).items()}
