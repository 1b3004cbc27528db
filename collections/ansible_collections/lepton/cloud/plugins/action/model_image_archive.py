# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch an image's archive from a host, or bring it to one, over the connection that Ansible has to it."""

from __future__ import annotations

import os
import shutil
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils._asking import ask


class ActionModule(ActionBase):
    """Answers what the module answers. Files go over the connection as a stream: `fetch` with become would hold them in memory."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args, variables = dict(self._task.args), task_vars or {}
        archive = args["archive"]
        if args["state"] == "loaded" and not self._task.check_mode:
            # Asked first: where it is already, nothing need be sent.
            seen = ask(self, args, variables, check=True)
            if not seen.get("changed"):
                return {**result, **seen}
            if not os.path.isfile(archive):
                raise AnsibleActionFail("there is no archive %s to bring" % archive)
            if not self._connection._shell.tmpdir:
                self._make_tmp_path()
            args["archive"] = self._connection._shell.join_path(self._connection._shell.tmpdir, "image.tar")
            self._transfer_file(archive, args["archive"])
            self._fixup_perms2((self._connection._shell.tmpdir, args["archive"]))
        answered = ask(self, args, variables, check=self._task.check_mode)
        if "path" in answered:
            os.makedirs(os.path.dirname(archive), mode=0o700, exist_ok=True)
            try:
                self._connection.fetch_file(answered["path"], archive)
                if os.path.getsize(archive) != answered["size"]:
                    raise AnsibleActionFail("%s of %s bytes arrived" % (os.path.getsize(archive), answered["size"]))
            finally:
                self._remove_remote(os.path.dirname(answered["path"]))
        return {**result, **answered}

    def _remove_remote(self, folder: str) -> None:
        if self._connection.transport == "local":
            shutil.rmtree(folder, ignore_errors=True)
        else:
            self._low_level_execute_command(self._connection._shell.remove(folder, recurse=True), sudoable=True)
