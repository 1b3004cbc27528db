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
      - Files that the service reads only when it starts. Of a folder, all that is below it. Those that do not exist are left out.
      - Its unit and what is dropped into that need not be named. Where systemd has not read them, it does, and the service is restarted.
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
  description: The file that the service had not read, or V(its unit). Empty where it had read all.
  type: str
  returned: success
  sample: /etc/haproxy/haproxy.cfg
"""

import datetime
import hashlib
import os
import stat
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._service_files import File, needed, told_of

# What was read is remembered until the machine restarts, when every service reads its files anew.
TOLD_DIR = "/run/lepton/told"
PROPERTIES = (
    "LoadState", "ActiveState", "MainPID", "ExecMainStartTimestamp", "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic", "NeedDaemonReload",
)  # fmt: skip


def look(paths: list[str]) -> list[File]:
    """Return these files, and of folders what is below them, as they are now. What is no file, or leads nowhere, is left out."""
    found = []
    for path in paths:
        seen = set()
        below = [path]
        for folder, folders, names in os.walk(path, followlinks=True):
            here = os.path.realpath(folder)
            if here in seen:  # a link that leads back
                folders[:] = []
                continue
            seen.add(here)
            below += [os.path.join(folder, name) for name in [*folders, *names]]
        for name in below:
            try:
                known = os.stat(name)
                content = b""
                if stat.S_ISREG(known.st_mode):
                    with open(name, "rb") as file:
                        content = file.read()
                elif not stat.S_ISDIR(known.st_mode):
                    continue
            except OSError:
                continue
            # The second tells of what was put there with a time of its own, as cp -p does.
            found.append(File(name, max(known.st_mtime, known.st_ctime), hashlib.sha256(content).hexdigest()))
    return found


def running(shown: dict[str, str]) -> bool:
    """Return whether there is somebody who has read files. In what is still starting there may be."""
    return shown["MainPID"] != "0" or shown["ActiveState"] in ("active", "reloading")


def began(shown: dict[str, str]) -> str:
    """Return when it started, in microseconds since the machine did. What has no process that systemd knows has begun when it became active."""
    known = shown["ExecMainStartTimestampMonotonic"]
    return known if known != "0" else shown["ActiveEnterTimestampMonotonic"]


def started_at(shown: dict[str, str]) -> float:
    """Return when it started, in seconds since the epoch, by the clock of then where that was set forward since."""
    by_now = time.time() - time.monotonic() + int(began(shown)) / 1e6
    try:
        then = datetime.datetime.strptime(shown["ExecMainStartTimestamp"], "%a %Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return by_now
    return min(by_now, then.replace(tzinfo=datetime.timezone.utc).timestamp() + 1)  # it has whole seconds


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
        code, out, err = module.run_command([systemctl, *words], environ_update={"TZ": "UTC", "LC_ALL": "C"})
        if code:
            module.fail_json(msg="%s: systemctl %s failed: %s. See: journalctl --unit %s" % (name, words[0], err.strip(), unit))
        return out

    def show() -> dict[str, str]:
        return dict(line.split("=", 1) for line in run("show", "--property=" + ",".join(PROPERTIES), "--", unit).splitlines())

    shown = show()
    if shown["LoadState"] == "not-found":
        module.fail_json(msg="%s: this host has no such unit; is it installed?" % name)
    if "MainPID" not in shown:
        module.fail_json(msg="%s: expected a service, which reads files, and not a unit of another kind" % name)
    restart, reload = look(module.params["restart"]), look(module.params["reload"])
    asked = hashlib.sha256(repr((module.params["restart"], module.params["reload"])).encode()).hexdigest()
    memory = "%s-%s" % (unit, asked[:8])
    started, unit_read = started_at(shown) if running(shown) else None, shown["NeedDaemonReload"] != "yes"
    would_tell = told_of(restart + reload, began(shown))
    todo = needed(started, restart, reload, told=remembered(memory), would_tell=would_tell, unit_read=unit_read)
    if todo is not None and not module.check_mode:
        if not unit_read:
            run("daemon-reload")
        run(todo.action, "--", unit)
        remember(module, memory, told_of(restart + reload, began(show())))
    action, file = todo or ("none", "")
    diff = {"before": "%s has not read %s\n" % (name, file) if todo else "", "after": "%s: %s\n" % (name, action) if todo else ""}
    module.exit_json(changed=todo is not None, action=action, file=file, diff=diff)


if __name__ == "__main__":
    main()
