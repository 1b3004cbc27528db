# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do one step of a plan, if the world still is as it was planned."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from ..module_utils._steps import DECLARED, NOTHING, StepError, due, field_name, noted, options_of, unmet


class ActionModule(ActionBase):
    """Answers what the step's module answers, and `outcomes` for the next step. In check mode it only says what is left to do."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("step", "outcomes"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        step, variables = self._task.args["step"], task_vars or {}
        outcomes = {**NOTHING, **(self._task.args.get("outcomes") or {})}
        try:
            options = variables["hostvars"][step["host"]].get(options_of(step)) or {}
        except StepError as error:
            raise AnsibleActionFail(str(error)) from error
        if self._task.check_mode:
            return self._look(step, options, variables, outcomes)
        if not due(step, outcomes):
            return {"skipped": True, "skip_reason": "not needed after what came of the steps before", "outcomes": outcomes}
        try:
            answered = self._do(step, options, variables)
        except AnsibleError as error:  # a host that is away, a secret that cannot be read: an end of this step, and not of the plan
            answered = {"failed": True, "msg": "%s on %s: %s" % (step["title"], step["host"], error)}
        trouble = str(answered.get("msg") or "it failed without a message") if answered.get("failed") else ""
        answered["outcomes"] = noted(step, outcomes, trouble)
        told = {**step["before"], **step["after"]}
        changes = [change for change in answered.get("changes") or () if not told or change["field"] in told]
        answered["changes"] = [dict(change, field=field_name(step, change["field"])) for change in changes]
        return answered

    def _do(self, step: dict[str, Any], options: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        if step["before"] or step["after"]:
            seen = self._module(step, options, variables, check=True)
            if seen.get("failed"):
                return seen
            trouble = unmet(step, seen.get("diff") or {})
            if trouble:
                return {"failed": True, "msg": "%s: %s. It was not done" % (step["title"], trouble)}
        return self._module(step, options, variables, check=False)

    def _look(self, step: dict[str, Any], options: dict[str, Any], variables: dict[str, Any], outcomes: dict[str, Any]) -> dict[str, Any]:
        """Answer what is left to do of the step. Once one is not done, neither is any after it."""
        if not (step["before"] or step["after"]):
            return {"skipped": True, "outcomes": outcomes}
        if not outcomes.get("left"):
            seen = self._module(step, options, variables, check=True)
            if not seen.get("failed") and not seen.get("changed"):
                return {**seen, "outcomes": outcomes}
        before, after = step["before"], step["after"]
        fields = [{"field": field_name(step, field), "before": before.get(field), "after": after.get(field)} for field in {**before, **after}]
        changes = [dict(change, effective="now") for change in fields]
        return {"changed": True, "changes": changes, "diff": {"before": before, "after": after}, "outcomes": {**outcomes, "left": True}}

    def _module(self, step: dict[str, Any], options: dict[str, Any], variables: dict[str, Any], *, check: bool) -> dict[str, Any]:
        """Call the step's module with the options that its kind has on this host, and its arguments."""
        args = {**options, **step["args"]}
        if "secrets" in args:
            known = variables["hostvars"][step["host"]].get("lepton_secrets") or {}
            missing = sorted(name for name in args["secrets"] if name not in known)
            if missing:
                return {"failed": True, "msg": "lepton_secrets of %s has no %s" % (step["host"], ", ".join(missing))}
            args["secrets"] = {name: known[name] for name in args["secrets"]}
        if args.get("first_boot") == DECLARED:
            args["first_boot"] = variables["hostvars"][step["host"]].get("lepton_first_boot") or None
            if args["first_boot"] is None:
                return {"failed": True, "msg": "%s has no lepton_first_boot, and the node was to be told what that says" % step["host"]}
        task = self._task
        before = task.action, task.args, task.check_mode
        task.action, task.args, task.check_mode = step["module"], args, check  # what the module's own action plugin goes by
        try:
            plugin = self._shared_loader_obj.action_loader.get(
                task.action, task=task, connection=self._connection, play_context=self._play_context, loader=self._loader, templar=self._templar,
                shared_loader_obj=self._shared_loader_obj,
            )  # fmt: skip
            return dict(self._execute_module(task_vars=variables) if plugin is None else plugin.run(task_vars=variables))
        finally:
            task.action, task.args, task.check_mode = before
