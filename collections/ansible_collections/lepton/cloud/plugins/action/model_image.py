# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a model's server to the host that builds its image, and make the image's bill of materials in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils._inventory_secrets import secret_values
from ..plugin_utils._sbom import bill_of_materials

SERVING = Path(__file__).parents[2] / "serving"
SERVERS = {"onnx": "onnx_server.py", "pytorch": "torchscript_server.py", "tensorflow": "tensorflow_server.py"}
SHORTEST = 6  # characters of a secret that is looked for: shorter ones are in every text


def serving(framework: str | None) -> dict[str, Any]:
    """Return what serves a framework's models: {installer, files, requirements}."""
    given: dict[str, Any] = {"installer": (SERVING / "install.py").read_text()}
    if framework in SERVERS:
        given["files"] = {name: (SERVING / "runtime" / name).read_text() for name in ("model_runtime.py", SERVERS[framework])}
        given["requirements"] = (SERVING / "requirements" / f"{framework}.txt").read_text()
    return given


class ActionModule(ActionBase):
    """Answers what the module answers. Secrets of the inventory among what goes into an image are refused."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = {**self._task.args, "serving": serving(self._task.args.get("framework"))}
        secrets = {text for text in secret_values(variables.get("lepton_secrets") or {}, named=True) if len(text) >= SHORTEST}
        for option in ("environment", "command"):
            given = args.get(option) or ()
            texts = [str(text) for text in (given.values() if isinstance(given, dict) else given)]
            if any(secret in text for secret in secrets for text in texts):
                raise AnsibleActionFail("%s: it holds a value of lepton_secrets, and everybody who gets the image could read it" % option)
        answered = self._execute_module(module_args=args, task_vars=variables)
        components = answered.pop("components", None)
        if components is not None and not answered.get("failed"):
            sbom = bill_of_materials(args["name"], components)
            answered = self._execute_module(module_args={**args, "sbom": sbom}, task_vars=variables)
        # The server's own code would be in every log and every message.
        (answered.get("invocation") or {}).get("module_args", {}).update(serving={}, sbom=None)
        result.update(answered)
        return result
