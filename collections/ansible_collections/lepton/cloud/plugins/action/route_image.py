# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose where an image is taken from and brought to, from what every host answered."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._placement import PlacementError, route_image
from ..plugin_utils._answers import answers_of


class ActionModule(ActionBase):
    """Answers `from_host`, `to_hosts`, `id` and `without`; that no host has the image is an error that says where was asked."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("image", "from_host", "to_hosts", "group", "answers"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        answers = answers_of(task_vars or {}, args["group"], args["answers"])
        try:
            route = route_image(args["image"], from_host=args.get("from_host"), to_hosts=args.get("to_hosts"), answers=answers)
        except PlacementError as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(changed=False, **route._asdict())
        return result
