#!/usr/bin/python
# Copyright (c) 2026, Lepton contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a running service work with what its files say now."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_files
short_description: Have a running service of systemd's work with what its files say now
version_added: 0.2.0
author:
  - Lepton contributors (@lepton-cloud)
description:
  - Restarts or reloads a service whose files changed after it had read them. A service that does not run is left so, since it reads them when it starts.
  - A handler does the same only in the run that changed the file. Where that run ends before its handlers, by a lost connection or an error in
    another task, no later run would notify them again, and the service would go on with what it read before. This module looks at the service and the
    files, so it does not matter who changed them and when.
extends_documentation_fragment:
  - lepton.cloud.attributes
attributes:
  check_mode:
    support: full
    details: Of the files as they are. What other tasks of the same run would have written is not seen.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - The unit.
    type: str
    required: true
  restart:
    description:
      - Files that the service reads only when it starts, and units of systemd's that say how. Of a folder, all that is below it.
      - Those that do not exist are left out.
    type: list
    elements: path
    default: []
  reload:
    description:
      - Files that the service also reads when it is reloaded.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Have HAProxy work with its configuration
  lepton.cloud.service_files:
    name: haproxy
    restart: [/etc/default/haproxy]
    reload: [/etc/haproxy/haproxy.cfg]
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be.
  type: str
  choices: [none, reload, restart]
  returned: success
  sample: reload
file:
  description: The file that the service had not read. Empty where it had read all.
  type: str
  returned: success
  sample: /etc/haproxy/haproxy.cfg
"""

import hashlib
import os
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._service_files import File, needed, told_of

# What was reloaded is remembered until the machine restarts, when every service reads its files anew.
TOLD_DIR = "/run/lepton/told"


def look(paths: list[str]) -> list[File]:
    """Return these files, and of folders what is below them, as they are now."""
    found = []
    for path in paths:
        below = [os.path.join(folder, name) for folder, folders, names in os.walk(path) for name in ["", *names]]
        for name in below or [path]:
            try:
                changed = os.stat(name).st_mtime
                content = b""
                if not os.path.isdir(name):
                    with open(name, "rb") as file:
                        content = file.read()
            except FileNotFoundError:
                continue
            found.append(File(name.rstrip("/"), changed, hashlib.sha256(content).hexdigest()))
    return found


def remembered(name: str) -> str:
    try:
        with open(os.path.join(TOLD_DIR, name), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def remember(module: AnsibleModule, name: str, told: str) -> None:
    os.makedirs(TOLD_DIR, mode=0o755, exist_ok=True)
    partial = os.path.join(TOLD_DIR, ".%s.%d" % (name, os.getpid()))
    with open(partial, "w", encoding="utf-8") as file:
        file.write(told)
    module.atomic_move(partial, os.path.join(TOLD_DIR, name))


def main() -> None:
    paths = {"type": "list", "elements": "path", "default": []}
    module = AnsibleModule(argument_spec={"name": {"type": "str", "required": True}, "restart": paths, "reload": paths}, supports_check_mode=True)
    systemctl = module.get_bin_path("systemctl", required=True)
    name = module.params["name"]
    unit = name if "." in name else name + ".service"

    def run(*words: str) -> str:
        code, out, err = module.run_command([systemctl, *words])
        if code:
            module.fail_json(msg="%s: systemctl %s failed: %s. See: journalctl --unit %s" % (name, " ".join(words[:1]), err.strip(), unit))
        return out

    shown = dict(
        line.split("=", 1) for line in run("show", "--property=LoadState,ActiveState,ExecMainStartTimestampMonotonic,NeedDaemonReload", "--", unit).splitlines()
    )
    if shown["LoadState"] == "not-found":
        module.fail_json(msg="%s: this host has no such unit; is it installed?" % name)
    started = None
    if shown["ActiveState"] in ("active", "reloading"):
        started = time.time() - time.monotonic() + int(shown["ExecMainStartTimestampMonotonic"]) / 1e6
    restart, reload = look(module.params["restart"]), look(module.params["reload"])
    would_tell = told_of(reload, shown["ExecMainStartTimestampMonotonic"])
    todo = needed(started, restart, reload, told=remembered(unit), would_tell=would_tell)
    if todo is not None and not module.check_mode:
        if shown["NeedDaemonReload"] == "yes":
            run("daemon-reload")
        run(todo.action, "--", unit)
        if todo.action == "reload":
            remember(module, unit, would_tell)
    action, file = todo or ("none", "")
    diff = {"before": "%s has not read %s\n" % (name, file) if todo else "", "after": "%s: %s\n" % (name, action) if todo else ""}
    module.exit_json(changed=todo is not None, action=action, file=file, diff=diff)


if __name__ == "__main__":
    main()
