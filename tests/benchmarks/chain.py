# SPDX-License-Identifier: Apache-2.0
"""The whole chain, once and for real: a virtual node with Debian, Docker inside it, a model in a container there, HAProxy before it.

Run as root: python tests/benchmarks/chain.py. The node is made and prepared by our own playbooks (node create, host prepare, image move,
service create and scale). Under software emulation all of it takes a quarter of an hour, so it is not a part of `make test`. It prints
how long each link took and what an independent client counted; whatever fails ends it with an error.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lepton_ai.sandbox.guest import cache_root
from lepton_ai.sandbox.stand import Stand, free_port, stand, stop_stand

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
PACKAGES = "linux-image-cloud-amd64,systemd-sysv,openssh-server,python3,ca-certificates,apparmor"
NETWORK = "[Match]\nName=en*\n[Network]\nDHCP=yes\n"
PORTS = 4  # for replicas


def debian_image(folder: Path) -> Path:
    """Return an image folder with Debian's kernel and a disk made by debootstrap; it knows the key in `folder`."""
    image = cache_root("debian")
    if (image / "disk.qcow2").exists():
        return image
    image.mkdir(parents=True, exist_ok=True)
    root, raw = folder / "root", folder / "disk.raw"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root], check=True, stdout=subprocess.DEVNULL)
    (root / "etc/systemd/network/10-all.network").write_text(NETWORK)
    (root / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True, exist_ok=True)
    for unit in ("systemd-networkd.service", "ssh.service"):
        link = root / "etc/systemd/system/multi-user.target.wants" / unit
        link.unlink(missing_ok=True)
        link.symlink_to(f"/lib/systemd/system/{unit}")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # QEMU's own
    (root / "etc/hostname").write_text("inner\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (root / "etc/ssh/sshd_config.d/root.conf").write_text("PermitRootLogin prohibit-password\nUseDNS no\n")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", image / "key"], check=True)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_bytes((image / "key.pub").read_bytes())
    shutil.copy2(next((root / "boot").glob("vmlinuz-*")), image / "vmlinuz")
    shutil.copy2(next((root / "boot").glob("initrd.img-*")), image / "initrd.img")
    (image / "cmdline").write_text("root=/dev/vda rw console=ttyS0 quiet\n")
    subprocess.run(["mkfs.ext4", "-q", "-d", root, raw, "6G"], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image / "disk.partial"], check=True)
    (image / "disk.partial").rename(image / "disk.qcow2")
    shutil.rmtree(root)
    raw.unlink()
    return image


def timed(what: str, action: Callable[[], Any]) -> None:
    begun = time.monotonic()
    action()
    print(f"{what:<58} {time.monotonic() - begun:7.1f} s", flush=True)


def playbook(running: Stand, name: str, inventory: Path, *words: str, **arguments: Any) -> None:
    extra = [word for key, value in arguments.items() for word in ("-e", json.dumps({key: value}))]
    environment = {**os.environ, "LEPTON_SANDBOX": str(running.folder), "LEPTON_SANDBOX_PORT": str(running.service_port), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", ROOT / "inventories/sandbox", "-i", inventory, ROOT / f"playbooks/{name}.yml", *extra, *words],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}: {done.stdout[-4000:]}\n{done.stderr[-1000:]}")


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as client:
            client.settimeout(3)
            return client.recv(4) == b"SSH-"
    except OSError:
        return False


def main() -> None:
    from tests.conftest import eventually
    from tests.load import load

    folder = Path(tempfile.mkdtemp(prefix="lep"))
    image = debian_image(folder)
    shutil.copy2(image / "key", folder / "key")
    (folder / "key").chmod(0o600)
    ssh, first, address = free_port(), 20600, socket.gethostbyname(socket.gethostname())
    ports = [f"{address}:{first + number}:{first + number}" for number in range(PORTS)]
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes -F none"
    inner = {
        "ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": ssh, "ansible_user": "root", "ansible_ssh_common_args": options,
        "ansible_ssh_private_key_file": str(folder / "key"), "ansible_python_interpreter": "/usr/bin/python3",
        # A name, and not a number: the container listens on all of the node's own addresses, and HAProxy finds it under the host's.
        "lepton_engine": {"engine": "docker", "address": socket.gethostname(), "port_range": f"{first}-{first + PORTS - 1}", "memory_reserve": "256MiB"},
    }  # fmt: skip
    inventory = folder / "inner.yml"
    inventory.write_text(yaml.safe_dump({"container_hosts": {"hosts": {"inner": inner}}}))
    empty = folder / "empty.yml"
    empty.write_text("all: {}\n")
    with stand(folder, start_bot=False) as running:
        (running.folder / "images" / "debian").symlink_to(image)
        try:
            made = {"vcpus": 2, "memory": "2GiB", "max_vcpus": 2, "max_memory": "2GiB", "forward_ports": [f"{ssh}:22", *ports]}
            timed("node create (Debian 12, 2 vCPUs, 2 GiB)", lambda: playbook(running, "node/create", empty, node="inner", image="debian", **made))
            timed("its sshd answers", lambda: eventually(lambda: listens(ssh), 300))
            timed("host prepare (installs Docker inside)", lambda: playbook(running, "host/prepare", inventory, "--limit", "inner,localhost"))
            timed("image move (by ssh, no registry)", lambda: playbook(running, "image/move", inventory, image="model:1", from_host="here", to_hosts=["inner"]))
            # Its replicas are to be inside, so the host itself gives no room to any.
            outer = {"engine": "docker", "engine_address": f"unix://{running.folder}/docker/docker.sock", "memory_reserve": "4TiB"}
            here = {"lepton_engine": {**outer, "state_dir": f"{running.folder}/containers"}}
            alone = folder / "alone.yml"
            alone.write_text(yaml.safe_dump({"container_hosts": {"hosts": {"inner": inner, "here": here}}}))
            chat = {"image": "model:1", "port": 8080, "listen_port": running.service_port, "memory": "128MiB", "max_replicas": PORTS}
            declared = {"lepton_services": {"chat": {**chat, "start_seconds": 300, "drain_seconds": 60}}}
            timed("service create (1 replica inside)", lambda: playbook(running, "service/create", alone, service="chat", **declared))
            with load(f"http://127.0.0.1:{running.service_port}/", connections=2) as counted:
                timed("service scale to 2, under load", lambda: playbook(running, "service/scale", alone, service="chat", replicas=2))
                timed("service scale to 1, under load", lambda: playbook(running, "service/scale", alone, service="chat", replicas=1))
            print(f"{counted.requests} requests, {counted.dropped} dropped, p50 {counted.p50:.0f} ms, p99 {counted.p99:.0f} ms")
            timed("service delete", lambda: playbook(running, "service/delete", alone, service="chat"))
            timed("node release", lambda: playbook(running, "node/release", empty, node="inner"))
        finally:
            stop_stand(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
