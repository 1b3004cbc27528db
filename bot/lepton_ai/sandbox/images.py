# SPDX-License-Identifier: Apache-2.0
"""Container images for the sandbox and the tests, made of Debian's packages: no registry is needed.

`python:sandbox` is a Python without anything else; `model:1` and its like are a stand-in model server on it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

from lepton_ai.errors import LeptonError
from lepton_ai.sandbox.engine import Engine
from lepton_ai.sandbox.guest import cache_root, run_program

# What Debian 12's Python needs to run and to import its whole standard library.
PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g", "libexpat1", "libssl3", "libffi8",
    "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1", "libncursesw6", "libtinfo6", "libreadline8", "libgcc-s1", "libstdc++6",
)  # fmt: skip
UNUSED = ("usr/share", "usr/lib/python3.11/test", "usr/lib/python3.11/idlelib", "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/ensurepip")
PYTHON = "python:sandbox"
# Stand-in models by image, with what makes them so: two versions that serve, one that ends at once, one that answers every other
# request with an error, one that is never ready.
MODELS = {
    "model:1": {"VERSION": "1"},
    "model:2": {"VERSION": "2"},
    "model:broken": {"BREAK": "1"},
    "model:flaky": {"VERSION": "3", "FAIL": "0.5"},
    "model:slow": {"VERSION": "4", "START": "600"},
}


def base_archive() -> Path:
    """Return the root file system of `python:sandbox` as a tar archive, building it when the cache has none for these packages."""
    versions = run_program("apt-cache", "policy", *PACKAGES)
    candidates = "".join(line for line in versions.splitlines() if not line.startswith(" ") or "Candidate" in line)
    target = cache_root("base") / f"{hashlib.sha256((candidates + ' '.join(UNUSED) + 'status, tmp').encode()).hexdigest()[:16]}.tar"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        work, root = Path(scratch), Path(scratch) / "root"
        run_program("apt-get", "download", *PACKAGES, cwd=work)
        status = []  # what dpkg itself would note of them, for bills of materials
        for package in sorted(work.glob("*.deb")):
            run_program("dpkg", "-x", str(package), str(root))
            status.append("Status: install ok installed\n" + run_program("dpkg-deb", "--field", str(package)))
        (root / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
        (root / "var/lib/dpkg/status").write_text("\n".join(status))
        for folder in UNUSED:
            shutil.rmtree(root / folder, ignore_errors=True)
        (root / "usr/bin/python3").symlink_to("python3.11")
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc/passwd").write_text("root:x:0:0::/:/usr/sbin/nologin\nmodel:x:1000:1000::/:/usr/sbin/nologin\n")
        (root / "etc/group").write_text("root:x:0:\nmodel:x:1000:\n")
        for folder in ("tmp", "run/secrets", "proc", "sys", "dev"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)  # what an engine mounts there takes over
        partial = work / "base.tar"
        with tarfile.open(partial, "w") as archive:
            archive.add(root, arcname=".", filter=_plain)
        partial.rename(target)
    return target


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _docker(engine: Engine, *words: str) -> str:
    done = subprocess.run(["docker", "--host", engine.address, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeptonError(f"docker {words[0]} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def load_base(engine: Engine) -> str:
    """Make `python:sandbox` known to an engine and return its name."""
    if not _docker(engine, "images", "--quiet", PYTHON).strip():
        _docker(engine, "import", "--change", 'CMD ["/usr/bin/python3"]', "--change", "USER 1000:1000", str(base_archive()), PYTHON)
    return PYTHON


def load_models(engine: Engine, environments: dict[str, dict[str, str]]) -> None:
    """Make stand-in models known to an engine: by image, the environment that makes them what they are."""
    server = (files("lepton_ai.sandbox") / "model" / "server.py").read_bytes()
    mark = hashlib.sha256(server + repr(sorted(environments.items())).encode()).hexdigest()[:16]
    if _docker(engine, "images", "--quiet", f"lepton-models:{mark}").strip():
        return
    base = load_base(engine)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "server.py").write_bytes(server)
        for image, environment in environments.items():
            lines = [f"FROM {base}", "COPY server.py /server.py", *(f"ENV {name}={value}" for name, value in environment.items())]
            (folder / "Dockerfile").write_text("\n".join([*lines, 'CMD ["/usr/bin/python3", "/server.py"]', ""]))
            _docker(engine, "build", "--quiet", "--tag", image, str(folder))
    _docker(engine, "tag", base, f"lepton-models:{mark}")
