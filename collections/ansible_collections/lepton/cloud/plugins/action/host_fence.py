# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a fence agent turn a machine off, and see that it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._fencing import FenceError, asked, check_agent, is_on, said

PATH = "%s:/usr/sbin:/usr/local/sbin" % os.environ.get("PATH", os.defpath)


class ActionModule(ActionBase):
    """Answers `changed`. The agent runs on the controller: the machine itself does not answer, which is why it is turned off."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("agent", "options", "wait_seconds"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self.validate_argument_spec(
            {
                "agent": {"type": "str", "required": True},
                "options": {"type": "dict", "default": {}, "no_log": True},
                "wait_seconds": {"type": "int", "default": 120},
            }
        )[1]
        agent, options, seconds = args["agent"], args["options"], args["wait_seconds"]

        def ask(action: str) -> tuple[int, str]:
            with subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
                start_new_session=True, encoding="utf-8", errors="replace",
            ) as process:  # fmt: skip
                try:
                    out, err = process.communicate(asked(action, options), timeout=seconds)
                except BaseException:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)  # with what it has started: nothing is to be turned off later
                    raise
            return process.returncode, said(err if err.strip() else out, options)

        try:
            check_agent(agent)
            asked("status", options)
            program = shutil.which(agent, path=PATH) or ""
            if not program:
                raise AnsibleActionFail("%s is not on this controller: install the package fence-agents" % agent)
            before = is_on(ask("status")[0])
            if not self._task.check_mode:
                # Also where it is said to be off: that may be the middle of a restart, or an agent that could not even begin and ended with that code.
                code, why = ask("off")
                if code:
                    raise AnsibleActionFail("%s could not turn it off: %s. Whether it runs is not known" % (agent, why))
                code, why = ask("status")
                if is_on(code) is not False:
                    raise AnsibleActionFail("%s turned it off, and then did not say that it is off: %s" % (agent, why))
        except FenceError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            raise AnsibleActionFail("%s cannot be run: %s. Whether the machine runs is not known" % (agent, error.strerror)) from error
        except subprocess.TimeoutExpired as error:
            raise AnsibleActionFail("%s did not end within %d s: whether the machine runs is not known" % (agent, seconds)) from error
        shown = {True: "on", False: "off", None: "unknown"}
        diff = {"before": {"power": shown[before]}, "after": {"power": "off"}}
        changes = [] if before is False else [{"field": "power", "before": shown[before], "after": "off", "effective": "now"}]
        result.update(changed=before is not False, changes=changes, diff=diff)
        return result
