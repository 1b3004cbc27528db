# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a node's backups to another host, over the connections that Ansible has to both."""

from __future__ import annotations

import os
import shutil
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Answers what the module answers. Files go over the connections as streams, by way of a folder of the controller."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args, variables = dict(self._task.args), task_vars or {}
        way = args["way"]
        if args["state"] == "sent":
            answered = self._ask(args, variables)
            for backup in [] if self._task.check_mode or answered.get("failed") else answered["backups"]:
                if backup["path"]:
                    self._fetch(backup, os.path.join(way, backup["id"]))
            return {**result, **answered}
        if self._task.check_mode:
            return {**result, **self._ask(args, variables)}
        arriving = [backup["id"] for backup in args.get("backups") or () if backup["path"]]
        if arriving:
            if not self._connection._shell.tmpdir:
                self._make_tmp_path()
            args["way"] = self._connection._shell.tmpdir
            for identity in arriving:
                self._transfer_file(os.path.join(way, identity), self._connection._shell.join_path(args["way"], identity))
        return {**result, **self._ask(args, variables)}

    def _ask(self, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        answered: dict[str, Any] = self._execute_module(module_args=args, task_vars=variables)
        return answered

    def _fetch(self, backup: dict[str, Any], path: str) -> None:
        """Have a file of the host here. Who may not read it as the connection's user cannot fetch it: such a host is reached as root."""
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if shutil.disk_usage(os.path.dirname(path)).free < backup["size"]:
            raise AnsibleActionFail("there is no room for backup %s on its way: %s has less than its %s bytes" % (backup["id"], path, backup["size"]))
        self._connection.fetch_file(backup["path"], path)
        if os.path.getsize(path) != backup["size"]:
            raise AnsibleActionFail("%s of %s bytes of backup %s arrived" % (os.path.getsize(path), backup["size"], backup["id"]))
