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

from ..module_utils._backup import DISK, ID
from ..module_utils._node import NodeError, check_name
from ..plugin_utils._asking import ask


class ActionModule(ActionBase):
    """Answers what the module answers. Files go over the connections as streams, by way of the controller, one at a time.

    What hosts answer names no path, here or there: paths are of the node and the backup that were asked for.
    """

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args, variables = dict(self._task.args), task_vars or {}
        check, state = self._task.check_mode, args.get("state")
        if check or state not in ("sent", "received") or not all(args.get(name) for name in ("directory", "node", "backup")):
            return {**result, **ask(self, args, variables, check=check)}
        node, backup = str(args["node"]), str(args["backup"])
        way = _way(node, backup)
        if state == "sent":
            answered = ask(self, args, variables, check=False)
            if not answered.get("failed") and answered["size"] is not None:
                self._fetch(os.path.join(str(args["directory"]), node, backup, DISK), way, int(answered["size"]))
            return {**result, **answered}
        try:
            if os.path.exists(way):
                if not self._connection._shell.tmpdir:
                    self._make_tmp_path()
                args["way"] = self._connection._shell.join_path(self._connection._shell.tmpdir, DISK)
                self._transfer_file(way, args["way"])
            return {**result, **ask(self, args, variables, check=False)}
        finally:
            shutil.rmtree(os.path.dirname(way), ignore_errors=True)

    def _fetch(self, path: str, way: str, size: int) -> None:
        """Have a file of the host here. Who may not read it as the connection's user cannot fetch it: such a host is reached as root."""
        shutil.rmtree(os.path.dirname(way), ignore_errors=True)  # what a run has left that was killed
        os.makedirs(os.path.dirname(way), mode=0o700)
        free = shutil.disk_usage(os.path.dirname(way)).free
        if free < size:
            raise AnsibleActionFail("there is no room for a backup on its way: %s has %d bytes, and %d are free in %s" % (path, size, free, way))
        try:
            self._connection.fetch_file(path, way)
            if os.path.getsize(way) != size:
                raise AnsibleActionFail("%d bytes of %s arrived, and not %d" % (os.path.getsize(way), path, size))
        except BaseException:
            shutil.rmtree(os.path.dirname(way), ignore_errors=True)
            raise


def _way(node: str, backup: str) -> str:
    """Return the file of this machine in which a backup stands on its way. There is one run at a time that moves a node's backups."""
    try:
        check_name(node)
    except NodeError as error:
        raise AnsibleActionFail(str(error)) from error
    if not ID.fullmatch(backup):
        raise AnsibleActionFail("%s is not the id of a backup" % ascii(backup[:40]))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "lepton", "backups-on-their-way", node, backup)
