# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one machine: each is a network namespace, a mount namespace and a name of its own, with libvirtd in them and a wire between."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lepton_ai.sandbox.hypervisor import QEMU_CONF, SYSTEM_FOLDERS, stop_hypervisor
from lepton_ai.sandbox.stand import link_guest_image
from tests.conftest import ROOT, ansible_module, eventually, require
from tests.warm import ansible

WIRE = {"kvm1": "10.213.7.1", "kvm2": "10.213.7.2"}
FOLDERS = {**SYSTEM_FOLDERS, "pki": "/etc/pki"}


@dataclass
class Machine:
    """One host: a network namespace, a mount namespace, a name of its own, and libvirtd in them."""

    name: str
    space: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def inside(self) -> list[str]:
        return ["nsenter", f"--target={self.process.pid}", "--net", "--mount", "--uts", "--"]

    @property
    def options(self) -> dict[str, str]:
        where = {"image_dir": str(self.folder / "images"), "disk_dir": str(self.folder / "disks")}
        return {"uri": "qemu:///system", "migration_uri": f"qemu+tcp://{self.name}/system", **where}

    @property
    def python(self) -> str:
        """Return what Ansible takes for this host's Python."""
        return str(self.folder / "python")

    def start_libvirt(self) -> None:
        self.do("/usr/sbin/libvirtd", "-d", "--listen", "--pid-file", str(self.folder / "libvirtd.pid"))
        eventually(lambda: "error" not in self.virsh("version"), 20)

    def stop(self) -> None:
        stop_hypervisor(self.folder)
        self.process.kill()
        self.process.wait()

    def do(self, *command: str) -> str:
        done = subprocess.run([*self.inside, *command], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    def virsh(self, *words: str) -> str:
        return self.do("virsh", "-q", *words)

    def module(self, module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return ansible_module(module, {**self.options, **arguments}, check=check, python=self.python)

    def asks(self, path: str, timeout: float = 30) -> str:
        """Return what the guest on this host answers, "" where it answers nothing."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8090/cgi-bin/{path}', timeout={timeout}).read().decode())"
        done = subprocess.run([*self.inside, "/usr/bin/python3", "-c", code], capture_output=True, text=True, check=False)
        return done.stdout.strip()


def _machine(name: str, space: str, folder: Path) -> Machine:
    """Start a host in a network namespace that is there."""
    for part in (*FOLDERS, "images", "disks"):
        (folder / part).mkdir(parents=True)
    (folder / "etc/qemu").mkdir()
    (folder / "etc/qemu.conf").write_text(QEMU_CONF + "keepalive_interval = 1\nkeepalive_count = 3\n")
    (folder / "etc/libvirtd.conf").write_text(
        'auth_unix_rw = "none"\nunix_sock_group = "root"\nlisten_tls = 0\nlisten_tcp = 1\nlisten_addr = "0.0.0.0"\nauth_tcp = "none"\n'
        f'host_uuid = "{uuid.uuid4()}"\n'
    )
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in WIRE.items()))
    link_guest_image(folder)
    binds = [f'mkdir -p {target} && mount --bind "$1/{part}" {target}' for part, target in FOLDERS.items()]
    script = " && ".join(['hostname "$2"', 'mount --bind "$1/hosts" /etc/hosts', *binds, "exec sleep infinity"])
    command = ["ip", "netns", "exec", space, "unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script, "sh", str(folder), name]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    made = Machine(name, space, folder, process)
    (folder / "python").write_text(f'#!/bin/sh\nexec {" ".join(made.inside)} /usr/bin/python3 "$@"\n')
    (folder / "python").chmod(0o755)
    eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", 20)
    made.start_libvirt()
    return made


@dataclass
class Two:
    first: Machine
    second: Machine
    folder: Path

    def running(self) -> list[str]:
        """Return which hosts run the node, by libvirt's own word."""
        return [host.name for host in (self.first, self.second) if "running" in host.virsh("domstate", "mig-1")]

    def files(self, host: Machine) -> list[str]:
        return sorted(path.name for path in (host.folder / "disks").glob("[!.]*"))

    def play(self, playbook: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["-i", self.folder / "hosts.yml", ROOT / f"playbooks/{playbook}.yml", *words]
        return ansible("ansible-playbook", command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=240)


@contextmanager
def two_machines() -> Iterator[Two]:
    """Start two hosts that a wire joins, and end them and what they carry."""
    require([] if os.geteuid() == 0 else ["the rights of root"], "libvirt")
    require([program for program in ("ip", "nsenter", "/usr/sbin/libvirtd") if shutil.which(program) is None], "libvirt")
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    spaces = {name: f"{folder.name}{name}" for name in WIRE}
    machines: list[Machine] = []
    try:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "add", space], check=True)
        first, second = spaces.values()
        subprocess.run(["ip", "link", "add", "name", "wire0", "netns", first, "type", "veth", "peer", "name", "wire0", "netns", second], check=True)
        for name, space in spaces.items():
            for words in (f"addr add {WIRE[name]}/24 dev wire0", "link set wire0 up", "link set lo up"):
                subprocess.run(["ip", "-n", space, *words.split()], check=True)
            machines.append(_machine(name, space, folder / name))
        local = {"ansible_connection": "local"}
        hosts = {host.name: {**local, "ansible_python_interpreter": host.python, "lepton_host": host.options} for host in machines}
        variables = {"lepton_image": "guest", "lepton_backups": {"directory": str(folder)}}
        (folder / "hosts.yml").write_text(yaml.safe_dump({"hypervisors": {"hosts": hosts, "vars": variables}}))
        yield Two(*machines, folder)
    finally:
        for host in machines:
            host.stop()
        for space in spaces.values():
            subprocess.run(["ip", "netns", "del", space], check=False)
        shutil.rmtree(folder, ignore_errors=True)
