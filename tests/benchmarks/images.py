# SPDX-License-Identifier: Apache-2.0
"""Images of the sample models, one for each framework: how large they are, how long they take to build, to start and to answer.

Run as root: python tests/benchmarks/images.py. It fetches about a gigabyte (TensorFlow from the package index, PyTorch from Debian), so
it is not a part of `make test`. What is printed is measured side by side in one run; an image that does not answer ends it with an error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from lepton_ai.sandbox.engine import Engine, start_engine, stop_engine
from lepton_ai.sandbox.guest import cache_root
from lepton_ai.sandbox.images import load_base
from lepton_ai.sandbox.stand import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
REQUESTS = 500


def torch_base(engine: Engine) -> str:
    """Make Debian with its CPU build of PyTorch an image, and return its name."""
    archive = cache_root("base") / "torch.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(".partial")
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3-torch,python3-pip-whl", "bookworm", partial], check=True, stdout=subprocess.DEVNULL
        )
        shutil.rmtree(partial / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(partial / "var/lib/apt", ignore_errors=True)
        subprocess.run(["tar", "--create", "--file", archive.with_suffix(".part"), "--directory", partial, "."], check=True)
        shutil.rmtree(partial)
        archive.with_suffix(".part").rename(archive)
    subprocess.run(["docker", "--host", engine.address, "import", archive, "python:torch"], check=True, stdout=subprocess.DEVNULL)
    return "python:torch"


def measure(engine: Engine, folder: Path, framework: str, base: str) -> list[str]:
    """Build, start and ask one sample; return the cells of its line."""
    from tests.conftest import ansible_module

    where = {"engine": "docker", "engine_address": engine.address, "state_dir": str(folder / "state")}
    source = ROOT / "inventories" / "models" / framework
    begun = time.monotonic()
    built = ansible_module("model_image", {**where, "name": f"models/{framework}:1", "framework": framework, "source": str(source), "base": base}, seconds=1800)
    took = time.monotonic() - begun
    if built["failed"]:
        sys.exit(f"{framework}: {built['msg']}")
    size, starts = built["image"]["size"], built["start_seconds"]
    port = free_port()
    serving: dict[str, Any] = {"image": f"models/{framework}:1", "ports": [f"{port}:8080"], "health_path": "/v2/health/ready", "health_port": 8080}
    started = ansible_module("model_container", {**where, "name": framework, "state": "healthy", **serving})
    if started["failed"]:
        sys.exit(f"{framework}: {started['msg']}")
    request = json.loads((source / "example.json").read_text())
    times = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(REQUESTS):
            before = time.perf_counter()
            client.post(f"/v2/models/{framework}/infer", json=request).raise_for_status()
            times.append(time.perf_counter() - before)
    ansible_module("model_container", {**where, "name": framework, "state": "absent"})
    times.sort()
    below = subprocess.run(["docker", "--host", engine.address, "image", "inspect", "--format", "{{.Size}}", base], capture_output=True, text=True, check=True)
    cells = [framework, f"{size / 2**20:.0f}", f"{int(below.stdout) / 2**20:.0f}", f"{took:.0f}", f"{starts:.2f}"]
    return [*cells, f"{times[len(times) // 2] * 1000:.1f}", f"{times[int(len(times) * 0.99)] * 1000:.1f}"]


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lep"))
    engine = start_engine(folder)
    try:
        small = load_base(engine)
        rows = [["model", "MiB", "of that base", "build s", "start s", "p50 ms", "p99 ms"]]
        rows += [measure(engine, folder, framework, base) for framework, base in (("onnx", small), ("tensorflow", small), ("pytorch", torch_base(engine)))]
        for row in rows:
            print("  ".join(cell.ljust(12) for cell in row).rstrip())
    finally:
        stop_engine(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
