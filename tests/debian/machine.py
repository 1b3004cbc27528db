# SPDX-License-Identifier: Apache-2.0
"""A Debian machine with systemd as its first process, reached by ssh: what is done to a host's packages and services is for real in it.

It is a container of systemd-nspawn, so it has this machine's kernel and its speed. Its root is made once; each machine writes to a layer above.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.conftest import ROOT, eventually, module_answer, require
from tests.warm import ansible

from lepton_ai.sandbox.guest import cache_root

BASE = "systemd-sysv,dbus,openssh-server,sudo,ca-certificates,python3,python3-apt"
# What the roles install. It lies in the machine's cache of packages and is not installed: the machine reaches no mirror.
FETCHED = (
    "dnsmasq-base", "genisoimage", "iptables", "libvirt-clients", "libvirt-daemon-system", "python3-libvirt", "qemu-system-x86", "qemu-utils",
    "docker.io", "python3-pip-whl", "haproxy", "keepalived", "python3-kubernetes",
    "prometheus", "prometheus-alertmanager", "prometheus-node-exporter", "prometheus-libvirt-exporter",
)  # fmt: skip
HERE, ADDRESS = "10.213.8.1", "10.213.8.2"
SSH = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


def debian_root(suite: str) -> Path:
    """Return the folder of a Debian with systemd and the packages that roles ask for in its cache; made once."""
    root = cache_root(f"debian-{suite}") / hashlib.sha256(" ".join((BASE, *FETCHED)).encode()).hexdigest()[:16]
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        scratch = Path(folder) / "root"
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={BASE}", suite, scratch], check=True, stdout=subprocess.DEVNULL)
        shutil.copy2("/etc/resolv.conf", scratch / "etc/resolv.conf")
        for words in (["update"], ["install", "-y", "--download-only", *FETCHED]):
            subprocess.run(["chroot", scratch, "apt-get", "-qq", *words], check=True, capture_output=True)
        (scratch / "etc/resolv.conf").write_text("")
        (scratch / "etc/apt/apt.conf.d/99keep").write_text('Binary::apt::APT::Keep-Downloaded-Packages "true";\n')
        scratch.rename(root)
    return root


@dataclass
class Machine:
    """A machine that can be shut down, lose its power and start again; its disk stays."""

    folder: Path
    space: str
    settings: dict[str, str]  # of systemd-nspawn
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait for its sshd."""
        ip("netns", "add", self.space)
        ip("link", "add", self.space, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        for words in (f"-n {self.space} address add {ADDRESS}/24 dev eth0", f"-n {self.space} link set eth0 up", f"-n {self.space} link set lo up"):
            ip(*words.split())
        ip("address", "add", f"{HERE}/24", "dev", self.space)
        ip("link", "set", self.space, "up")
        command = [
            "systemd-nspawn", "--boot", f"--directory={self.folder}/root", "--machine=prepared", "--register=no", "--keep-unit", "--console=pipe",
            f"--network-namespace-path=/run/netns/{self.space}", "--capability=all", "--system-call-filter=@keyring bpf", "--rlimit=NOFILE=1024:524288",
        ]  # fmt: skip
        with (self.folder / "console").open("ab") as console:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes", **self.settings}
            )
        eventually(lambda: self.do("systemctl", "is-system-running") in {"running", "degraded"}, 90)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Shut it down, or with SIGKILL cut its power."""
        assert self.process is not None
        if how == signal.SIGKILL:
            first = subprocess.run(["pgrep", "--parent", str(self.process.pid)], capture_output=True, text=True, check=False).stdout.split()
            subprocess.run(["kill", "-KILL", *first], check=False)
        self.process.send_signal(how)
        try:
            self.process.wait(90)
        finally:
            self.disconnect()

    def disconnect(self) -> None:
        # With the namespace, the bridges of before are gone, as they are on a machine that starts.
        for words in (["link", "del", self.space], ["netns", "del", self.space]):
            subprocess.run(["ip", *words], check=False, stderr=subprocess.DEVNULL)

    def do(self, *command: str) -> str:
        """Return what a command in it prints."""
        options = ["-F", "none", "-i", str(self.folder / "key"), *SSH.split(), "-o", "ConnectTimeout=5"]
        done = subprocess.run(["ssh", *options, f"root@{ADDRESS}", *command], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip()

    def inventory(self, groups: tuple[str, ...], **variables: Any) -> None:
        """Write the inventory, with this machine in these groups."""
        host = {
            "ansible_host": ADDRESS, "ansible_user": "root", "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": f"-F none {SSH}", "ansible_python_interpreter": "/usr/bin/python3",
        }  # fmt: skip
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({group: {"hosts": {"prepared": {**host, **variables}}} for group in groups}))

    def module(self, module: str, **arguments: Any) -> dict[str, Any]:
        """Return what a module answers that is run on it."""
        words = ["-i", self.folder / "hosts.yml", "prepared", "-m", f"lepton.cloud.{module}", "-a", json.dumps(arguments)]
        done = ansible("ansible", words, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=100)
        return module_answer(done.stdout)

    def play(self, playbook: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["-i", self.folder / "hosts.yml", ROOT / f"playbooks/{playbook}.yml", *words]
        return ansible("ansible-playbook", command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=400)


def changed(done: subprocess.CompletedProcess[str]) -> int:
    """Return how much a playbook changed on the machine, which must have gone well."""
    assert done.returncode == 0, done.stdout
    found = re.search(r"^prepared .*changed=(\d+)", done.stdout, re.MULTILINE)
    assert found is not None
    return int(found[1])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


# Since Debian 13 systemd has only the one hierarchy of control groups, which containers in Debian 12 do not run with here.
SUITES: dict[str, dict[str, str]] = {"bookworm": {}, "trixie": {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}}


@contextmanager
def debian_machine(suite: str = "bookworm") -> Iterator[Machine]:
    """Start a new machine, and end it and what it wrote."""
    require([] if os.geteuid() == 0 else ["the rights of root"], "debian")
    require([program for program in ("debootstrap", "systemd-nspawn", "ip", "ssh") if shutil.which(program) is None], "debian")
    lower = debian_root(suite)
    folder = Path(tempfile.mkdtemp(prefix="lep", dir=lower.parent))
    machine = Machine(folder, folder.name, SUITES[suite])
    for part in ("root", "upper", "work"):
        (folder / part).mkdir()
    layers = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, folder / "root"], check=True)
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        (folder / "root/root/.ssh").mkdir(mode=0o700, exist_ok=True)
        (folder / "root/root/.ssh/authorized_keys").write_bytes((folder / "key.pub").read_bytes())
        (folder / "root/etc/hostname").write_text("prepared\n")
        machine.start()
        yield machine
    finally:
        if machine.process is not None and machine.process.poll() is None:
            machine.stop(signal.SIGKILL)
        machine.disconnect()
        subprocess.run(["umount", folder / "root"], check=False)
        shutil.rmtree(folder)
