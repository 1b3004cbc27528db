# SPDX-License-Identifier: Apache-2.0
"""What there is to choose from: hosts, nodes, containers, services and images as they last told, always answered at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from lepton_ai.runs.model import HERE, NO_HOST, Result, Run
from lepton_ai.runs.progress import Progress

log = structlog.get_logger()
# What the pickers and the Home show comes from these reads: what each tells.
LOOKS = {
    "host.show": ("capacity", "host", "nodes", "images"),
    "container.list": ("containers", "room", "container_images"),
    "service.list": ("services",),
    "deployment.show": ("deployments",),
}
NAMED = {"node": "nodes", "container": "containers", "service": "services", "deployment": "deployments"}
IMAGES = {"image": "images", "container_image": "container_images"}
FRESH_SECONDS = 15.0  # what is older is asked for again, behind the answer
FIRST_SECONDS = 0.8  # how long the very first answer may wait


@dataclass(frozen=True)
class Inventory:
    """What the hosts told, by host; `silent` says why a host did not answer. `at` is seconds since the epoch."""

    at: float = 0.0
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Return the sorted names of all things of a kind."""
        if kind == "host":
            return sorted({*self.hosts, *self.silent})
        answers = self.hosts.values()
        if kind in NAMED:
            return sorted({str(item.get("name")) for answer in answers for item in answer.get(NAMED[kind], ()) if item.get("owned", True)})
        return sorted({str(image) for answer in answers for image in answer.get(IMAGES[kind], ())})

    def seen_by(self, operations: Collection[str]) -> Inventory:
        """Return what somebody sees who may ask for these operations only."""
        keys = {key for operation, told in LOOKS.items() if operation in operations for key in told}
        hosts = {host: {key: value for key, value in answer.items() if key in keys} for host, answer in self.hosts.items()}
        return replace(self, hosts={host: answer for host, answer in hosts.items() if answer}, silent=self.silent if keys else {})


class Look:
    """Asks all hosts what there is, by the reading operations. What the site's inventory has no hosts for is asked for once."""

    def __init__(self, ask: Callable[[str], Result]) -> None:
        self._ask = ask
        self._operations = list(LOOKS)

    def __call__(self) -> Result:
        """Return all answers together. Blocks."""
        together = Result()
        for operation in list(self._operations):
            told = self._ask(operation)
            if HERE in told.failures:
                if NO_HOST in told.failures[HERE]:
                    self._operations.remove(operation)
                continue
            for host, answer in told.answers.items():
                together.answers.setdefault(host, {}).update(answer)
            together.failures.update(told.failures)
        return together


class Choices:
    """A copy of the inventory that is shown while the next one is fetched; `look` asks the hosts, and blocks."""

    def __init__(self, look: Callable[[], Result]) -> None:
        self._look = look
        self._wanted = asyncio.Event()
        self._first = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.inventory = Inventory()

    async def names(self, kind: str) -> list[str]:
        """Return names of a kind; only the very first time it waits, and never longer than Slack does."""
        if time.time() - self.inventory.at > FRESH_SECONDS:
            self._wanted.set()
        if not self._first.is_set():
            try:
                await asyncio.wait_for(self._first.wait(), FIRST_SECONDS)
            except TimeoutError:
                return []
        return self.inventory.names(kind)

    def changed(self, run: Run, _progress: Progress) -> None:
        """Look again when a run has changed something. Called on the run's own thread."""
        if run.state.final and not run.check and run.risk != "read":
            self._loop.call_soon_threadsafe(self._wanted.set)

    async def work(self) -> None:
        """Look whenever somebody wants to know, for ever."""
        self._wanted.set()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                result = await asyncio.to_thread(self._look)
            except Exception as error:
                log.warning("the hosts could not be asked what there is", error=str(error))
            else:
                self.inventory = Inventory(time.time(), dict(result.answers), dict(result.failures))
            self._first.set()
