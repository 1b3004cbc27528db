# SPDX-License-Identifier: Apache-2.0
"""Ansible's commands in processes forked from one that has imported Ansible already: the imports take longer than what most tests ask for."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

PRELOADED = (
    "ansible.cli.adhoc", "ansible.cli.playbook", "ansible.executor.task_executor", "ansible.executor.module_common", "ansible.plugins.action.normal",
    "ansible.plugins.connection.local", "ansible.plugins.strategy.linear", "ansible.plugins.callback.default", "ansible.plugins.inventory.yaml",
)  # fmt: skip
os.environ.setdefault("ANSIBLE_NOCOLOR", "1")  # read once, when Ansible is imported
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(list(PRELOADED))


def ansible(program: str, words: Sequence[str | Path], *, cwd: Path, env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `ansible` or `ansible-playbook` with these words, as `subprocess.run` would. Ansible's own settings are those of this process."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        command = [program, *map(str, words)]
        process = _forks.Process(target=_begin, args=(command, str(cwd), env, f"/proc/{os.getpid()}/fd/{out.fileno()}"))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        out.seek(0)
        return subprocess.CompletedProcess(command, process.exitcode or 0, out.read(), "")


def _begin(command: list[str], cwd: str, env: dict[str, str], out: str) -> None:
    from ansible.cli.adhoc import AdHocCLI
    from ansible.cli.playbook import PlaybookCLI

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = command
    try:
        (AdHocCLI if command[0] == "ansible" else PlaybookCLI).cli_executor(command)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
        code = 250
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
