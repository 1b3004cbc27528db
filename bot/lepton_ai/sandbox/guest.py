# SPDX-License-Identifier: Apache-2.0
"""Build the sandbox guest: Debian's cloud kernel with a busybox initramfs that reports its own state over HTTP.

The result is an image folder (``vmlinuz``, ``initrd.img``, ``cmdline``) as `lepton.cloud.virtual_node` boots it.
Built once and cached by content; nothing but Debian's packages is fetched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from lepton_ai.errors import LeptonError

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# Order matters: insmod resolves no dependencies.
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_balloon",
    "failover", "net_failover", "virtio_net", "virtio_blk", "button", "evdev",
)  # fmt: skip
SCRIPTS = {"init": "init", "udhcpc.script": "udhcpc.script", "status": "www/cgi-bin/status", "fill": "www/cgi-bin/fill", "disk": "www/cgi-bin/disk"}


def run_program(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return what it printed; raise LeptonError with what it said when it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise LeptonError(f"{command[0]} is missing", hint=f"install it: apt-get install {command[0]}") from error
    except subprocess.CalledProcessError as error:
        raise LeptonError(f"{' '.join(command)} failed: {error.stderr.strip() or error.stdout.strip()}") from error
    return done.stdout


def _kernel_package() -> str:
    for line in run_program("apt-cache", "depends", KERNEL_META_PACKAGE).splitlines():
        word, _, package = line.strip().partition(": ")
        if word == "Depends" and package.startswith("linux-image-"):
            return package
    raise LeptonError(f"{KERNEL_META_PACKAGE} names no kernel package", hint="run apt-get update once")


def cache_root(what: str) -> Path:
    """Return the folder in which the sandbox keeps what it has built, by kind."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lepton" / what


def _digest(package: str) -> str:
    content = hashlib.sha256(" ".join((package, *MODULES)).encode())
    for source in SCRIPTS:
        content.update((files("lepton_ai.sandbox") / "guest" / source).read_bytes())
    return content.hexdigest()[:16]


def build_guest() -> Path:
    """Return the image folder of the sandbox guest, building it when the cache has none for this content.

    Raises `LeptonError` with what to install when a needed program or package is missing.
    """
    package = _kernel_package()
    image = cache_root("guest") / _digest(package)
    if (image / "cmdline").exists():
        return image
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LeptonError("busybox is missing", hint="install it: apt-get install busybox-static")
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        work = Path(scratch)
        run_program("apt-get", "download", package, cwd=work)
        run_program("dpkg", "-x", str(next(work.glob("*.deb"))), str(work / "kernel"))
        root = work / "root"
        for folder in ("bin", "modules", "www/cgi-bin"):
            (root / folder).mkdir(parents=True)
        shutil.copy2(busybox, root / "bin" / "busybox")
        for module in MODULES:
            shutil.copy2(next((work / "kernel").rglob(f"{module}.ko")), root / "modules")
        (root / "modules" / "order").write_text("\n".join(MODULES) + "\n")
        for source, target in SCRIPTS.items():
            (root / target).write_bytes((files("lepton_ai.sandbox") / "guest" / source).read_bytes())
            (root / target).chmod(0o755)
        built = work / "image"
        built.mkdir()
        run_program("sh", "-c", f"find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > '{built}/initrd.img'", cwd=root)
        shutil.copy2(next((work / "kernel" / "boot").glob("vmlinuz-*")), built / "vmlinuz")
        (built / "cmdline").write_text("console=ttyS0 quiet\n")
        shutil.rmtree(image, ignore_errors=True)
        built.rename(image)
    return image
