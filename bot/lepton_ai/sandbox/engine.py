# SPDX-License-Identifier: Apache-2.0
"""A Docker daemon of the sandbox's own, with every file below one folder, beside whatever the machine runs.

It gets a bridge of its own and leaves the machine's firewall alone; what it publishes goes through Docker's own proxy. Only root can
start it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import LeptonError

START_SECONDS = 30
STOP_SECONDS = 15


@dataclass(frozen=True)
class Engine:
    """A running Docker daemon: `address` is what `docker --host` takes."""

    address: str
    folder: Path


def engine_missing() -> list[str]:
    """Return what this machine lacks to run an engine of its own, [] when nothing."""
    missing = [program for program in ("dockerd", "docker", "ip") if shutil.which(program) is None]
    return missing + ([] if os.geteuid() == 0 else ["the rights of root"])


def _bridge(folder: Path) -> tuple[str, str]:
    """Return the name and address of a folder's bridge: from its path, so that a second start finds it again."""
    number = zlib.crc32(str(folder).encode())
    return f"lep{number:08x}", f"172.{16 + number % 16}.{number // 16 % 256}.1/24"


def _answers(address: str) -> bool:
    return subprocess.run(["docker", "--host", address, "version"], capture_output=True, check=False).returncode == 0


def start_engine(folder: Path) -> Engine:
    """Start dockerd with all its files below `folder`, or find the one that is already there.

    Raises `LeptonError` when something is missing, or when it does not answer within 30 s, with the last lines of its log.
    """
    folder = (folder / "docker").resolve()
    address = f"unix://{folder}/docker.sock"
    if engine_missing():
        raise LeptonError(
            f"a container engine cannot be started here: missing {', '.join(engine_missing())}", hint="apt-get install docker.io iproute2, as root"
        )
    if _answers(address):
        return Engine(address, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "docker.pid").unlink(missing_ok=True)  # a crash leaves it, and the number may be somebody else's by now
    bridge, network = _bridge(folder)
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False)
    # A bridge without a hardware address of its own takes the lowest of its ports, so another one whenever a container comes or goes;
    # the others then send into the void until they ask for it again, which takes a second.
    fixed = ["ip", "link", "set", bridge, "address", "02:" + ":".join(bridge[3:][number : number + 2] for number in (0, 2, 4, 6)) + ":01"]
    for command in (fixed, ["ip", "address", "replace", network, "dev", bridge], ["ip", "link", "set", bridge, "up"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LeptonError(f"the bridge {bridge} of the sandbox's engine could not be made: {done.stderr.strip()}")
    (folder / "daemon.json").write_text("{}")  # not the machine's own
    log = folder / "dockerd.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["dockerd", "--config-file", folder / "daemon.json", "--host", address, "--data-root", folder / "data", "--exec-root", folder / "run",
             "--pidfile", folder / "docker.pid", "--bridge", bridge, "--iptables=false", "--ip-forward=false", "--ip-masq=false"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LeptonError(f"dockerd did not start in {folder}", hint=log.read_text()[-2000:])
        time.sleep(0.1)
    return Engine(address, folder)


def stop_engine(folder: Path) -> None:
    """End the containers and the daemon of `folder`, and remove its bridge. A folder without them is left as it is."""
    folder = (folder / "docker").resolve()
    address = f"unix://{folder}/docker.sock"
    if not folder.is_dir():
        return
    if _answers(address):
        running = subprocess.run(["docker", "--host", address, "ps", "--all", "--quiet"], capture_output=True, text=True, check=False).stdout.split()
        if running:
            subprocess.run(["docker", "--host", address, "rm", "--force", *running], capture_output=True, check=False)
    with suppress(OSError, ValueError):
        pid = int((folder / "docker.pid").read_text())
        if Path(f"/proc/{pid}/comm").read_text().startswith("dockerd"):
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
    subprocess.run(["ip", "link", "delete", _bridge(folder)[0]], capture_output=True, check=False)
