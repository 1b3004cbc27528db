# SPDX-License-Identifier: Apache-2.0
"""A Prometheus of a test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from lepton_ai.sandbox.stand import free_port
from tests.conftest import eventually, require


class Prometheus(NamedTuple):
    """One that runs: its address, and its process for signals."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def running_prometheus(folder: Path, config: Mapping[str, Any], *options: str, port: int | None = None) -> Iterator[Prometheus]:
    """Start it with its files in `folder`, wait until it can be asked, and end it."""
    require([] if shutil.which("prometheus") else ["prometheus"], "prometheus")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    address = f"127.0.0.1:{port or free_port()}"
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *files, f"--web.listen-address={address}", *options], stdout=log, stderr=log)
    try:
        eventually(lambda: answers(f"http://{address}/-/ready"))
        yield Prometheus(f"http://{address}", process)
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Return whether something good is answered there."""
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False
