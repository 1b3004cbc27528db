# SPDX-License-Identifier: Apache-2.0
"""A host with Xen: its hypervisor and dom0 run in software emulation, and paravirtual guests in it need no more."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.conftest import ROOT, eventually, require
from tests.warm import ansible

from lepton_ai.sandbox.guest import cache_root
from lepton_ai.sandbox.stand import free_port

BUILD = Path(__file__).with_name("build")
BOOT_SECONDS = 180  # 20 to 30 on two idle cores


def built() -> Path:
    """Return the folder of what boots, which is built once for each state of the script."""
    folder = cache_root("xen") / hashlib.sha256(BUILD.read_bytes()).hexdigest()[:16]
    if not (folder / "initrd").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            subprocess.run([BUILD, Path(scratch) / "built"], check=True)
            (Path(scratch) / "built").rename(folder)
    return folder


@dataclass
class Dom0:
    """The host, reached by ssh as any other."""

    folder: Path
    ssh: list[str]

    def do(self, *command: str) -> str:
        done = subprocess.run([*self.ssh, *command], capture_output=True, text=True, check=False, timeout=120)
        return (done.stdout + done.stderr).strip()

    def play(self, playbook: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["-i", self.folder / "hosts.yml", ROOT / f"playbooks/{playbook}.yml", *words]
        return ansible("ansible-playbook", command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=280)


@pytest.fixture(scope="session")
def dom0() -> Iterator[Dom0]:
    require([] if os.geteuid() == 0 else ["the rights of root"], "xen")
    require([program for program in ("qemu-system-x86_64", "debootstrap", "cpio", "modprobe") if shutil.which(program) is None], "xen")
    made, folder, port = built(), Path(tempfile.mkdtemp(prefix="lepxen")), free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(made / 'host.pub').read_text()}")
    options = ["-F", "none", "-o", f"UserKnownHostsFile={folder}/known_hosts", "-o", "IdentitiesOnly=yes", "-i", str(made / "key")]
    # With the vendor's name Xen hides nothing of the CPU that libvirt asks for; without xpti=off that would make it slow.
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "qemu64,vendor=GenuineIntel", "-smp", "2", "-m", "2048", "-nodefaults", "-no-reboot",
        "-display", "none", "-kernel", str(made / "xen"),
        "-append", "dom0_mem=1024M,max:1024M dom0_max_vcpus=2 console=com1 com1=115200,8n1 loglvl=warning xpti=off",
        "-initrd", f"{made}/vmlinux console=hvc0 loglevel=4 rdinit=/init rootfstype=ramfs,{made}/initrd",
        "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "e1000,netdev=n", "-serial", f"file:{folder}/serial.log",
    ]  # fmt: skip
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    host = Dom0(folder, ["ssh", *options, "-o", "ConnectTimeout=5", "-p", str(port), "root@127.0.0.1"])
    variables = {
        "ansible_host": "127.0.0.1", "ansible_port": port, "ansible_user": "root", "ansible_ssh_private_key_file": str(made / "key"),
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={folder}/known_hosts -o IdentitiesOnly=yes",
        "ansible_python_interpreter": "/usr/bin/python3", "lepton_host": {"uri": "xen:///system", "memory_reserve": "64MiB"}, "lepton_image": "guest",
    }  # fmt: skip
    (folder / "hosts.yml").write_text(yaml.safe_dump({"hypervisors": {"hosts": {"xen1": variables}}}))
    try:
        eventually(lambda: host.do("virsh", "-q", "-c", "xen:///system", "list", "--name") == "Domain-0", BOOT_SECONDS)
        yield host
    finally:
        machine.kill()
        machine.wait()
        shutil.rmtree(folder, ignore_errors=True)
