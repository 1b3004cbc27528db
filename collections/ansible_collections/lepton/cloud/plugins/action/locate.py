# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the one host that has something, or that is to have it, from what every host answered."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._placement import PlacementError, choose, locate
from ..plugin_utils._answers import answers_of


class ActionModule(ActionBase):
    """Answers `host`; none or several is an error that says where was asked."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("name", "kind", "group", "answers", "new", "host", "sole"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        answers = answers_of(task_vars or {}, args["group"], args["answers"])
        try:
            name, kind, host = args["name"], args.get("kind", "node"), args.get("host")
            found = choose(name, answers, kind, host, args["group"]) if args.get("new") else locate(name, answers, kind, host, sole=bool(args.get("sole")))
            result.update(changed=False, host=found)
        except PlacementError as error:
            raise AnsibleActionFail(str(error)) from error
        return result
