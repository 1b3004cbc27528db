# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""First task of every Lepton playbook: check the request as every other door does, and take its locks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

from ..module_utils._leases import LeaseRefused, take_leases
from ..module_utils._operation import SpecError, check_arguments, read_spec
from ..plugin_utils._inventory_secrets import leave_secrets

OURS = ("ansible_", "lepton_")  # extra variables with these prefixes are settings, not parameters


class ActionModule(ActionBase):
    """Answers `arguments`, typed and complete; fails on anything the operation does not know."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("hosts",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        playbook = Path(self._task.get_path().rpartition(":")[0])
        operation = "%s.%s" % (playbook.parent.name, playbook.stem)
        meta_path = playbook.with_suffix(".meta.yml")
        try:
            spec = read_spec(self._loader.load_from_file(str(meta_path)), playbook.stem)
        except SpecError as error:
            raise AnsibleActionFail("%s: %s" % (meta_path, error)) from error
        extra = load_extra_vars(self._loader)
        given = {name: self._templar.template(value) for name, value in extra.items() if not name.startswith(OURS)}
        arguments, problems = check_arguments(spec, given)
        if problems:
            raise AnsibleActionFail("%s: %s" % (operation, "; ".join(map(str, problems))))
        if list(variables.get("ansible_run_tags", ["all"])) != ["all"] or variables.get("ansible_skip_tags"):
            raise AnsibleActionFail("%s is one thing and cannot be run by tags" % operation)
        group = self._task.args.get("hosts")
        if group and not variables.get("groups", {}).get(group):
            raise AnsibleActionFail("%s: the inventory has no host in the group %s, so there is nothing to do it on" % (operation, group))
        leave_secrets(os.environ.get("LEPTON_SECRETS"), variables.get("hostvars", {}))
        if spec.risk != "read" and not self._task.check_mode:
            self._lock(operation, arguments)
        result.update(changed=False, operation=operation, arguments=arguments)
        return result

    def _lock(self, operation: str, arguments: dict[str, Any]) -> None:
        """Ask the Lepton service for leases, unless it started this run itself or there is none."""
        address = os.environ.get("LEPTON_SOCKET")
        if os.environ.get("LEPTON_RUN"):
            return
        required = os.environ.get("LEPTON_LOCKS") == "required"
        if not address:
            if required:
                raise AnsibleActionFail("LEPTON_LOCKS asks for locks, and LEPTON_SOCKET names no service that could give them")
            return
        try:
            # The worker that runs this task ends with it; the playbook it belongs to is what holds the lease.
            taken = take_leases(address, operation, arguments, pid=os.getppid())
        except LeaseRefused as error:
            raise AnsibleActionFail(str(error)) from error
        if required and not taken:
            raise AnsibleActionFail("LEPTON_LOCKS asks for locks, and no Lepton service answers at %s" % address)
