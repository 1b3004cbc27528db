# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a deployment's options from its declaration, and show its rollout while the module still watches it."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils._progress import listening, without_pipe


class ActionModule(ActionBase):
    """Answers what the module answers."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        declared = args.pop("declaration", None)
        if declared is not None:
            if not isinstance(declared, dict):
                raise AnsibleActionFail("declaration: expected a mapping of options, not %s" % type(declared).__name__)
            begins = {"initial_replicas": declared["replicas"]} if "replicas" in declared else {}
            args = {**{name: value for name, value in declared.items() if name != "replicas"}, **begins, "complete": True, **args}
        with listening(self._connection.transport) as progress:
            result.update(without_pipe(self._execute_module(module_args={**args, **progress}, task_vars=task_vars)))
        return result
