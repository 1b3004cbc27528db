# SPDX-License-Identifier: Apache-2.0
"""A node with Debian and its cloud-init: what the node was told is looked for inside it, and its address is waited for."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from tests.conftest import eventually, require
from tests.machines import two_machines

from lepton_ai.sandbox.guest import cache_root

pytestmark = [pytest.mark.debian, pytest.mark.slow, pytest.mark.timeout(1500)]
BASE = "linux-image-cloud-amd64,systemd-sysv,openssh-server,sudo,ca-certificates"
PACKAGES = ("cloud-init", "qemu-guest-agent")  # with what debootstrap cannot resolve
FILES = {
    "etc/systemd/network/10-all.network": "[Match]\nName=en*\n[Network]\nDHCP=yes\n",
    "etc/cloud/cloud.cfg.d/90-test.cfg": "datasource_list: [NoCloud]\nnetwork: {config: disabled}\nlocale: false\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/apt/sources.list": "deb [trusted=yes] http://192.168.150.1:8000 ./\n",  # a mirror with what is installed at the first boot
}
WANTED = "hello"
UNITS = ("systemd-networkd", "ssh", "qemu-guest-agent")
BOOT_SECONDS = 400


def debian() -> Path:
    """Return an image folder with Debian and cloud-init, as far from a cloud's as a kernel beside its disk; made once."""
    recipe = BASE + "".join(PACKAGES) + "".join(FILES.values())
    image = cache_root("debian-cloud-init") / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if image.exists():
        return image
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        root, made = Path(scratch) / "root", Path(scratch) / "made"
        made.mkdir()
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={BASE}", "bookworm", root], check=True, stdout=subprocess.DEVNULL)
        shutil.copy2("/etc/resolv.conf", root / "etc/resolv.conf")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(["chroot", root, *install], check=True, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        for path, text in FILES.items():
            (root / path).write_text(text)
        subprocess.run(["chroot", root, "systemctl", "enable", *UNITS], check=True, capture_output=True)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy2(next((root / "boot").glob(f"{name}-*")), made / name)
        (made / "cmdline").write_text("root=/dev/vda rw console=ttyS0\n")
        raw = Path(scratch) / "disk.raw"
        subprocess.run(["mkfs.ext4", "-q", "-d", root, raw, "2G"], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, made / "disk.qcow2"], check=True)
        made.rename(image)
    return image


def mirror(folder: Path) -> None:
    """Make a folder that apt can fetch one package from."""
    folder.mkdir()
    subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", WANTED], cwd=folder, check=True, capture_output=True)
    (package,) = folder.iterdir()
    fields = subprocess.run(["dpkg-deb", "--field", package], check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    (folder / "Packages").write_text(f"{fields}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n")


def test_a_node_is_at_its_first_boot_what_it_was_told_to_be(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    require([] if os.geteuid() == 0 else ["the rights of root"], "debian")
    require([program for program in ("debootstrap", "genisoimage", "dnsmasq") if shutil.which(program) is None], "debian")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    image = debian()
    with two_machines() as two:
        host = two.first
        assert host.module("virtual_network", name="models", host_address="192.168.150.1/24")["changed"]
        (host.folder / "images/debian").symlink_to(image)
        mirror(tmp_path / "mirror")
        serving = ["/usr/bin/python3", "-m", "http.server", "8000", "--bind", "192.168.150.1", "--directory", str(tmp_path / "mirror")]
        server = subprocess.Popen([*host.inside, *serving], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        request.addfinalizer(server.kill)
        told = {
            "user": "ops", "packages": [WANTED], "ssh_keys": [(tmp_path / "key.pub").read_text()],
            "files": [{"path": "/srv/told", "content": "it's {{ data }}\n", "mode": "0640"}],
        }  # fmt: skip
        made = host.module(
            "virtual_node", name="web-1", state="running", image="debian", vcpus=2, memory="768MiB", disk="3GiB", network="network:models",
            virtualization="emulation", first_boot=told, wait_address=True, wait_seconds=BOOT_SECONDS,
        )  # fmt: skip
        assert not made["failed"], made
        (address,) = made["addresses"]
        assert address.startswith("192.168.150.")
        ssh = ["ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known", "-i", str(tmp_path / "key")]

        def inside(*command: str) -> str:
            return host.do(*ssh, "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", f"ops@{address}", *command)

        eventually(lambda: inside("hostname") == "web-1", BOOT_SECONDS)
        eventually(lambda: inside("cloud-init", "status") == "status: done", BOOT_SECONDS)
        assert inside("sudo", "stat", "-c", "%a", "/srv/told") == "640"
        assert inside("sudo", "cat", "/srv/told") == "it's {{ data }}"
        assert inside("hello") == "Hello, world!"  # the package that it was told to install
        # The disk was made larger than the image, and cloud-init grew what is on it.
        assert int(inside("df", "--output=size", "-m", "/").split()[-1]) > 2500
        # By its agent: the address is the same, and a backup holds its file systems still.
        assert host.module("virtual_node_info", name="web-1")["addresses"] == [address]
        backups = two.folder / "backups"
        backups.mkdir()
        saved = host.module("virtual_node_backup", name="web-1", directory=str(backups))
        assert (saved["failed"], saved["backup"]["consistency"]) == (False, "filesystem"), saved
        assert inside("sudo", "touch", "/srv/after") == ""
