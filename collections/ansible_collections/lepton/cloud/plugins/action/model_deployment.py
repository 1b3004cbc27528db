# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a deployment's options from its declaration, and show its rollout while the module still watches it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._rollout_status import SAID


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
        if self._connection.transport != "local":  # a FIFO does not reach farther
            result.update(self._execute_module(module_args=args, task_vars=task_vars))
            return result
        folder = tempfile.mkdtemp(prefix="lepton-progress")
        pipe = Path(folder) / "pipe"
        os.mkfifo(pipe, 0o600)
        # Both ends, so that neither side waits for the other to open it.
        held = os.open(pipe, os.O_RDWR)
        reader = threading.Thread(target=_show, args=(open(pipe, encoding="utf-8", errors="replace"),), daemon=True)
        reader.start()
        try:
            result.update(self._execute_module(module_args={**args, "progress_pipe": str(pipe)}, task_vars=task_vars))
        finally:
            os.close(held)
            reader.join(5)
            shutil.rmtree(folder, ignore_errors=True)
        (result.get("invocation") or {}).get("module_args", {}).pop("progress_pipe", None)
        return result


def _show(pipe: IO[str]) -> None:
    with pipe as lines:
        for line in lines:
            Display().display(SAID + line.rstrip("\n"))
