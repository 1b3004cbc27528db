# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do one step of a plan, if the world still is as it was planned."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._steps import PREFIX, unmet

LEFT = "lepton_steps_left"  # a fact of a host on which a step was found not done


class ActionModule(ActionBase):
    """Answers what the step's module answers. In check mode it only says what is left to do of the step."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = dict(self._task.args)
        step = args.pop("step")
        if not str(step["module"]).startswith(PREFIX):
            raise AnsibleActionFail("a step may only call modules of lepton.cloud, not %s" % step["module"])
        if self._task.check_mode:
            return self._look(step, args, task_vars or {})
        seen = self._module(step, args, task_vars, check=True)
        if seen.get("failed"):
            return seen
        trouble = unmet(step, seen.get("diff") or {})
        if trouble:
            raise AnsibleActionFail("%s: %s. Neither this step nor any after it was done" % (step["title"], trouble))
        return self._module(step, args, task_vars, check=False)

    def _look(self, step: dict[str, Any], defaults: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Answer what is left to do of the step. Once one is not done, neither is any after it."""
        earlier = any(variables["hostvars"][host].get("ansible_facts", {}).get(LEFT) for host in variables["groups"]["all"])
        if not earlier:
            seen = self._module(step, defaults, variables, check=True)
            if not seen.get("failed") and not seen.get("changed"):
                return seen
        before, after = step["before"], step["after"]
        fields = [{"field": field, "before": before.get(field), "after": after.get(field)} for field in {**before, **after}]
        changes = [dict(change, effective="now") for change in fields]
        return {"changed": True, "changes": changes, "diff": {"before": before, "after": after}, "ansible_facts": {LEFT: True}}

    def _module(self, step: dict[str, Any], defaults: dict[str, Any], task_vars: dict[str, Any] | None, *, check: bool) -> dict[str, Any]:
        """Call the step's module with the host's own options (`defaults`, from module_defaults) and its arguments."""
        before = self._task.check_mode
        self._task.check_mode = check
        try:
            answered: dict[str, Any] = self._execute_module(module_name=step["module"], module_args={**defaults, **step["args"]}, task_vars=task_vars)
        finally:
            self._task.check_mode = before
        return answered
