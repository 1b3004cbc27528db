# SPDX-License-Identifier: Apache-2.0
"""A libvirt daemon of the sandbox's own, with every file below one folder, beside whatever the machine runs.

As root, libvirtd always is the system daemon, whatever its URI says; so it gets a mount namespace in which its
fixed folders are ours. Other users get an ordinary session daemon with its XDG folders moved.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import LeptonError
from lepton_ai.sandbox.waiting import socket_answers

SYSTEM_FOLDERS = {"etc": "/etc/libvirt", "run": "/run/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"}
XDG_FOLDERS = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "etc", "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "lib", "XDG_STATE_HOME": "state"}
SOCKET_LIMIT = 107  # bytes in sockaddr_un
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
remember_owner = 0
"""
START_SECONDS = 20


@dataclass(frozen=True)
class Hypervisor:
    """A running libvirtd: `uri` connects to it, `folder` holds all its files."""

    uri: str
    folder: Path


def _daemon() -> str:
    found = shutil.which("libvirtd") or shutil.which("/usr/sbin/libvirtd")
    if found is None:
        raise LeptonError("libvirtd is missing", hint="install it: apt-get install libvirt-daemon-system qemu-system-x86 qemu-utils")
    return found


def _socket_path(folder: Path) -> Path:
    return folder / "run" / "libvirt-sock" if os.geteuid() == 0 else folder / "run" / "libvirt" / "libvirt-sock"


def _root_command(folder: Path) -> list[str]:
    for name in SYSTEM_FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    etc = folder / "etc"
    (etc / "qemu.conf").write_text(QEMU_CONF)
    (etc / "qemu").mkdir(exist_ok=True)
    # Without DMI the host UUID would change at every start; two daemons with one UUID refuse to migrate.
    (etc / "libvirtd.conf").write_text(f'auth_unix_rw = "none"\nunix_sock_group = "root"\nhost_uuid = "{uuid.uuid5(uuid.NAMESPACE_URL, str(folder))}"\n')
    binds = " && ".join(f'mkdir -p {target} && mount --bind "$1/{name}" {target}' for name, target in SYSTEM_FOLDERS.items())
    script = f'{binds} && exec "$2" --pid-file "$1/libvirtd.pid"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(folder), _daemon()]


def start_hypervisor(folder: Path) -> Hypervisor:
    """Start libvirtd with all its files below `folder`, or find the one that is already there.

    Raises `LeptonError` when it does not answer within 20 s, with the last lines of its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = _socket_path(folder)
    if len(str(path)) > SOCKET_LIMIT:
        raise LeptonError(f"{path} is too long for a unix socket", hint="choose a shorter folder")
    hypervisor = Hypervisor(uri=f"qemu+unix:///session?socket={path}", folder=folder)
    if socket_answers(path):
        return hypervisor
    environment = dict(os.environ)
    if os.geteuid() == 0:
        command = _root_command(folder)
    else:
        command = [_daemon(), "--pid-file", str(folder / "libvirtd.pid")]
        for variable, name in XDG_FOLDERS.items():
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            environment[variable] = str(folder / name)
    log = folder / "libvirtd.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not socket_answers(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LeptonError(f"libvirtd did not start in {folder}", hint=log.read_text()[-2000:])
        time.sleep(0.05)
    return hypervisor


def stop_hypervisor(folder: Path) -> None:
    """End every guest and the daemon of `folder`. A folder without either is left as it is."""
    for pattern in ("run/**/*.pid", "libvirtd.pid"):
        for file in folder.resolve().glob(pattern):
            _end(file)


def _end(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        program = Path(f"/proc/{pid}/comm").read_text()
    except (OSError, ValueError):
        return
    if not program.startswith(("qemu", "libvirtd")):  # the number was given to somebody else
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and _is_alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
