# SPDX-License-Identifier: Apache-2.0
"""The Python API for nodes: thin, each call is a request like any other and blocks until its result."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from ansible_collections.lepton.cloud.plugins.module_utils._sizing import vcpus_for
from rich.console import Console

from lepton_ai.asking import Watch, ask, unwatched
from lepton_ai.errors import LeptonError
from lepton_ai.runs.model import State
from lepton_ai.scaling.series import from_prometheus
from lepton_ai.settings import Settings, load_settings

log = structlog.get_logger()
MIB_PER_GIB = 1024
HOUR = 3600.0
USED = "sum(rate(libvirt_domain_info_cpu_time_seconds_total{{node={node}}}[2m]))"  # vCPUs, by the libvirt exporter as the role monitoring has it scraped


@dataclass(frozen=True)
class CPUResource:
    """Virtual CPUs."""

    cores: int


@dataclass(frozen=True)
class MemoryResource:
    """Memory in GiB; fractions are rounded to whole MiB."""

    gigabytes: float

    @property
    def size(self) -> str:
        """As operations take it, such as '8192MiB'."""
        return f"{round(self.gigabytes * MIB_PER_GIB)}MiB"


class VirtualNode:
    """A node that exists when the constructor returns, and until `release_resources()`.

    A node without a name gets one; image and host come from the site's defaults. Every method raises LeptonError with
    the operation's own words when it did not succeed.
    """

    def __init__(
        self, cpu: CPUResource, memory: MemoryResource, *, name: str | None = None, image: str | None = None, host: str | None = None, site: Path | None = None
    ) -> None:
        self.cpu = cpu
        self.memory = memory
        self.name = name or f"node-{secrets.token_hex(3)}"
        self._image, self._host = image, host
        self._settings = load_settings(site)
        self.create()

    def create(self) -> None:
        """Make the node, or make it again after it was released."""
        self._do("create", vcpus=self.cpu.cores, memory=self.memory.size, image=self._image, host=self._host)

    def adjust_resources(self, cpu: CPUResource | None = None, memory: MemoryResource | None = None) -> None:
        """Give the node this size; what is not given stays as declared.

        Without any, its vCPUs are chosen by what it has used in the last hour, where the site's Prometheus knows that.
        """
        if cpu is None and memory is None:
            cpu = self._needed()
        cpu, memory = cpu or self.cpu, memory or self.memory
        self._do("resize", vcpus=cpu.cores, memory=memory.size)
        self.cpu, self.memory = cpu, memory

    def _needed(self) -> CPUResource | None:
        """Return what the node needs by what it has used, None where that is not known."""
        prometheus, now = self._settings.scaling.prometheus, time.time()
        if not prometheus:
            return None
        answers = perform(self._settings, "node", "show", {"node": self.name})["result"]["answers"]
        most = max((int(node["max_vcpus"]) for answer in answers.values() for node in answer.get("nodes", ()) if node["name"] == self.name), default=0)
        try:
            used = from_prometheus(prometheus, USED.format(node=json.dumps(self.name)), now - HOUR, now)
        except LeptonError as error:
            log.warning("a node keeps its size", node=self.name, why=str(error))
            return None
        vcpus, why = vcpus_for(used, most)
        log.info("a node is sized by what it has used", node=self.name, vcpus=vcpus, why=why)
        return None if vcpus is None else CPUResource(vcpus)

    def release_resources(self) -> None:
        """Remove the node with its disk."""
        self._do("release")

    def __repr__(self) -> str:
        return f"VirtualNode({self.name!r}, {self.cpu}, {self.memory})"

    def _do(self, verb: str, **arguments: Any) -> None:
        perform(self._settings, "node", verb, {"node": self.name, **{name: value for name, value in arguments.items() if value is not None}})


def perform(settings: Settings, noun: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Do an operation, with a progress line on a terminal, and return its run; raise LeptonError when it did not succeed."""
    with _progress(f"{noun} {verb}") as watch:
        run = ask(settings, settings.catalog().find(noun, verb), arguments, watch=watch)
    if run["check"] and run["origin"].get("approval"):
        raise LeptonError(f"{noun} {verb} waits for approval: run {run['id']}", hint=f"see: lepton runs show {run['id']}")
    if State(run["state"]) is not State.SUCCEEDED:
        raise LeptonError(f"{noun} {verb}: {run['state']}: {run['error']}", hint=f"see: lepton runs show {run['id']}")
    return run


@contextmanager
def _progress(title: str) -> Iterator[Watch]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield unwatched
        return
    with console.status(title) as status:
        yield lambda run: status.update(f"{title} · {run['state']} · {run.get('progress', {}).get('task', '')}")
