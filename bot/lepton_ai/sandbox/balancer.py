# SPDX-License-Identifier: Apache-2.0
"""An HAProxy of the sandbox's own, with every file below one folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import LeptonError
from lepton_ai.paths import collections_path
from lepton_ai.sandbox.waiting import socket_answers

START_SECONDS = 15
LUA = "ansible_collections/lepton/cloud/roles/load_balancer/files/lepton.lua"
CONFIG = """\
global
  stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
  server-state-file {folder}/state
  hard-stop-after 60s
  maxconn 4000
  lua-load "{lua}"
defaults
  mode http
  option idle-close-on-response
  load-server-state-from-file global
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout queue 30s
"""


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy in `folder`: admin.sock, master.sock, haproxy.cfg, services/ and state."""

    folder: Path


def balancer_missing() -> list[str]:
    """Return what this machine lacks to run a load balancer of its own, [] when nothing."""
    return [] if _program() else ["haproxy"]


def _program() -> str | None:
    return shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")


def start_balancer(folder: Path) -> Balancer:
    """Start HAProxy with all its files below `folder`, or find the one that is already there.

    Raises `LeptonError` when it does not answer within 15 s, with the last lines of its log.
    """
    folder = (folder / "haproxy").resolve()
    if socket_answers(folder / "master.sock"):
        return Balancer(folder)
    (folder / "services").mkdir(parents=True, exist_ok=True)
    (folder / "haproxy.cfg").write_text(CONFIG.format(folder=folder, lua=collections_path() / LUA))
    (folder / "state").touch()
    log = folder / "haproxy.log"
    program = _program()
    if program is None:
        raise LeptonError("haproxy is missing", hint="install it: apt-get install haproxy")
    command = [program, "-W", "-S", f"{folder}/master.sock", "-f", "haproxy.cfg", "-f", "services", "-p", "haproxy.pid"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    while not (socket_answers(folder / "master.sock") and socket_answers(folder / "admin.sock")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LeptonError(f"HAProxy did not start in {folder}", hint=log.read_text()[-2000:])
        time.sleep(0.05)
    return Balancer(folder)


def stop_balancer(folder: Path) -> None:
    """End the HAProxy of `folder`, its workers with it."""
    with suppress(OSError, ValueError):
        pid = int((folder / "haproxy" / "haproxy.pid").read_text().split()[0])
        if Path(f"/proc/{pid}/comm").read_text().startswith("haproxy"):
            os.killpg(pid, signal.SIGTERM)
