# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan a composite operation as a list of steps, or take the list that was approved."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._steps import StepError, check_plan, make_plan
from ..plugin_utils._answers import answers_of

APPROVED = "lepton_plan"  # the extra variable in which an approved plan comes back


class ActionModule(ActionBase):
    """Answers `steps`. An approved plan is only looked at in check mode; before it is done, the same must be planned again."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("operation", "arguments", "answers", "declared"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = self._task.args
        answers = {group: answers_of(variables, group, registered) for group, registered in args["answers"].items()}
        approved = variables.get(APPROVED)
        try:
            steps = None if approved is None else check_plan(approved)
            if steps is not None and self._task.check_mode:
                result.update(changed=False, steps=steps)
                return result
            plan = make_plan(args["operation"], args["arguments"], answers, args.get("declared") or {})
            if steps is not None and plan["digest"] != approved["digest"]:
                raise StepError("what would be planned now is not what was approved, so nothing was done: ask again for a new plan")
        except StepError as error:
            raise AnsibleActionFail(str(error)) from error
        # The steps say themselves what they change; to plan changes nothing.
        result.update(changed=False, steps=plan["steps"], lepton_plan=plan)
        return result
